"""Texts and noise -> decoded pictures, at whatever batch shape comes in.

Latent diffusion conditioned by cross-attention (Rombach et al. 2022, section 3.3). Must not know
seeds, requests or padding: the same rows at the same shape give the same bits. A tensor's suffix
names its axes: B rows, C channels, h and w of latents, H and W of pictures, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from ldm_batch.config import SchedulerConfig
from ldm_batch.diffusion.sampler import Denoiser, Guidance, guide, sample
from ldm_batch.diffusion.step_cache import StepCache
from ldm_batch.diffusion.text_encoder import TextEncoder
from ldm_batch.records import Call

if TYPE_CHECKING:
    from diffusers import ModelMixin, SchedulerMixin


class Painter:
    """UNet, first stage, text encoder and scheduler, put together for one kind of sampling."""

    def __init__(
        self,
        unet: ModelMixin,
        vqvae: ModelMixin,
        text: TextEncoder,
        scheduler: SchedulerMixin,
        sampling: SchedulerConfig,
    ) -> None:
        self._unet = StepCache(unet, sampling.cache_interval)
        self._device, self._dtype = unet.device, unet.dtype
        self._vqvae, self._text = vqvae, text
        self._scheduler, self._sampling = scheduler, sampling

    @torch.inference_mode()
    def paint(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str],
        noise_BChw: torch.Tensor,
        generators: Sequence[torch.Generator],
        calls: Sequence[Call],
        on_step: Callable[[], object] | None = None,
    ) -> torch.Tensor:
        """Denoise and decode one batch.

        Args:
            prompts: B texts; `negative_prompts` as many, "" the null prompt.
            noise_BChw: standard normal, float32 `[B, C, h, w]`.
            generators: one per row, for the noise that the scheduler draws.
            calls: one per row, equal but for their guidance; its scales are all 0, all 1, or
                neither.
            on_step: called after every step of the denoising loop.

        Returns:
            float32 `[B, 3, H, W]`, nominally -1..1, not clamped.
        """
        latents_BChw = sample(
            self._denoiser(prompts, negative_prompts, calls),
            noise_BChw.to(self._device),
            self._scheduler,
            num_inference_steps=calls[0].num_inference_steps,
            generators=generators,
            eta=calls[0].eta,
            on_step=on_step,
        )
        latents_BChw = 1 / self._vqvae.config.scaling_factor * latents_BChw
        decoded_B3HW = self._vqvae.decode(latents_BChw.to(self._vqvae.dtype), return_dict=False)[0]
        return decoded_B3HW.float()  # type: ignore[no-any-return]

    def _denoiser(
        self, prompts: Sequence[str], negative_prompts: Sequence[str], calls: Sequence[Call]
    ) -> Denoiser:
        """Bind the UNet to its texts: one half of the batch at guidance 0 and 1, else both."""
        self._unet.start()
        scales = [call.guidance_scale for call in calls]
        if set(scales) == {1}:
            return self._bind(self._text.encode(prompts))
        if set(scales) == {0}:
            return self._bind(self._text.encode(negative_prompts))
        usual = self._sampling.guidance_rescale
        rescales = [usual if (own := call.guidance_rescale) is None else own for call in calls]
        start, stop = self._sampling.guidance_interval
        guidance = Guidance(
            torch.tensor(scales, device=self._device).float()[:, None, None, None],
            interval=(start, stop),
            rescale=_per_row(rescales, self._device) if any(rescales) else 0.0,
            num_train_timesteps=self._scheduler.config.num_train_timesteps,
        )
        texts_2BTD = self._text.encode([*negative_prompts, *prompts])
        texts_BTD = texts_2BTD[len(prompts) :]
        return guide(self._bind(texts_2BTD), self._bind(texts_BTD), guidance)

    def _bind(self, texts_BTD: torch.Tensor) -> Denoiser:
        """The UNet with its texts, one a row; it is shown, and answers in, float32."""

        def denoise(latents_BChw: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            prediction_BChw = self._unet(
                latents_BChw.to(self._dtype),
                timestep.to(latents_BChw.device),
                encoder_hidden_states=texts_BTD,
                return_dict=False,
            )[0]
            return prediction_BChw.float()  # type: ignore[no-any-return]

        return denoise


def _per_row(values: Sequence[float], device: torch.device) -> torch.Tensor:
    """float64 `[B, 1, 1, 1]`."""
    return torch.tensor(values, dtype=torch.float64, device=device)[:, None, None, None]

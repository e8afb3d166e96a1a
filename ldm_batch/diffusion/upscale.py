"""The two networks of super-resolution at work on images of one padded size.

The image is concatenated to the latents and is never scaled with them. Must not know seeds,
requests or where images come from. A tensor's suffix names its axes: N images, B those and what
fills them up, n tiles, C channels, h and w of images and latents, H and W of what is made of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ldm_batch.diffusion.blend import cut_tiles, run_tiles
from ldm_batch.diffusion.noise import make_generator
from ldm_batch.diffusion.sampler import Denoiser, sample
from ldm_batch.diffusion.step_cache import StepCache
from ldm_batch.diffusion.tiling import Tile, Tiling, make_tiling, pad, padded_side

if TYPE_CHECKING:
    from diffusers import ModelMixin, SchedulerMixin

MAX_GROUP_PIXELS = 2**22
"""Latent pixels of the images that are denoised together: bounds memory, not results. At 3 channels
of float32 they take 48 MiB."""


class Upscaler:
    """UNet, first stage and scheduler; holds no state from one call to the next."""

    def __init__(
        self,
        unet: ModelMixin,
        vqvae: ModelMixin,
        scheduler: SchedulerMixin,
        *,
        cache_interval: int,
        tile_size: int,
        tile_overlap: int,
    ) -> None:
        """Put the parts together; see `SuperResolution` for what they must fulfil."""
        self.scale = 2 ** (len(vqvae.config.block_out_channels) - 1)
        self.multiple = 2 ** (len(unet.config.block_out_channels) - 1)
        self._unet, self._vqvae, self._scheduler = unet, vqvae, scheduler
        self._channels = int(vqvae.config.latent_channels)
        self._cache_interval = cache_interval
        self._tile_size, self._tile_overlap = tile_size, tile_overlap

    def draw_noise(
        self, images: Sequence[np.ndarray], generators: Sequence[torch.Generator]
    ) -> list[torch.Tensor]:
        """Draw each image's noise from its generator: float32 `[C, h, w]` at its padded size.

        It is drawn for the whole image, so that all of its tiles agree. Where every image has the
        same size and the same generator, they are drawn at once, as diffusers does.
        """
        shapes = [(self._channels, *self._padded_size(image)) for image in images]
        if len(set(shapes)) == 1 and all(one is generators[0] for one in generators):
            whole = _randn((len(images), *shapes[0]), generators[0])
            return list(whole)
        return [
            _randn((1, *shape), generator)[0]
            for shape, generator in zip(shapes, generators, strict=True)
        ]

    @torch.inference_mode()
    def run(
        self,
        images: Sequence[np.ndarray],
        generators: Sequence[torch.Generator],
        *,
        num_inference_steps: int,
        eta: float,
        num_rows: int,
        noises: Sequence[torch.Tensor] | None = None,
        on_step: Callable[[], object] | None = None,
    ) -> Iterator[torch.Tensor]:
        """Denoise and decode images of one padded size.

        Args:
            images: float32 `[h, w, 3]` in -1..1 each.
            generators: one per image.
            num_inference_steps: steps of the scheduler.
            eta: eta of DDIM, 0 to 1.
            num_rows: rows of every model call.
            noises: one per image; None: drawn from the generators.
            on_step: called after every step of the denoising loop of a group, see `count_groups`.

        Yields:
            float32 `[3, scale * h, scale * w]`, nominally -1..1, one per image.
        """
        height, width = self._padded_size(images[0])
        tiling = self._tiling(height, width)
        group = self._group_size(height, width, num_rows)
        noises = self.draw_noise(images, generators) if noises is None else noises
        for start in range(0, len(images), group):
            members = slice(start, start + group)
            padded_Nhw3 = np.stack([pad(image, height, width) for image in images[members]])
            spare = group - len(padded_Nhw3)
            images_N3hw = _to_rows(padded_Nhw3, self._unet.device)
            noise_BChw = torch.stack([*noises[members], *[noises[members][-1]] * spare])
            latents_BChw = sample(
                self._denoiser(images_N3hw, tiling, group, num_rows),
                noise_BChw.to(self._unet.device),
                self._scheduler,
                num_inference_steps=num_inference_steps,
                generators=[*generators[members], *(make_generator(0) for _ in range(spare))],
                eta=eta,
                on_step=on_step,
            )
            decoded = self._decode(latents_BChw, tiling, len(padded_Nhw3), num_rows)
            for image, large_3HW in zip(images[members], decoded, strict=True):
                yield large_3HW[:, : image.shape[0] * self.scale, : image.shape[1] * self.scale]

    def count_groups(self, images: Sequence[np.ndarray], num_rows: int) -> int:
        """How many loops of denoising `run` needs for images of one padded size."""
        return math.ceil(len(images) / self._group_size(*self._padded_size(images[0]), num_rows))

    def _group_size(self, height: int, width: int, num_rows: int) -> int:
        """How many images of a padded size are denoised together."""
        if self._tiling(height, width).num_tiles == 1:
            return num_rows
        return max(1, min(num_rows, MAX_GROUP_PIXELS // (height * width)))

    def _tiling(self, height: int, width: int) -> Tiling:
        """How images of a padded size are cut."""
        return make_tiling(
            height,
            width,
            tile_size=self._tile_size,
            overlap=self._tile_overlap,
            multiple=self.multiple,
        )

    def _padded_size(self, image: np.ndarray) -> tuple[int, int]:
        height, width = image.shape[:2]
        return padded_side(height, self.multiple), padded_side(width, self.multiple)

    def _denoiser(
        self, images_N3hw: torch.Tensor, tiling: Tiling, group: int, num_rows: int
    ) -> Denoiser:
        """Bind the UNet to its images; rows of the group that have none get no prediction."""
        images_N3hw = images_N3hw.to(self._unet.dtype)
        caches: list[ModelMixin | StepCache] = []

        def denoise(latents_BChw: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            def predict(tiles: Sequence[Tile], number: int) -> torch.Tensor:
                if number == len(caches):
                    caches.append(self._fresh_unet())
                # Rombach et al. 2022, section 4.4: the image stands beside the latents as channels.
                latents_nChw = cut_tiles(latents_BChw.to(images_N3hw.dtype), tiles, tiling)
                input_nChw = torch.cat([latents_nChw, cut_tiles(images_N3hw, tiles, tiling)], dim=1)
                out = caches[number](input_nChw, timestep, return_dict=False)
                return out[0]  # type: ignore[no-any-return]

            num_images = len(images_N3hw)
            predictions = [
                whole_Chw.float()
                for whole_Chw in run_tiles(predict, tiling, num_images, num_rows=num_rows, scale=1)
            ]
            blank = [torch.zeros_like(predictions[0])] * (group - len(predictions))
            return torch.stack([*predictions, *blank])

        return denoise

    def _fresh_unet(self) -> ModelMixin | StepCache:
        """The UNet, or one that reuses deep features: one for each call of a step, for they are
        its own tiles' features."""
        if self._cache_interval == 1:
            return self._unet
        cached = StepCache(self._unet, self._cache_interval)
        cached.start()
        return cached

    def _decode(
        self, latents_BChw: torch.Tensor, tiling: Tiling, num_images: int, num_rows: int
    ) -> Iterator[torch.Tensor]:
        """Decode as diffusers' pipeline does: without `scaling_factor`."""

        def decode(tiles: Sequence[Tile], _: int) -> torch.Tensor:
            latents_nChw = cut_tiles(latents_BChw, tiles, tiling).to(self._vqvae.dtype)
            return self._vqvae.decode(latents_nChw).sample.float()  # type: ignore[no-any-return]

        return run_tiles(decode, tiling, num_images, num_rows=num_rows, scale=self.scale)


def _randn(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator, device=generator.device).cpu()


def _to_rows(images: np.ndarray, device: torch.device) -> torch.Tensor:
    """float32 `[N, H, W, 3]` as a tensor `[N, 3, H, W]` on the device."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(device)

"""What a diffusers pipeline is given of an image and its mask, and what its VAE makes of them.

Values are those that diffusers makes of the same pictures itself. Must not know texts, schedulers
or batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ldm_batch.columns import IMAGE, MASK
from ldm_batch.diffusion.family.family import Drawing, Family
from ldm_batch.records import Call, Request


def picture_arguments(requests: Sequence[Request]) -> dict[str, torch.Tensor]:
    """The images of requests, float32 `[B, 3, H, W]` in 0..1, and their masks, `[B, 1, H, W]`, 1
    where to repaint; nothing where they have none."""
    given: dict[str, torch.Tensor] = {}
    if IMAGE in requests[0].inputs:
        pixels = np.stack([request.inputs[IMAGE] for request in requests])
        given["image"] = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    if MASK in requests[0].inputs:
        masks = np.stack([request.inputs[MASK] for request in requests])
        given["mask_image"] = torch.from_numpy(masks)[:, None].float()
    return given


def made_up_pictures(names: Iterable[str], side: int) -> dict[str, NDArray[Any]]:
    """An image of shades of grey, uint8 `[side, side, 3]`, and a mask of its lower half, bool
    `[side, side]`: those that are named."""
    shades = np.linspace(0, 255, side).astype(np.uint8)[:, None, None]
    image = np.broadcast_to(shades, (side, side, 3)).copy()
    mask = image[..., 0] >= image[side // 2, 0, 0]
    made: dict[str, NDArray[Any]] = {IMAGE: image, MASK: mask}
    return {name: made[name] for name in names}


def picture_numbers(call: Call, drawing: Drawing) -> dict[str, Any]:
    """The arguments of a call that only some tasks have."""
    given: dict[str, Any] = {}
    if drawing.has_size:
        given |= {"height": call.height, "width": call.width}
    if drawing.has_strength:
        given["strength"] = call.strength
    if drawing.has_noise_level:
        given["noise_level"] = call.noise_level
    return given


def num_steps(family: Family, num_inference_steps: int, strength: float) -> int:
    """How many steps a pipeline takes at a strength, by its own reckoning."""
    if family.is_flow:
        left = min(num_inference_steps * strength, num_inference_steps)
        return num_inference_steps - int(max(num_inference_steps - left, 0))
    return min(int(num_inference_steps * strength), num_inference_steps)


def strength_trouble(family: Family, num_inference_steps: int, strength: float) -> str | None:
    """What is wrong with a strength, if anything: it must leave a step."""
    if num_steps(family, num_inference_steps, strength) > 0:
        return None
    return (
        f"strength: {strength} of num_inference_steps={num_inference_steps} is no step at all; "
        "raise one of them"
    )


def bridge_encoder(vae: Any, dtype: torch.dtype) -> None:
    """Pictures reach a VAE in its own dtype, and latents come out in the denoiser's, whatever the
    pipeline would have it computed in."""
    encode = vae.encode
    vae.register_to_config(force_upcast=False)  # or the pipeline would change its weights' dtype

    def encode_pictures(pictures: torch.Tensor, *args: Any, **kwargs: Any) -> _Encoded:
        return _Encoded(encode(pictures.to(vae.dtype), *args, **kwargs), dtype)

    vae.encode = encode_pictures


class _Encoded:
    """What a VAE encoded, sampled in its own dtype and given in another one."""

    def __init__(self, encoded: Any, dtype: torch.dtype) -> None:
        if hasattr(encoded, "latent_dist"):
            self.latent_dist = _Sampled(encoded.latent_dist, dtype)
        else:
            self.latents = encoded.latents.to(dtype)


class _Sampled:
    """A distribution of latents, as pipelines ask for it."""

    def __init__(self, distribution: Any, dtype: torch.dtype) -> None:
        self._distribution, self._dtype = distribution, dtype

    def sample(self, generator: Any = None) -> torch.Tensor:
        """Latents by the images' own generators."""
        sampled: torch.Tensor = self._distribution.sample(generator)
        return sampled.to(self._dtype)

    def mode(self) -> torch.Tensor:
        """The likeliest latents."""
        likeliest: torch.Tensor = self._distribution.mode()
        return likeliest.to(self._dtype)

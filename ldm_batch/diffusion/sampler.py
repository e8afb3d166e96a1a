"""The denoising loop of latent diffusion (Rombach et al. 2022) as a pure function.

Must not know text, images, files or devices: a denoiser, noise, a scheduler and generators come
in, latents go out. Every draw of noise comes from the generators that were handed in.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(scaled latents `[B, C, h, w]`, timestep, a 0-d tensor) -> prediction `[B, C, h, w]`, both in
float32; what is predicted (noise, v, sample) is the scheduler's `prediction_type`."""


def sample(
    denoise: Denoiser,
    noise: torch.Tensor,
    scheduler: Any,
    *,
    num_inference_steps: int,
    generators: Sequence[torch.Generator],
    eta: float = 0.0,
) -> torch.Tensor:
    """Turn noise into latents by the scheduler's own rules; the scheduler given is not changed.

    The noise is scaled by `init_noise_sigma`, and what the denoiser sees by `scale_model_input`:
    conditioning that stands beside the latents is the denoiser's affair and is never scaled.

    Args:
        noise: standard normal, `[B, C, h, w]`, on the device of the computation.
        scheduler: a diffusers scheduler; a copy of it serves this batch alone, because multistep
            schedulers remember earlier steps.
        num_inference_steps: steps of the scheduler; second-order ones call the denoiser twice each.
        generators: one per row; they are advanced by schedulers that draw noise.
        eta: eta of DDIM (Song et al. 2021, eq. 16), 0 to 1; ignored by other schedulers.

    Returns:
        latents of noise level zero, `[B, C, h, w]`, the noise's dtype and device.
    """
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(num_inference_steps, device="cpu")
    step_arguments = _step_arguments(scheduler, generators, eta)
    latents = noise * float(scheduler.init_noise_sigma)
    for timestep in scheduler.timesteps:
        prediction = denoise(scheduler.scale_model_input(latents, timestep), timestep)
        latents = scheduler.step(
            prediction, timestep, latents, return_dict=False, **step_arguments
        )[0]
    return latents


def _step_arguments(
    scheduler: Any, generators: Sequence[torch.Generator], eta: float
) -> dict[str, Any]:
    """Hand each scheduler's `step` what it takes: the generators where it draws noise, and eta."""
    parameters = inspect.signature(scheduler.step).parameters
    given = {"generator": list(generators), "eta": eta}
    return {name: value for name, value in given.items() if name in parameters}


def guide(denoise_both: Denoiser, guidance_scale: float) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6, in the form of Rombach et al. 2022).

    Args:
        denoise_both: a denoiser of a doubled batch, unconditional rows first, `[2B, C, h, w]`.
        guidance_scale: w in `uncond + w * (cond - uncond)`.

    Returns:
        a denoiser of `[B, C, h, w]`.
    """

    def denoise(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        both = denoise_both(torch.cat([latents, latents]), timestep)
        unconditional, conditional = both.chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

    return denoise

"""The denoising loop of latent diffusion (Rombach et al. 2022) as a pure function.

Must not know text, images, files or devices: a denoiser, noise, a scheduler and generators come
in, latents go out. Every draw of noise comes from the generators that were handed in.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(scaled latents `[B, C, h, w]`, timestep, a 0-d tensor) -> prediction `[B, C, h, w]`, both in
float32; what is predicted (noise, v, sample) is the scheduler's `prediction_type`."""


def sample(
    denoise: Denoiser,
    noise: torch.Tensor,
    scheduler: SchedulerMixin,
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
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # or it would search, and skip, timesteps that occur twice
    step_arguments = _step_arguments(scheduler, generators, eta)
    latents = noise * float(scheduler.init_noise_sigma)
    for timestep in scheduler.timesteps:
        prediction = denoise(scheduler.scale_model_input(latents, timestep), timestep)
        latents = scheduler.step(
            prediction, timestep, latents, return_dict=False, **step_arguments
        )[0]
    return latents


def _step_arguments(
    scheduler: SchedulerMixin, generators: Sequence[torch.Generator], eta: float
) -> dict[str, Any]:
    """Hand each scheduler's `step` what it takes: the generators where it draws noise, and eta."""
    parameters = inspect.signature(scheduler.step).parameters
    given = {"generator": list(generators), "eta": eta}
    return {name: value for name, value in given.items() if name in parameters}


@dataclass(frozen=True, slots=True)
class Guidance:
    """How the conditional and the unconditional prediction are put together."""

    scale: float | torch.Tensor
    """w in `uncond + w * (cond - uncond)` (Ho & Salimans 2022, as Rombach et al. 2022 write it);
    one for all rows, or one each: `[B, 1, 1, 1]`."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Guided part of the way from noise (0) to image (1), start included, stop not unless it is 1;
    outside of it the prediction is the conditional one (Kynkaanniemi et al. 2024, eq. 6)."""
    rescale: float | torch.Tensor = 0.0
    """phi, 0 to 1: how far the guided prediction's standard deviation is brought back to the
    conditional one's (Lin et al. 2023, eq. 15 and 16); one for all rows, or one each: float64
    `[B, 1, 1, 1]`. 0.0 for all computes nothing."""
    num_train_timesteps: int = 1000

    def is_active(self, timestep: torch.Tensor) -> bool:
        """Tell whether this timestep lies in the interval."""
        progress = 1 - (float(timestep) + 1) / self.num_train_timesteps
        start, stop = self.interval
        return start <= progress and (progress < stop or stop >= 1)


def guide(both: Denoiser, conditional: Denoiser, guidance: Guidance) -> Denoiser:
    """Make a guided denoiser of `[B, C, h, w]`.

    Args:
        both: denoises a doubled batch `[2B, C, h, w]`, unconditional rows first.
        conditional: denoises `[B, C, h, w]`; all that runs outside the guidance interval.
        guidance: how the two are put together.
    """

    def denoise(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        if not guidance.is_active(timestep):
            return conditional(latents, timestep)
        without, with_text = both(torch.cat([latents, latents]), timestep).chunk(2)
        guided = without + guidance.scale * (with_text - without)
        if isinstance(guidance.rescale, torch.Tensor) or guidance.rescale:
            guided = _rescale(guided, with_text, guidance.rescale)
        return guided

    return denoise


def _rescale(
    guided: torch.Tensor, with_text: torch.Tensor, phi: float | torch.Tensor
) -> torch.Tensor:
    """Lin et al. 2023, eq. 15 and 16, each image by itself; a flat prediction is left alone.

    1 - phi is taken in float64 and rounded once, as Python does for a phi of all rows: a row has
    the same bits whether the others have a phi of their own or not.
    """
    rest = 1 - phi
    if isinstance(phi, torch.Tensor) and isinstance(rest, torch.Tensor):
        phi, rest = phi.to(guided.dtype), rest.to(guided.dtype)
    std_text = with_text.std(dim=(1, 2, 3), keepdim=True)
    std_guided = guided.std(dim=(1, 2, 3), keepdim=True)
    factor = torch.where(std_guided > 0, std_text / std_guided, 1.0)
    return guided * (phi * factor + rest)

"""The denoising loop of latent diffusion (Rombach et al. 2022) as a pure function.

Must not know text, images, files or devices: a denoiser, noise, a scheduler and generators come
in, latents go out. Every draw of noise comes from the generators that were handed in. A tensor's
suffix names its axes: B rows, C channels, h and w, the sides of the latents.
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
    noise_BChw: torch.Tensor,
    scheduler: SchedulerMixin,
    *,
    num_inference_steps: int,
    generators: Sequence[torch.Generator],
    eta: float = 0.0,
    on_step: Callable[[], object] | None = None,
) -> torch.Tensor:
    """Turn noise into latents by the scheduler's own rules; the scheduler given is not changed.

    The noise is scaled by `init_noise_sigma`, and what the denoiser sees by `scale_model_input`:
    conditioning that stands beside the latents is the denoiser's affair and is never scaled.

    Args:
        noise_BChw: standard normal, float32 `[B, C, h, w]`, on the device of the computation.
        scheduler: a diffusers scheduler; a copy of it serves this batch alone, because multistep
            schedulers remember earlier steps.
        num_inference_steps: steps of the scheduler; second-order ones call the denoiser twice each.
        generators: one per row; they are advanced by schedulers that draw noise.
        eta: eta of DDIM (Song et al. 2021, eq. 16), 0 to 1; ignored by other schedulers.
        on_step: called after every call of the denoiser, `count_steps` times.

    Returns:
        latents of noise level zero, `[B, C, h, w]`, the noise's dtype and device.
    """
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(num_inference_steps, device="cpu")
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # or it would search, and skip, timesteps that occur twice
    step_arguments = _step_arguments(scheduler, generators, eta)
    latents_BChw = noise_BChw * float(scheduler.init_noise_sigma)
    for timestep in scheduler.timesteps:
        prediction_BChw = denoise(scheduler.scale_model_input(latents_BChw, timestep), timestep)
        # DDIM's step, Song et al. 2021, eq. 12, from t to s, with a for their alpha (the product of
        # 1 - beta), e for the predicted noise and z standard normal; sigma is their eq. 16:
        #   x0 = (x_t - sqrt(1 - a_t) e) / sqrt(a_t)
        #   sigma = eta sqrt((1 - a_s) / (1 - a_t)) sqrt(1 - a_t / a_s)
        #   x_s = sqrt(a_s) x0 + sqrt(1 - a_s - sigma^2) e + sigma z
        # Other schedulers have their own rule for the same place.
        latents_BChw = scheduler.step(
            prediction_BChw, timestep, latents_BChw, return_dict=False, **step_arguments
        )[0]
        if on_step is not None:
            on_step()
    return latents_BChw


def count_steps(scheduler: SchedulerMixin, num_inference_steps: int) -> int:
    """How often `sample` calls the denoiser: second-order schedulers do so twice a step.

    Raises:
        ValueError: the scheduler cannot take so many steps.
    """
    scheduler = copy.deepcopy(scheduler)
    try:
        scheduler.set_timesteps(num_inference_steps, device="cpu")
    except (ValueError, IndexError, RuntimeError) as error:
        name, trained = type(scheduler).__name__, scheduler.config.num_train_timesteps
        raise ValueError(
            f"num_inference_steps={num_inference_steps}: more than {name} can take; the model was "
            f"trained with {trained} timesteps"
        ) from error
    return len(scheduler.timesteps)


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
    """s in `uncond + s * (cond - uncond)`, from 0; one for all rows, or one each: float32
    `[B, 1, 1, 1]`."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Guided part of the way from noise (0) to image (1), start included, stop not unless it is 1;
    outside of it the prediction is the conditional one (Kynkaanniemi et al. 2024, eq. 6)."""
    rescale: float | torch.Tensor = 0.0
    """phi, 0 to 1: how far the guided prediction's standard deviation is brought back to the
    conditional one's (Lin et al. 2023, eq. 15 and 16); one for all rows, or one each: float64
    `[B, 1, 1, 1]`. 0.0 for all computes nothing."""
    num_train_timesteps: int = 1000

    def is_active(self, timestep: torch.Tensor) -> bool:
        """Tell whether a timestep (0-d, `num_train_timesteps` - 1 to 0) lies in the interval."""
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

    def denoise(latents_BChw: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        if not guidance.is_active(timestep):
            return conditional(latents_BChw, timestep)
        predictions_2BChw = both(torch.cat([latents_BChw, latents_BChw]), timestep)
        uncond_BChw, cond_BChw = predictions_2BChw.chunk(2)
        # Ho & Salimans 2022, eq. 6: (1 + w) cond - w uncond. The scale is s = 1 + w, as Rombach et
        # al. 2022 count it: 1 is no guidance.
        guided_BChw = uncond_BChw + guidance.scale * (cond_BChw - uncond_BChw)
        if isinstance(guidance.rescale, torch.Tensor) or guidance.rescale:
            guided_BChw = _rescale(guided_BChw, cond_BChw, guidance.rescale)
        return guided_BChw

    return denoise


def _rescale(
    guided_BChw: torch.Tensor, cond_BChw: torch.Tensor, phi: float | torch.Tensor
) -> torch.Tensor:
    """Take back guidance's gain in contrast, each image by itself; a flat prediction is left alone.

    1 - phi is taken in float64 and rounded once, as Python does for a phi of all rows: a row has
    the same bits whether the others have a phi of their own or not.
    """
    rest = 1 - phi
    if isinstance(phi, torch.Tensor) and isinstance(rest, torch.Tensor):
        phi, rest = phi.to(guided_BChw.dtype), rest.to(guided_BChw.dtype)
    std_cond_B111 = cond_BChw.std(dim=(1, 2, 3), keepdim=True)
    std_guided_B111 = guided_BChw.std(dim=(1, 2, 3), keepdim=True)
    factor_B111 = torch.where(std_guided_B111 > 0, std_cond_B111 / std_guided_B111, 1.0)
    # Lin et al. 2023, eq. 15: rescaled = guided * std(cond) / std(guided); eq. 16: phi * rescaled +
    # (1 - phi) * guided.
    return guided_BChw * (phi * factor_B111 + rest)

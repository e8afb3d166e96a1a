"""The original noise schedule as the configuration of diffusers' DDIMScheduler.

Must not know samplers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ldm_batch.diffusion.models.original.settings import Section
from ldm_batch.errors import JobError

BETA_SCHEDULES = {"linear": "scaled_linear", "sqrt_linear": "linear"}
"""The original's `linear` is linear in the roots, as diffusers' `scaled_linear` is."""
PREDICTIONS = {"eps": "epsilon", "x0": "sample"}
BUFFER = "alphas_cumprod"
BUFFERS = {
    *("betas", BUFFER, "alphas_cumprod_prev", "sqrt_alphas_cumprod"),
    *("sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod"),
    *("sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance"),
    *("posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
    *("lvlb_weights", "logvar"),
}
"""Tensors of a checkpoint that follow from the schedule, or weigh the loss."""
TOLERANCE = 1e-5
"""Of products of alphas, 0 to 1: checkpoints hold them in float32, rounded by another sum."""


def read_schedule(params: Section) -> dict[str, Any]:
    """Read the arguments of DDIMScheduler from the diffusion model's section of the yaml.

    The original's DDIM steps begin at 1 and end at the first alpha, not at 1.

    Raises:
        JobError: the schedule is none that diffusers has.
    """
    params.must_be("given_betas", None)
    params.must_be("beta_schedule", *BETA_SCHEDULES)
    params.must_be("parameterization", *PREDICTIONS)
    return {
        "num_train_timesteps": params.integer("timesteps", 1000, most=100_000),
        "beta_start": params.number("linear_start", 1e-4),
        "beta_end": params.number("linear_end", 2e-2),
        "beta_schedule": BETA_SCHEDULES[params.text("beta_schedule", "linear")],
        "prediction_type": PREDICTIONS[params.text("parameterization", "eps")],
        "clip_sample": False,
        "steps_offset": 1,
        "set_alpha_to_one": False,
    }


def take_buffers(tensors: dict[str, torch.Tensor], schedule: Mapping[str, Any]) -> None:
    """Take the schedule's own tensors out of a checkpoint.

    Raises:
        JobError: they are those of another schedule than the yaml's.
    """
    from diffusers import DDIMScheduler

    taken = {name: tensors.pop(name) for name in BUFFERS & tensors.keys()}
    if BUFFER not in taken:
        return
    wanted, found = DDIMScheduler(**schedule).alphas_cumprod, taken[BUFFER].float()
    if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=0, atol=TOLERANCE):
        raise JobError(
            f"{BUFFER} of the checkpoint is not that of the yaml's linear_start and linear_end; "
            "is it the yaml of this checkpoint?"
        )

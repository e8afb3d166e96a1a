"""How large the images of a model may be, and in how many steps its scheduler draws one.

What a pipeline would say of it by an exception in the middle of a batch. Must not know rows.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ldm_batch.config import CallConfig
from ldm_batch.diffusion.family.family import Family
from ldm_batch.diffusion.load import quiet_libraries
from ldm_batch.diffusion.models.files import read_json
from ldm_batch.diffusion.models.sizes import vae_factor
from ldm_batch.errors import JobError, one_line
from ldm_batch.records import Call

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

MAX_POSITIONS = 2**16
"""Of a table of positions, which is computed when it is first needed."""


@dataclass(frozen=True, slots=True)
class SizeLimit:
    """The most pixels that a model has positions for; None: it is not bounded by them."""

    height: int | None = None
    width: int | None = None


def size_limit(folder: Path, family: Family) -> SizeLimit:
    """Return how large the images of the model in a folder may be.

    Raises:
        JobError: its configuration has positions for none, or not for the texts that it takes.
    """
    path = folder / family.denoiser / "config.json"
    if family.positions is None:
        return SizeLimit()
    config, pixels = read_json(path), family.patch * vae_factor(folder, family)
    given = config.get(family.positions)
    sides: list[Any] = given if isinstance(given, list) else [given, given]
    is_table = all(type(side) is int and 1 <= side <= MAX_POSITIONS for side in sides)
    if not is_table or len(sides) not in (2, 3):
        raise JobError(f"{path}: {family.positions} is {given!r:.100}, no numbers of positions")
    of_texts, (height, width) = sides[:-2], sides[-2:]
    needed = family.max_tokens + 2  # texts begin at 1, and the image has the place after them
    if of_texts and of_texts[0] < needed:
        raise JobError(
            f"{path}: {family.positions} has {of_texts[0]} positions for texts; texts of "
            f"{family.max_tokens} tokens need {needed}"
        )
    return SizeLimit(height * pixels, width * pixels)


def size_trouble(call: Call | CallConfig, multiple: int, limit: SizeLimit) -> str | None:
    """What is wrong with the size of a call, if anything, beginning with the field; a side that is
    None is the model's own."""
    for name in ("height", "width"):
        value, most = getattr(call, name), getattr(limit, name)
        if value is None:
            continue
        if value % multiple:
            return f"{name}: {value} is not a multiple of {multiple}, which this model needs"
        if most is not None and value > most:
            return f"{name}: {value}, but this model takes {most} at most"
    return None


def step_trouble(
    scheduler: SchedulerMixin, family: Family, num_inference_steps: int, num_taken: int
) -> str | None:
    """What is wrong with a number of steps, if anything: found by taking them, with nothing to
    draw.

    Args:
        num_taken: the last of them that are taken, see `num_steps`.
    """
    try:
        with quiet_libraries(), torch.random.fork_rng(devices=[]):
            scheduler = type(scheduler).from_config(scheduler.config)
            _set_timesteps(scheduler, family, num_inference_steps)
            _take_steps(scheduler, (num_inference_steps - num_taken) * scheduler.order)
    except Exception as error:  # of many kinds: an index that is none, a number that torch refuses
        told = f"{type(scheduler).__name__}: {type(error).__name__}: {one_line(error)}"
        return (
            f"num_inference_steps: {num_inference_steps} is no number of steps that this model's "
            f"scheduler takes ({told}); take another"
        )
    return None


def _take_steps(scheduler: Any, start: int) -> None:
    """All steps from a place on, of latents of zeros."""
    takes = inspect.signature(scheduler.step).parameters
    given = {"generator": torch.Generator().manual_seed(0)} if "generator" in takes else {}
    latents = torch.zeros(1, 1, 2, 2)
    if start and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    for time in scheduler.timesteps[start:]:
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(latents, time)
        latents = scheduler.step(torch.zeros_like(latents), time, latents, **given).prev_sample


def _set_timesteps(scheduler: Any, family: Family, num_inference_steps: int) -> None:
    """As pipelines do: those of models that flow hand over the noise levels."""
    if not family.is_flow:
        scheduler.set_timesteps(num_inference_steps)
        return
    shift = {"mu": 0.5} if scheduler.config.get("use_dynamic_shifting") else {}
    if "sigmas" in inspect.signature(scheduler.set_timesteps).parameters:
        levels = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
        scheduler.set_timesteps(sigmas=levels.tolist(), **shift)
    else:
        scheduler.set_timesteps(num_inference_steps, **shift)

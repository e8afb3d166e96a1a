"""The scheduler of one of diffusers' own pipelines, from what its model says and the user changes.

Models that flow are sampled by their own scheduler alone; others by any of our closed list. A
scheduler that draws noise is refused where a pipeline does not hand it the images' generators.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ldm_batch.config import SchedulerConfig
from ldm_batch.diffusion import schedulers
from ldm_batch.diffusion.family.family import Family
from ldm_batch.diffusion.scheduler_settings import check_settings, refuse_odd_numbers
from ldm_batch.diffusion.schedulers import FROM_MODEL, make_scheduler
from ldm_batch.errors import JobError, one_line

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

NOISY_CLASSES = (
    "DDPMScheduler",
    "EulerAncestralDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "SASolverScheduler",
)


def make_family_scheduler(
    kind: str, family: Family, model_settings: Mapping[str, Any], scheduler: SchedulerConfig
) -> SchedulerMixin:
    """Build the scheduler of a pipeline.

    Args:
        kind: class of the pipeline.
        model_settings: the model's `scheduler_config.json`, corrected where the user does.

    Raises:
        JobError: it is not allowed for such a pipeline, or a setting is wrong; names the field.
    """
    if not family.is_flow:
        return make_scheduler(model_settings, scheduler.name, scheduler.settings)
    made = _make_own(kind, family, model_settings, scheduler)
    if not family.has_own_noise and draws_noise(made):
        raise JobError(
            f"scheduler: {type(made).__name__} draws noise at every step, and {kind} does not hand "
            "it the images' generators, so that no image could be made again; leave "
            "stochastic_sampling out"
        )
    return made


def find_config_trouble(family: Family, config: Mapping[str, Any]) -> str | None:
    """Say what is wrong with what a user lays over a model's scheduler_config.json, or None."""
    if not family.is_flow:
        return schedulers.find_config_trouble(config)
    return schedulers.find_config_trouble(config, family.schedulers)


def draws_noise(scheduler: SchedulerMixin) -> bool:
    """Tell whether a scheduler draws noise in its steps, whatever their eta."""
    config = scheduler.config
    is_sde = str(config.get("algorithm_type", "")).startswith("sde")
    is_noisy = type(scheduler).__name__ in NOISY_CLASSES
    return is_noisy or is_sde or bool(config.get("stochastic_sampling"))


def _make_own(
    kind: str, family: Family, model_settings: Mapping[str, Any], scheduler: SchedulerConfig
) -> SchedulerMixin:
    import diffusers

    own = str(model_settings.get("_class_name"))
    if own not in family.schedulers:
        known = ", ".join(family.schedulers)
        raise JobError(f"scheduler.name=from_model: the model ships {own}; {kind} takes {known}")
    if scheduler.name not in (FROM_MODEL, own):
        raise JobError(
            f"scheduler.name={scheduler.name}: {kind} is sampled by its own {own} alone; leave it "
            "at from_model"
        )
    scheduler_class = getattr(diffusers, own)
    refuse_odd_numbers(model_settings, scheduler.settings)
    check_settings(scheduler_class, scheduler.settings, model_settings)
    known_settings = inspect.signature(scheduler_class.__init__).parameters
    written = {name: v for name, v in model_settings.items() if name in known_settings}
    try:
        made: SchedulerMixin = scheduler_class(**{**written, **scheduler.settings})
        shift = {"mu": 0.5} if made.config.get("use_dynamic_shifting") else {}
        copy.deepcopy(made).set_timesteps(min(10, made.config.num_train_timesteps), **shift)
    except Exception as error:  # of many kinds: numbers that are none of a scheduler reach numpy
        told = f"{type(error).__name__}: {one_line(error)}"
        raise JobError(
            f"scheduler.settings={dict(scheduler.settings)} over the model's own: {own}: {told}"
        ) from error
    return made

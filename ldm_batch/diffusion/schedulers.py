"""Schedulers by name: a closed list of diffusers classes, settings checked one by one.

What the model was trained with (betas, prediction type) always comes from the model's own
configuration; must not know how a scheduler is used (sampler.py does).
"""

from __future__ import annotations

import copy
import inspect
import logging
import typing
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ldm_batch.diffusion.scheduler_settings import (
    check_settings,
    is_of_type,
    parameters,
    refuse_odd_numbers,
    type_name,
)
from ldm_batch.errors import JobError

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

logger = logging.getLogger(__name__)

FROM_MODEL = "from_model"
NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "lms": ("LMSDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "kdpm2": ("KDPM2DiscreteScheduler", {}),
    "kdpm2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpmpp_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_2s": (
        "DPMSolverSinglestepScheduler",
        {"algorithm_type": "dpmsolver++", "lower_order_final": True},
    ),
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "sa_solver": ("SASolverScheduler", {}),
}
"""Short name -> diffusers class, with the settings that the name stands for. Each is proven on
Gaussian data, where the right result is known; LCM and TCD are not here because they are right only
for models distilled for them."""
SCHEDULER_CLASSES = tuple(sorted({class_name for class_name, _ in NAMES.values()}))
ROUNDING_CLASSES = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler")
TRAINING_SETTINGS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)
"""Facts of the model's training; taken over with their default values, too."""
PAPER_BETAS = ((0.00085, 0.012), (0.0015, 0.0155), (0.0015, 0.0195), (0.0015, 0.0205))
"""First and last beta of the models of Rombach et al. 2022, all evenly spaced in their square
roots: what their code calls linear, diffusers calls scaled_linear."""
PAPER_SETTINGS = {"beta_schedule": "scaled_linear", "steps_offset": 1, "set_alpha_to_one": False}
"""What their code means, in the words of a scheduler_config.json."""


def make_scheduler(
    model_settings: Mapping[str, Any], name: str = FROM_MODEL, settings: Mapping[str, Any] = {}
) -> SchedulerMixin:
    """Build the scheduler `name` for a model, `settings` laid over the model's own.

    Args:
        model_settings: the model's `scheduler_config.json`.
        name: `from_model`, a short name of `NAMES` or a class name of `SCHEDULER_CLASSES`.
        settings: the user's overrides, arguments of the class.

    Raises:
        JobError: unknown name or setting, wrong type or value, or a combination that cannot give
            right images; the message names the field.
    """
    class_name, fixed = _find_class(model_settings, name)
    scheduler_class = _load_class(class_name)
    model_own = _own_settings(model_settings, scheduler_class)
    refuse_odd_numbers(model_settings, settings)
    check_settings(scheduler_class, settings, model_settings)
    _check_model_fits(scheduler_class, model_own, model_settings)
    try:
        scheduler = scheduler_class(**{**model_own, **fixed, **settings})
        copy.deepcopy(scheduler).set_timesteps(min(10, scheduler.config.num_train_timesteps))
    except Exception as error:  # of many kinds: numbers that are none of a scheduler reach torch
        given = {**model_own, **settings}
        facts = {k: given[k] for k in (*TRAINING_SETTINGS, *settings) if k in given}
        raise JobError(f"scheduler.settings={facts}: {class_name}: {error}") from error
    betas = scheduler.betas
    if not bool(((betas >= 0) & (betas <= 1)).all()):  # NaN is neither
        raise JobError(
            f"scheduler: its betas run from {float(betas[0])} to {float(betas[-1])}; they must be "
            "within 0 and 1 (beta_start, beta_end, trained_betas)"
        )
    return scheduler


def check_steps(scheduler: SchedulerMixin, num_inference_steps: int) -> None:
    """Raise a JobError unless a scheduler takes a number of steps."""
    try:
        copy.deepcopy(scheduler).set_timesteps(num_inference_steps)
    except Exception as error:
        raise JobError(
            f"num_inference_steps={num_inference_steps}: {type(scheduler).__name__}: {error}"
        ) from error


def find_step_trouble(scheduler: SchedulerMixin, num_inference_steps: int) -> str | None:
    """Say what is wrong with a number of steps for a scheduler, or None.

    diffusers' DDIM, DDPM and PNDM round the distance of two steps down, so steps that do not divide
    the training timesteps leave a little noise; `leading` spacing, rounded, can start far too late.
    """
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(num_inference_steps)
    name, trained = type(scheduler).__name__, scheduler.config.num_train_timesteps
    start = int(scheduler.timesteps.max())
    if start < 0.9 * trained and scheduler.config.get("timestep_spacing") == "leading":
        return (
            f"{name} with timestep_spacing=leading and {num_inference_steps} steps starts at "
            f"timestep {start} of {trained}; trailing spacing starts at the end"
        )
    is_even = trained % num_inference_steps == 0
    is_spaced = scheduler.config.get("timestep_spacing") in ("trailing", "linspace")
    if name in ROUNDING_CLASSES and is_spaced and not is_even:
        return f"{name} is exact only for steps that divide {trained}, not {num_inference_steps}"
    return None


def find_config_trouble(
    config: Mapping[str, Any], classes: Iterable[str] = SCHEDULER_CLASSES
) -> str | None:
    """Say what is wrong with what a user lays over a model's scheduler_config.json, or None.

    Args:
        classes: the schedulers that may take it.
    """
    known: set[str] = set()
    for scheduler_class in map(_load_class, classes):
        arguments = parameters(scheduler_class)
        hints = typing.get_type_hints(inspect.unwrap(scheduler_class.__init__))
        known |= arguments.keys()
        for key in config.keys() & arguments.keys():
            if not is_of_type(config[key], hints.get(key, Any)):
                return f"{key}={config[key]!r}: must be {type_name(hints[key])}"
    unknown = sorted(config.keys() - known)
    return f"{unknown[0]}: no scheduler has such a setting" if unknown else None


def find_beta_trouble(model_settings: Mapping[str, Any]) -> str | None:
    """Say that a model of the paper seems to be described with the wrong noise schedule, or None.

    The hub's description of the text-to-image model is, which makes every image a little wrong.
    """
    schedule = model_settings.get("beta_schedule", "linear")  # diffusers' own default
    betas = (model_settings.get("beta_start"), model_settings.get("beta_end"))
    if schedule != "linear" or betas not in PAPER_BETAS:
        return None
    return (
        "its scheduler_config.json says beta_schedule: linear, but the paper's code means what "
        "diffusers calls scaled_linear, so images are not what the model was trained for"
    )


def effective_settings(scheduler: SchedulerMixin) -> dict[str, Any]:
    """Return every setting the scheduler runs with, JSON-able, defaults included."""
    return {k: v for k, v in sorted(scheduler.config.items()) if not k.startswith("_")}


def _find_class(model_settings: Mapping[str, Any], name: str) -> tuple[str, dict[str, Any]]:
    if name == FROM_MODEL:
        name = str(model_settings.get("_class_name"))
        if name not in SCHEDULER_CLASSES:
            raise JobError(f"scheduler.name=from_model: the model ships {name}, not supported")
    if name in SCHEDULER_CLASSES:
        return name, {}
    if name not in NAMES:
        known = ", ".join([FROM_MODEL, *NAMES])
        raise JobError(f"scheduler.name={name}: unknown; known are: {known}")
    return NAMES[name]


def _load_class(class_name: str) -> type[SchedulerMixin]:
    import diffusers

    loaded: type[SchedulerMixin] = getattr(diffusers, class_name)
    return loaded


def _own_settings(
    model_settings: Mapping[str, Any], scheduler_class: type[SchedulerMixin]
) -> dict[str, Any]:
    """Select what the model's configuration says to this class, its training facts completed."""
    written = {k: v for k, v in model_settings.items() if not k.startswith("_")}
    model_class = str(model_settings.get("_class_name"))
    if model_class in SCHEDULER_CLASSES:
        defaults = parameters(_load_class(model_class))
        facts = {k: defaults[k].default for k in TRAINING_SETTINGS if k in defaults}
        written = {**facts, **written}
    return {k: v for k, v in written.items() if k in parameters(scheduler_class)}


def _check_model_fits(
    scheduler_class: type[SchedulerMixin],
    model_own: Mapping[str, Any],
    model_settings: Mapping[str, Any],
) -> None:
    """Refuse a class that cannot follow the model's training; warn where it goes its own way."""
    name = scheduler_class.__name__
    hints = typing.get_type_hints(inspect.unwrap(scheduler_class.__init__))
    prediction_type = model_own.get("prediction_type", "epsilon")
    if not is_of_type(prediction_type, hints.get("prediction_type", str)):
        raise JobError(f"scheduler.name: {name} cannot be used with {prediction_type} models")
    if model_settings.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in model_own:
        raise JobError(f"scheduler.name: {name} cannot follow the model's zero terminal SNR betas")
    spacing = model_settings.get("timestep_spacing")
    if spacing is not None and "timestep_spacing" not in model_own:
        logger.warning("%s ignores the model's timestep_spacing=%s", name, spacing)

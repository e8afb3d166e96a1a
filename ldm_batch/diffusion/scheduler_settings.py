"""The settings of a scheduler: of its class, of the right type, and numbers that are numbers.

Must not know which schedulers there are (schedulers.py does).
"""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ldm_batch.errors import JobError

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

FIELD = "scheduler.settings"
MAY_BE_INFINITE = ("lambda_min_clipped",)
MAX_TRAIN_TIMESTEPS = 100_000
"""A hundred times what models are trained with: tables of this length are made at once."""


def refuse_odd_numbers(model_settings: Mapping[str, Any], settings: Mapping[str, Any] = {}) -> None:
    """Refuse numbers that are none, and a training without steps or without end.

    Args:
        model_settings: the model's `scheduler_config.json`.
        settings: the user's overrides.

    Raises:
        JobError: names the setting.
    """
    own = "scheduler_config.json of the model"
    for where, given in ((own, model_settings), (FIELD, settings)):
        remedy = "; model.scheduler_config corrects it" * (where == own)
        for name, value in given.items():
            numbers = value if isinstance(value, list) else [value]
            is_odd = name not in MAY_BE_INFINITE and any(
                isinstance(one, float) and not math.isfinite(one) for one in numbers
            )
            if is_odd or any(one != one for one in numbers):
                raise JobError(f"{where}: {name}={value!r:.100} is not a finite number{remedy}")
        steps = given.get("num_train_timesteps", 1)
        if type(steps) is int and not 1 <= steps <= MAX_TRAIN_TIMESTEPS:
            raise JobError(
                f"{where}: num_train_timesteps={steps}; must be 1 to {MAX_TRAIN_TIMESTEPS}{remedy}"
            )


def check_settings(
    scheduler_class: type[SchedulerMixin],
    settings: Mapping[str, Any],
    model_settings: Mapping[str, Any],
) -> None:
    """Refuse settings that a class has not, or has of another type, and a prediction type that the
    model does not make.

    Raises:
        JobError: names the field.
    """
    arguments = parameters(scheduler_class)
    hints = typing.get_type_hints(inspect.unwrap(scheduler_class.__init__))
    for key, value in settings.items():
        field = f"scheduler.settings.{key}={value!r}"
        if key not in arguments:
            known = ", ".join(arguments)
            raise JobError(
                f"{field}: {scheduler_class.__name__} has no such setting; it has {known}"
            )
        if not is_of_type(value, hints.get(key, Any)):
            raise JobError(f"{field}: must be {type_name(hints[key])}")
    trained = model_settings.get("prediction_type", "epsilon")  # diffusers' own default
    if settings.get("prediction_type", trained) != trained:
        raise JobError(
            f"scheduler.settings.prediction_type={settings['prediction_type']}: the model "
            f"predicts {trained} (its scheduler_config.json), so every image would be wrong"
        )


def parameters(scheduler_class: type[SchedulerMixin]) -> dict[str, inspect.Parameter]:
    """The arguments that a class of schedulers is made of, by name."""
    arguments = dict(inspect.signature(scheduler_class.__init__).parameters)
    del arguments["self"]
    return arguments


def is_of_type(value: object, hint: object) -> bool:
    """Tell whether a configuration value suits a type hint of a scheduler's argument."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(is_of_type(value, option) for option in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if hint in (bool, int, str):
        return type(value) is hint
    if hint is float:
        return type(value) in (int, float)
    if hint in (None, types.NoneType):
        return value is None
    if origin is list:
        return isinstance(value, list) and all(
            is_of_type(item, typing.get_args(hint)[0]) for item in value
        )
    return hint is Any


def type_name(hint: object) -> str:
    """What a type hint asks for, in words."""
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    return getattr(hint, "__name__", None) or str(hint)

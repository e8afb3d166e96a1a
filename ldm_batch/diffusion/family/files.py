"""What the folder of one of diffusers' own pipelines tells of it, before anything is loaded.

Imports no torch. Must not know where folders come from, nor which files loading reads (files.py).
"""

from __future__ import annotations

import math
from pathlib import Path

from ldm_batch.diffusion.family.family import Drawing, Family
from ldm_batch.diffusion.family.table import (
    FAMILIES,
    LOW_RES_SCHEDULER,
    NOT_LOADED,
)
from ldm_batch.diffusion.models.files import MODEL_INDEX, read_json, read_kind
from ldm_batch.diffusion.models.sizes import vae_factor
from ldm_batch.errors import JobError


def read_not_loaded(folder: Path) -> list[str]:
    """Return the parts that `model_index.json` names and that are never loaded."""
    index = read_json(folder / MODEL_INDEX)
    return [name for name in NOT_LOADED if index.get(name) not in (None, [None, None])]


def read_family(folder: Path) -> Family:
    """Return what is known of the pipeline class that a folder holds.

    Raises:
        JobError: it is none of the closed table.
    """
    kind = read_kind(folder)
    if kind not in FAMILIES:
        raise JobError(
            f"model: {folder} holds a {kind}; engine diffusers draws by {', '.join(FAMILIES)}"
        )
    return FAMILIES[kind]


def read_drawing(folder: Path, task: str) -> Drawing:
    """Return how the pipeline that a folder holds draws a task.

    Raises:
        JobError: it does not, or is none of the closed table.
    """
    family, kind = read_family(folder), read_kind(folder)
    if task not in family.tasks:
        others = [name for name, other in FAMILIES.items() if task in other.tasks]
        raise JobError(
            f"task={task}: {folder} holds a {kind}, which draws {', '.join(family.tasks)}; of "
            f"engine diffusers {', '.join(others)} draw {task}"
        )
    return family.tasks[task]


def max_noise_level(folder: Path, family: Family) -> int | None:
    """Return how much noise an image may have before it is enlarged; None: the model says nothing.

    Raises:
        JobError: what it says is no whole number.
    """
    name = "max_noise_level"
    level = read_json(folder / MODEL_INDEX).get(name, family.settings.get(name))
    if level is not None and (not isinstance(level, int) or isinstance(level, bool)):
        raise JobError(f"{folder / MODEL_INDEX}: {name} is {level!r}, not a whole number")
    if level is None:
        return None
    steps = read_json(folder / LOW_RES_SCHEDULER / "scheduler_config.json")
    classes = read_json(folder / family.denoiser / "config.json")
    tables = (steps.get("num_train_timesteps", 1000), classes.get("num_class_embeds"))
    return min(level, *(size - 1 for size in tables if type(size) is int))


def size_multiple(folder: Path, family: Family) -> int:
    """Return what height and width in pixels must be a multiple of.

    Raises:
        JobError: the configuration does not say.
    """
    try:
        return math.lcm(family.pixels, family.patch * vae_factor(folder, family))
    except (KeyError, TypeError) as error:
        raise JobError(f"{folder / 'vae' / 'config.json'}: does not tell {error}") from error

"""What the headers of weights say, before a weight is read: names, dtypes and shapes.

diffusers takes the names of weights in parts from their index, and leaves what no file holds as the
memory was; so index and files are held to each other here. transformers takes them from the files,
and may name weights twice that are tied. Imports no torch. Must not know what the weights become.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ldm_batch.diffusion.models.files import (
    SAFE,
    WEIGHT_NAMES,
    WeightFiles,
    find_weights,
    part_names,
    read_json,
)
from ldm_batch.diffusion.models.untrusted import refuse_endless
from ldm_batch.errors import JobError

FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
OF_TRANSFORMERS = "model"
"""What transformers calls the weights of a component."""
NO_WEIGHTS = "position_ids"
"""Last part of the names of whole numbers that older files hold and nobody reads."""
Header = dict[str, "Stored"]
"""Name of a weight -> what is stored of it."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One weight of a file."""

    dtype: str
    """As safetensors names it."""
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


def read_headers(folder: Path, weights: WeightFiles) -> Header:
    """Return what the files of a component hold; of pickled ones nothing.

    Args:
        folder: the model's.

    Raises:
        JobError: a file is damaged, holds other numbers than weights, or not what the index says;
            names file and weight.
    """
    if weights.is_pickled:
        return {}
    index, *parts = weights.paths if len(weights.paths) > 1 else ("", *weights.paths)
    found = {part: _read_header(folder / part) for part in parts}
    if index:
        _compare(folder / index, {Path(part).name: header for part, header in found.items()})
    return {name: stored for header in found.values() for name, stored in header.items()}


def _read_header(path: Path) -> Header:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in [*file.keys()]}
            header = {n: Stored(s.get_dtype(), tuple(s.get_shape())) for n, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise JobError(
            f"model file {path} is damaged, or no safetensors: {error}; fetch it again"
        ) from error
    for name, stored in header.items():
        if stored.dtype not in FLOATS and name.rpartition(".")[2] != NO_WEIGHTS:
            raise JobError(
                f"model file {path}: weight {name} is {stored.dtype}; weights must be "
                f"{', '.join(FLOATS)}"
            )
    return header


def _compare(index: Path, found: Mapping[str, Header]) -> None:
    """Hold an index to what its parts hold."""
    named = read_json(index)
    part_names(index, SAFE)
    if not isinstance(named.get("metadata"), dict):
        raise JobError(f"model file {index} has no metadata, which loading needs; add an empty one")
    if WEIGHT_NAMES[index.parent.name][0] == OF_TRANSFORMERS:
        return
    places: dict[str, str] = named["weight_map"]
    for name, part in places.items():
        if name not in found[part]:
            raise JobError(f"model file {index} says that {part} holds {name}, but it does not")
    for part, header in found.items():
        for name in header:
            if places.get(name) != part:
                raise JobError(
                    f"model file {index.parent / part} holds {name}, but {index.name} does not "
                    "say so"
                )


def check_headers(folder: Path, variant: str | None = None) -> None:
    """Check that weights are as their indices say, and enough of them for their configurations.

    Raises:
        JobError: names the file, and the weight or the setting.
    """
    for name, weights in find_weights(folder, variant).items():
        if not weights.is_pickled:
            header = read_headers(folder, weights)
            refuse_endless(folder / name / "config.json", len(header))

"""The tensors of an original checkpoint, each taken once: nothing missing, nothing left over.

Reads by `pickles.py` or safetensors; knows the prefixes of the parts and how a moving average
(EMA) is named. Must not know what the parts are made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ldm_batch.diffusion.models.pickles import as_tensors, read_pickle
from ldm_batch.errors import JobError

INERT = ("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",)
"""Lightning's keys of `callbacks` are classes; this one stands in the paper's checkpoints."""
AVERAGE = "model_ema."
AVERAGE_COUNTS = ("decay", "num_updates")
"""Numbers of the averaging itself."""
MAX_NAMED = 3


class Weights:
    """Tensors by the names of one part, each to be taken once."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], place: str) -> None:
        self._tensors = dict(tensors)
        self._place = place

    def has(self, name: str) -> bool:
        """Tell whether a tensor of this name is left."""
        return name in self._tensors

    def take(self, name: str) -> torch.Tensor:
        """Take a tensor out.

        Raises:
            JobError: there is none.
        """
        if name not in self._tensors:
            raise JobError(f"{self._place}{name} is missing; is the yaml that of this checkpoint?")
        return self._tensors.pop(name)

    def take_pair(self, old: str, new: str) -> Iterator[tuple[str, torch.Tensor]]:
        """Take a weight and its bias, under a new name."""
        for kind in ("weight", "bias"):
            yield f"{new}.{kind}", self.take(f"{old}.{kind}")

    def take_below(self, old: str, new: str) -> Iterator[tuple[str, torch.Tensor]]:
        """Take all whose names begin with `old.`, under `new.` instead."""
        for name in [name for name in self._tensors if name.startswith(f"{old}.")]:
            yield new + name.removeprefix(old), self._tensors.pop(name)

    def refuse_rest(self) -> None:
        """Raise JobError where a tensor is left that no part of the model has a place for."""
        if self._tensors:
            names = ", ".join(f"{self._place}{name}" for name in sorted(self._tensors)[:MAX_NAMED])
            raise JobError(
                f"{names}: {len(self._tensors)} tensors have no place in the model of the yaml; "
                "is it that of this checkpoint?"
            )


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Read the state dict of a checkpoint, `.safetensors` or what `torch.save` wrote.

    Returns:
        Dense tensors on the CPU by their original names, mapped from the disk where possible.

    Raises:
        JobError: it names a class that is not Lightning's callback, is damaged, or no state dict.
    """
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise JobError(f"{path}: cannot be read as safetensors: {error}") from error
    values = read_pickle(path, inert=INERT)
    if isinstance(values, Mapping) and "state_dict" in values:
        values = values["state_dict"]
    return as_tensors(values, path)


def split(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Take the tensors of a prefix out of a checkpoint, named without it."""
    names = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors.pop(name) for name in names}


def choose_average(
    weights: Mapping[str, torch.Tensor], average: Mapping[str, torch.Tensor], path: Path, part: str
) -> dict[str, torch.Tensor]:
    """Take the moving average in place of each weight: it is what the original samples with.

    Args:
        weights: by their names in the network `part`.
        average: by the names that LitEma gives them, `part` and the name without dots.

    Raises:
        JobError: an average is missing, or one is left over.
    """
    names = {name: f"{part}.{name}".replace(".", "") for name in weights}
    missing = sorted(set(names.values()) - average.keys())
    if missing:
        what = f"{len(missing)} of {len(names)}" if len(missing) < len(names) else "all"
        raise JobError(
            f"{path}: the yaml's use_ema (by default true) asks for averaged weights, of which "
            f"{what} are missing ({AVERAGE}{missing[0]}); if its plain weights are those to sample "
            "with, say use_ema: false in the yaml"
        )
    left = sorted(average.keys() - set(names.values()) - set(AVERAGE_COUNTS))
    if left or len(set(names.values())) < len(names):
        raise JobError(f"{path}: {AVERAGE}{left[0] if left else '*'} averages no weight of its own")
    return {name: average[averaged] for name, averaged in names.items()}

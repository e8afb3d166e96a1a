"""Tensors out of torch's pickled files, without running what a pickle asks for.

Reads by torch's own `weights_only` reader, which builds tensors and plain containers and refuses
anything else. Must not know what the tensors mean, nor where they go.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ldm_batch.errors import JobError

MAX_OVERLAP = 2
"""Bytes of tensors for each byte of a file: views of one memory may overlap, within reason."""


class Inert:
    """Stands in for a class that a checkpoint names and that nothing of it is needed of."""

    def __setstate__(self, state: object) -> None:
        """Keep nothing."""


def read_pickle(path: Path, *, inert: Sequence[str] = ()) -> Any:
    """Read a file of `torch.save`, its tensors mapped from the disk where its format allows it.

    Args:
        inert: dotted names of classes that may stand in it; an empty class takes their place.

    Raises:
        JobError: it names another class or function, is damaged, or says that it holds more than
            it does; nothing that it names was run.
    """
    try:
        has_mmap = _check_archive(path)
        stand_ins: list[Any] = [(Inert, name) for name in inert]
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=has_mmap)
    except JobError:
        raise
    except Exception as error:  # of many kinds, the reader's on hostile input
        raise JobError(f"{path}: {_reason(path, inert, error)}") from None


def as_tensors(values: object, path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a flat state dict, in its order.

    Args:
        values: what stood in `path`.

    Raises:
        JobError: it is no such mapping; names the first value that is no tensor, or one that
            claims more elements than the file can hold.
    """
    if not isinstance(values, Mapping) or not values:
        raise JobError(f"{path}: holds a {type(values).__name__}, not a mapping of tensors by name")
    tensors: dict[str, torch.Tensor] = {}
    views: set[Hashable] = set()
    num_bytes = 0
    for name, value in values.items():
        if not isinstance(name, str):
            raise JobError(f"{path}: holds the key {name!r}, which is no name of a tensor")
        if not isinstance(value, torch.Tensor):
            raise JobError(f"{path}: {name} is a {type(value).__name__}, not a tensor")
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise JobError(f"{path}: {name} is not a plain dense tensor")
        if view_of(value) not in views:
            views.add(view_of(value))
            num_bytes += value.numel() * value.element_size()
        if num_bytes > MAX_OVERLAP * path.stat().st_size:
            raise JobError(f"{path}: {name} claims {value.numel()} elements, more than it holds")
        tensors[name] = value.detach()
    return tensors


def view_of(tensor: torch.Tensor) -> Hashable:
    """What tied tensors have in common: the same view of the same memory."""
    if tensor.numel() == 0:
        return id(tensor)
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _check_archive(path: Path) -> bool:
    """Tell whether a file is a zip archive, which can be mapped; refuse one that would inflate."""
    if not zipfile.is_zipfile(path):
        return False  # the format before torch 1.6, which is read whole
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise JobError(f"{path}: is compressed; torch.save writes no such archive")
    return True


def _reason(path: Path, inert: Sequence[str], error: Exception) -> str:
    """Why a file was refused, in our words."""
    try:
        names = set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - set(inert)
    except Exception:  # of a damaged file
        names = set()
    names |= set(re.findall(r"(?i)unsupported (?:global: )?GLOBAL (\S+)", str(error)))
    if names:
        return (
            f"names {', '.join(sorted(names)[:3])}: only tensors and plain values are read from a "
            "pickle, never code; nothing of it was run. Use a copy in safetensors"
        )
    lines = [line for line in str(error).splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if "WeightsUnpickler error" in line), "")
    first = (said or (lines[0] if lines else "")).rpartition("WeightsUnpickler error:")[2].strip()
    return f"cannot be read as a file of torch.save ({type(error).__name__}: {first[:200]})"

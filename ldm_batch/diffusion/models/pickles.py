"""Tensors out of torch's pickled files, without running what a pickle asks for.

Reads by torch's own `weights_only` reader, which builds tensors and plain containers and refuses
anything else. Must not know what the tensors mean, nor where they go.
"""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch

from ldm_batch.errors import JobError

GLOBALS = re.compile(
    r"collections\.OrderedDict|_codecs\.encode|(?:builtins|__builtin__)\.set"
    r"|torch\._utils\._rebuild_(?:tensor|tensor_v2|parameter)"
    r"|torch\.(?:(?!Untyped|Typed)\w*Storage|Size|device|serialization\._get_layout)"
    r"|torch\.(?:b?float\w*|half|double|u?int\d+|long|short|bool|complex\w*|q\w*int\w*)"
)
"""What a pickle of tensors may name. torch itself allows a few more, some of which make as much
memory as a number in the file says."""
MAX_PICKLE_BYTES = 64 << 20
"""Of names and shapes; the values of tensors stand beside."""
NUM_LEGACY_PICKLES = 5
LFS_POINTER = b"version https://git-lfs"
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
        _check_globals(path, has_mmap, inert)
        stand_ins: list[Any] = [(Inert, name) for name in inert]
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=has_mmap)
    except JobError:
        raise
    except Exception as error:  # of many kinds, the reader's on hostile input
        raise JobError(f"{path}: {_reason(path, error)}") from None


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


def _check_globals(path: Path, is_archive: bool, inert: Sequence[str]) -> None:
    """Refuse a pickle by what it names, before anything of it is built."""
    for module, name in _globals(path, is_archive):
        full = f"{module}.{name}"
        if full not in inert and not GLOBALS.fullmatch(full):
            raise JobError(
                f"{path}: names {full}: only tensors and plain values are read from a pickle, "
                "never code; nothing of it was run. Use a copy in safetensors"
            )


def _globals(path: Path, is_archive: bool) -> Iterator[tuple[str, str]]:
    """(module, name) of all that the pickles of a file name."""
    if is_archive:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.filename.endswith("/data.pkl") or entry.filename == "data.pkl":
                    if entry.file_size > MAX_PICKLE_BYTES:
                        raise JobError(f"{path}: names and shapes take {entry.file_size} bytes")
                    yield from _named(io.BytesIO(archive.read(entry)))
        return
    with path.open("rb") as file:  # magic number, protocol, system, values, keys; then the bytes
        for _ in range(NUM_LEGACY_PICKLES):
            yield from _named(file)


def _named(file: IO[bytes]) -> Iterator[tuple[str, str]]:
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            yield module, name
        elif opcode.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4", "BYTEARRAY8"):
            yield "pickle", opcode.name


def _reason(path: Path, error: Exception) -> str:
    """Why a file was refused, in our words."""
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
    if not start:
        return "is empty"
    if start == LFS_POINTER:
        return "is a pointer of Git LFS, not the file itself; run `git lfs pull` where it came from"
    lines = [line for line in str(error).splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if "WeightsUnpickler error" in line), "")
    first = (said or (lines[0] if lines else "")).rpartition("WeightsUnpickler error:")[2].strip()
    return f"cannot be read as a file of torch.save ({type(error).__name__}: {first[:200]})"

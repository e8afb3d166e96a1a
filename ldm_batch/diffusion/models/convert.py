"""Bring pickled weights in, once: a folder with `.bin` becomes one of safetensors, same values.

No class of the source is ever built and nothing of a pickle is run; see pickles.py. torch is
imported only when there is something to convert. Must not know where folders come from.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError

from ldm_batch.diffusion.models.cache import remembered_sha256, sha256, sole_process, write_whole
from ldm_batch.diffusion.models.conversion import (
    CONVERTER_KEY,
    RECORD,
    Conversion,
    models_folder,
    read_conversion,
)
from ldm_batch.diffusion.models.files import (
    SAFE,
    WeightFiles,
    find_weights,
    index_name,
    needed_files,
    read_json,
    weight_name,
)
from ldm_batch.diffusion.models.hub import NO_RIGHT, NO_ROOM
from ldm_batch.diffusion.models.side_file import CONVERTER
from ldm_batch.errors import JobError

logger = logging.getLogger(__name__)

DTYPES = ("torch.float32", "torch.float16", "torch.bfloat16", "torch.float64")
COUNTS = ("position_ids", "num_batches_tracked")
"""Endings of names of what is no weight, but stands among them."""


def converted(source: Path, variant: str | None) -> Path:
    """Return the folder of safetensors that a folder with pickled weights becomes, made if this
    machine does not have it; of all processes that share the cache one makes it.

    Raises:
        JobError: a pickle holds anything but tensors, or there is no room or right to write.
    """
    files = {path: remembered_sha256(source / path) for path in needed_files(source, variant)}
    made_of = {**files, CONVERTER_KEY: str(CONVERTER)}
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:32]
    target = models_folder() / key
    if read_conversion(target) is not None:
        return target
    try:
        with sole_process(target.with_name(f"{key}.lock")):
            if read_conversion(target) is None:
                _make(source, target, made_of, variant)
    except (OSError, SafetensorError) as error:
        raise JobError(f"model: {source}: {_trouble(error, target.parent)}") from error
    return target


def _make(source: Path, target: Path, made_of: dict[str, str], variant: str | None) -> None:
    """Make the whole folder under another name, then put it in place."""
    num_bytes = sum((source / path).stat().st_size for path in made_of if path != CONVERTER_KEY)
    logger.warning(
        "%s: its weights are pickled; converting %s MB into safetensors in %s, once",
        source,
        f"{num_bytes / 1e6:,.0f}",
        target.parent,
    )
    for leftover in target.parent.glob(f".{target.name}.*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        tied = convert_folder(source, temporary, variant, store_tied_once=True)
        for path, planned in made_of.items():
            if path != CONVERTER_KEY and sha256(source / path) != planned:
                raise JobError(f"model file {source / path} changed while it was read; run again")
        paths = [p for p in sorted(temporary.rglob("*")) if p.is_file()]
        result = {str(path.relative_to(temporary)): sha256(path) for path in paths}
        write_whole(temporary / RECORD, asdict(Conversion(made_of, result, tied)))
        shutil.rmtree(target, ignore_errors=True)  # damaged, or of another converter
        os.rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def convert_folder(
    source: Path, target: Path, variant: str | None, *, store_tied_once: bool
) -> dict[str, dict[str, str]]:
    """Write to `target` what is needed of a model's folder, its weights in safetensors.

    Args:
        store_tied_once: leave out weights that are others by another name, of which whoever loads
            them must be told; otherwise they are stored by each name.

    Returns:
        Component -> weight that is left out -> the name by which it is stored.

    Raises:
        JobError: a pickle holds anything but tensors, a file is missing.
        OSError: the target cannot be written.
    """
    weights = find_weights(source, variant)
    of_weights = {path for one in weights.values() for path in one.paths}
    for path in needed_files(source, variant):
        if path not in of_weights:
            _copy(source / path, target / path)
    tied = {
        name: _convert_component(source, target, name, one, store_tied_once)
        for name, one in weights.items()
    }
    return {name: names for name, names in tied.items() if names}


def _convert_component(
    source: Path, target: Path, name: str, weights: WeightFiles, store_tied_once: bool
) -> dict[str, str]:
    single, index = weight_name(name, SAFE, None), index_name(name, SAFE, None)
    if len(weights.paths) == 1:
        only = source / weights.paths[0]
        return _convert_file(only, target / single, weights.is_pickled, store_tied_once)
    parts = weights.paths[1:]
    named = {path: f"{single[: -len(SAFE) - 1]}-{k:05d}.{SAFE}" for k, path in enumerate(parts, 1)}
    tied: dict[str, str] = {}
    for path, new in named.items():
        tied |= _convert_file(source / path, target / new, weights.is_pickled, store_tied_once)
    written = read_json(source / weights.paths[0])
    written["weight_map"] = {
        key: Path(named[f"{name}/{part}"]).name
        for key, part in written["weight_map"].items()
        if key not in tied
    }
    written.setdefault("metadata", {})  # diffusers needs it
    (target / index).write_text(json.dumps(written, indent=2), encoding="utf-8")
    return tied


def _convert_file(
    source: Path, target: Path, is_pickled: bool, store_tied_once: bool
) -> dict[str, str]:
    """Write one file of weights; names of those left out, and what they are stored as."""
    if not is_pickled:
        _copy(source, target)
        return {}
    from ldm_batch.diffusion.models.model_folder import write_weights
    from ldm_batch.diffusion.models.pickles import as_tensors, read_pickle, view_of

    names: dict[object, str] = {}
    tied: dict[str, str] = {}
    kept = {}
    for key, tensor in as_tensors(read_pickle(source), source).items():
        if str(tensor.dtype) not in DTYPES and not key.endswith(COUNTS):
            raise JobError(f"{source}: {key} is of {tensor.dtype}, no dtype of weights")
        first = names.setdefault(view_of(tensor), key) if store_tied_once else key
        if first == key:
            kept[key] = tensor
        else:
            tied[key] = first
    target.parent.mkdir(parents=True, exist_ok=True)
    write_weights(kept, target)
    return tied


def _copy(source: Path, target: Path) -> None:
    """A file of its own: a link would change with what it was made of."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _trouble(error: Exception, folder: Path) -> str:
    """Why a folder was not made, and what to do."""
    number, said = getattr(error, "errno", None), getattr(error, "strerror", None) or error
    if number in NO_ROOM or "No space left" in str(error):
        what = "no room for its weights in safetensors"
    elif number in NO_RIGHT:
        what = "no right to write its weights in safetensors"
    else:
        what = f"its weights cannot be written in safetensors ({said})"
    return f"{what} in {folder}; set LDM_BATCH_CACHE to a folder with room that may be written"

"""Find a model's folder: a local one, a hub's, or what we made of either.

Imports no torch, so that a driver can plan a job on a machine that has none of it in memory. Must
not know how weights become modules (load.py does).
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from ldm_batch.config import ModelConfig
from ldm_batch.config.model import is_commit_sha
from ldm_batch.config.places import with_home
from ldm_batch.diffusion.family.extras import check_vocabulary
from ldm_batch.diffusion.family.files import read_family
from ldm_batch.diffusion.family.table import TOKENIZERS
from ldm_batch.diffusion.models.convert import converted
from ldm_batch.diffusion.models.fetch import fetch_snapshot, resolve_revision
from ldm_batch.diffusion.models.files import (
    CHECKPOINTS,
    COMPONENTS,
    MODEL_INDEX,
    WEIGHT_NAMES,
    find_weights,
    index_name,
    read_index,
    variants_of,
    weight_forms,
    weight_name,
)
from ldm_batch.diffusion.models.side_file import HUB_PATTERNS as SIDE_PATTERNS
from ldm_batch.errors import JobError

DEMO_PREFIX = "demo:"
JUDGES: Mapping[str, Callable[[Path], object]] = {"diffusers": read_family}
"""Engine -> what refuses a folder by its settings, before weights are fetched or converted."""
SETTINGS_PATTERNS = (
    MODEL_INDEX,
    *SIDE_PATTERNS,
    *(f"{name}/*.{ending}" for name in COMPONENTS for ending in ("json", "txt")),
    *(f"{name}/*.{ending}" for name in TOKENIZERS for ending in ("model", "jinja")),
)
"""What is fetched of a hub repository beside weights: no code."""


def find_model(model: ModelConfig) -> Path:
    """Return the local folder of safetensors that holds the model: fetched if it is a hub's and
    not here, converted if its weights are pickled and not here converted.

    Raises:
        JobError: neither a local folder nor a hub repository pinned by a full commit sha.
    """
    folder = find_source(model)
    if judge := JUDGES.get(model.engine):
        judge(folder)
    if any(weights.is_pickled for weights in find_weights(folder, model.variant).values()):
        return converted(folder, model.variant)
    return folder


def find_source(model: ModelConfig) -> Path:
    """Return the local folder of the model as it was published, its weights perhaps pickled.

    Raises:
        JobError: neither a local folder nor a hub repository pinned by a full commit sha.
    """
    if model.path is not None:
        is_demo = model.path.startswith(DEMO_PREFIX)
        folder = _demo_folder(model.path) if is_demo else Path(with_home(model.path))
        return _check_folder(folder, f"model.path={model.path}")
    if model.repo_id is None:
        raise JobError("model.path: no model given; set model.path to a folder, or model.repo_id")
    return _check_folder(_fetch(model), f"model.repo_id={model.repo_id}")


def is_hub_id(path_or_repo_id: str | os.PathLike[str]) -> bool:
    """Tell whether a text that is no folder here can be a repository's name."""
    if not isinstance(path_or_repo_id, str):
        return False
    is_id = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", path_or_repo_id) is not None
    return is_id and not os.path.exists(os.path.expanduser(path_or_repo_id))


def todays_main(repo_id: str) -> str:
    """Full sha of what the `main` of a repository is now.

    Raises:
        JobError: the hub does not say; perhaps a folder was meant.
    """
    try:
        return resolve_revision(repo_id)
    except JobError as error:
        raise JobError(f"{repo_id} is no folder here, and of the hub: {error}") from error


def _demo_folder(path: str) -> Path:
    models = Path(__file__).parents[2] / "demo" / "models"
    name = path.removeprefix(DEMO_PREFIX)
    names = sorted(p.name for p in models.iterdir() if p.is_dir()) if models.is_dir() else []
    if name not in names:
        raise JobError(f"model.path={path}: no such demo model; there are: {', '.join(names)}")
    return models / name


def _check_folder(folder: Path, field: str) -> Path:
    if folder.is_file():
        raise JobError(
            f"{field}: {folder} is a file; `python -m ldm_batch import` makes a folder of it, as "
            "jobs take it"
        )
    if not folder.is_dir():
        raise JobError(
            f"{field}: no such folder on {socket.gethostname()}: {folder}; every node needs it, "
            "so name one on a file system that all share, or set model.repo_id"
        )
    if not (folder / MODEL_INDEX).is_file():
        checkpoints = sorted(p.name for p in folder.iterdir() if p.suffix in CHECKPOINTS)
        what = (
            f"it holds {checkpoints[0]}: `python -m ldm_batch import` makes such a folder of that"
            if checkpoints
            else "is it a diffusers pipeline?"
        )
        raise JobError(f"{field}: {folder} has no {MODEL_INDEX}; {what}")
    return folder


def _fetch(model: ModelConfig) -> Path:
    """The revision's folder, with the best form of the weights of each component: pickles only of
    those that have no other."""
    if not is_commit_sha(model.revision):
        raise JobError(
            f"model.revision={model.revision}: must be the full commit sha of {model.repo_id} "
            "(40 hexadecimal digits); branches and tags can change under a dataset"
        )
    repo_id, revision = str(model.repo_id), str(model.revision)
    patterns, named = [*SETTINGS_PATTERNS], [*WEIGHT_NAMES]
    if judge := JUDGES.get(model.engine):
        folder = fetch_snapshot(repo_id, revision, patterns=patterns)
        judge(_check_folder(folder, f"model.repo_id={repo_id}"))
        index = read_index(folder)
        named = [name for name in WEIGHT_NAMES if name in index]
        for name in index.keys() & {*TOKENIZERS}:
            check_vocabulary(folder / name)
    missing = named
    for variant, ending in weight_forms(model.variant):
        if variant is None and model.variant is not None and missing == named:
            break
        patterns += [p for name in missing for p in _weight_patterns(name, ending, variant)]
        folder = fetch_snapshot(repo_id, revision, patterns=patterns)
        if not (folder / MODEL_INDEX).is_file():
            break
        named = [name for name in WEIGHT_NAMES if name in read_index(folder)]
        missing = [
            name
            for name in named
            if name in missing and not _has_weights(folder, name, ending, variant)
        ]
        if not missing:
            return folder
    if variants := sorted({v for name in missing for v in variants_of(name, _listed(model))}):
        raise JobError(
            f"model.repo_id={repo_id}: no usual weights of {missing[0]} at {revision}; it has "
            f"{', '.join(variants)}: model.variant={variants[0]}"
        )
    return folder


def _listed(model: ModelConfig) -> list[str]:
    """Names of the files of a hub's revision that was fetched from."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        tree = get_cached_repo_tree(str(model.repo_id), revision=str(model.revision))
    except CachedRepoTreeNotFoundError:
        return []
    return [entry.path for entry in tree]


def _weight_patterns(name: str, ending: str, variant: str | None) -> list[str]:
    """As in `fnmatch`: a single file, or parts and (in json of a variant) their index."""
    single = weight_name(name, ending, variant)
    plain = weight_name(name, ending, None)
    numbers = "-?????-of-?????"
    parts = single.removesuffix(f".{ending}") + f"{numbers}.{ending}"
    older = plain.removesuffix(f".{ending}") + f"{numbers}.{variant}.{ending}"
    return [single, parts, *([older] if variant else [])]


def _has_weights(folder: Path, name: str, ending: str, variant: str | None) -> bool:
    single, index = weight_name(name, ending, variant), index_name(name, ending, variant)
    return (folder / single).is_file() or (folder / index).is_file()

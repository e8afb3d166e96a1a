"""Find a model's folder and lock its files by content.

Imports no torch, so that a driver can plan a job on a machine that has none of it in memory; must
not know how weights become modules (load.py does).
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ldm_batch.config import ModelConfig
from ldm_batch.diffusion.fetch import fetch_snapshot
from ldm_batch.errors import JobError

MODEL_INDEX = "model_index.json"
DEMO_PREFIX = "demo:"
COMPONENTS = ("bert", "tokenizer", "unet", "vqvae", "scheduler")
"""The only sub-folders that are ever read, whatever `model_index.json` names."""
WEIGHT_NAMES = {
    "bert": "model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "vqvae": "diffusion_pytorch_model.safetensors",
}
TOKENIZER_NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
)
HUB_PATTERNS = [
    MODEL_INDEX,
    *(f"{name}/*.{ending}" for name in COMPONENTS for ending in ("json", "txt")),
    *(f"{name}/{weights}" for name, weights in WEIGHT_NAMES.items()),
    *(f"{name}/{weights.replace('.', '-*.')}" for name, weights in WEIGHT_NAMES.items()),
]
"""What is fetched of a hub repository: no pickles, no variants in other dtypes, no code."""
MAX_JSON_BYTES = 64 * 1024 * 1024
"""A model's largest JSON, its vocabulary, has a few MB; a hostile one must not fill memory."""


def find_model(model: ModelConfig) -> Path:
    """Return the local folder that holds the model, fetching a pinned hub revision if need be.

    Raises:
        JobError: neither a local folder nor a hub repository pinned by a full commit sha.
    """
    if model.path is not None:
        folder = (
            _demo_folder(model.path) if model.path.startswith(DEMO_PREFIX) else Path(model.path)
        )
        return _check_folder(folder.expanduser(), f"model.path={model.path}")
    if model.repo_id is None:
        raise JobError("model.path: no model given; set model.path to a folder, or model.repo_id")
    return _check_folder(_fetch_snapshot(model), f"model.repo_id={model.repo_id}")


def _demo_folder(path: str) -> Path:
    models = Path(__file__).parents[1] / "demo" / "models"
    name = path.removeprefix(DEMO_PREFIX)
    names = sorted(p.name for p in models.iterdir() if p.is_dir()) if models.is_dir() else []
    if name not in names:
        raise JobError(f"model.path={path}: no such demo model; there are: {', '.join(names)}")
    return models / name


def _check_folder(folder: Path, field: str) -> Path:
    if not folder.is_dir():
        raise JobError(
            f"{field}: no such folder on {socket.gethostname()}: {folder}; every node needs it, "
            "so name one on a file system that all share, or set model.repo_id and model.revision"
        )
    if not (folder / MODEL_INDEX).is_file():
        raise JobError(f"{field}: {folder} has no {MODEL_INDEX}; is it a diffusers pipeline?")
    return folder


def _fetch_snapshot(model: ModelConfig) -> Path:
    if model.revision is None or not re.fullmatch(r"[0-9a-f]{40}", model.revision):
        raise JobError(
            f"model.revision={model.revision}: must be the full commit sha of {model.repo_id} "
            "(40 hexadecimal digits); branches and tags can change under a dataset"
        )
    return fetch_snapshot(str(model.repo_id), model.revision, patterns=HUB_PATTERNS)


def lock_model(folder: Path) -> dict[str, str]:
    """Return `{relative path: sha256}` of exactly the files that loading reads.

    Raises:
        JobError: a file that loading needs is missing, unreadable or names files outside.
    """
    return {path: _sha256(folder / path) for path in _needed_files(folder)}


def verify_lock(folder: Path, lock: Mapping[str, str]) -> None:
    """Check that the model in `folder` is the one that `lock` was made of.

    Raises:
        JobError: a file is missing, added or differs in content; the message names it.
    """
    found = set(_needed_files(folder))
    for path in sorted(found | set(lock)):
        if path not in found:
            raise JobError(f"model file {path} is part of the plan but missing in {folder}")
        if path not in lock:
            raise JobError(f"model file {path} in {folder} is not part of the plan")
        actual = _sha256(folder / path)
        if actual != lock[path]:
            raise JobError(
                f"model file {path} in {folder} is not the planned one: "
                f"sha256 {actual[:16]}..., planned {lock[path][:16]}..."
            )


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object of a model; anything else is a JobError that names the file."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise JobError(f"model file {path} is larger than {MAX_JSON_BYTES} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JobError(f"model file {path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise JobError(f"model file {path} is not a JSON object")
    return value


def read_index(folder: Path) -> dict[str, str]:
    """Return the pipeline's components, `{name: class name}`, from `model_index.json`."""
    index = read_json(folder / MODEL_INDEX)
    parts = {}
    for name, value in index.items():
        if name.startswith("_") or value is None:
            continue
        if name not in COMPONENTS:
            raise JobError(f"{folder / MODEL_INDEX}: unknown component {name!r}")
        if not (isinstance(value, list) and len(value) == 2 and isinstance(value[1], str)):
            raise JobError(f"{folder / MODEL_INDEX}: {name} must be [library, class name]")
        parts[name] = value[1]
    return parts


def read_kind(folder: Path) -> str:
    """Return the pipeline's class name in `model_index.json`."""
    return str(read_json(folder / MODEL_INDEX).get("_class_name"))


def native_size(folder: Path) -> tuple[int, int]:
    """Height and width in pixels that the model was trained for, read from its configuration.

    Raises:
        JobError: the configuration does not say.
    """
    try:
        latent = read_json(folder / "unet" / "config.json")["sample_size"]
        levels = len(read_json(folder / "vqvae" / "config.json")["block_out_channels"])
        height, width = latent if isinstance(latent, list) else (latent, latent)
        return int(height) * 2 ** (levels - 1), int(width) * 2 ** (levels - 1)
    except (KeyError, TypeError, ValueError) as error:
        raise JobError(
            f"{folder}: its configuration does not tell the image size ({error}); "
            "set call.height and call.width"
        ) from error


def _needed_files(folder: Path) -> list[str]:
    paths = [MODEL_INDEX]
    for name in sorted(read_index(folder)):
        if name == "tokenizer":
            paths += _tokenizer_files(folder)
        elif name == "scheduler":
            paths.append("scheduler/scheduler_config.json")
        else:
            paths += [f"{name}/config.json", *_weight_files(folder, name)]
    for path in paths:
        if not (folder / path).is_file():
            raise JobError(f"model file {path} is missing in {folder}")
    return paths


def _tokenizer_files(folder: Path) -> list[str]:
    present = [f"tokenizer/{n}" for n in TOKENIZER_NAMES if (folder / "tokenizer" / n).is_file()]
    if not {"tokenizer/tokenizer.json", "tokenizer/vocab.txt"} & set(present):
        raise JobError(f"model folder {folder}/tokenizer has neither tokenizer.json nor vocab.txt")
    return present


def _weight_files(folder: Path, name: str) -> Iterator[str]:
    """Yield the safetensors of one component: a single file, or an index and its parts."""
    single = f"{name}/{WEIGHT_NAMES[name]}"
    index = f"{single}.index.json"
    if (folder / single).is_file() or not (folder / index).is_file():
        if not (folder / single).is_file():
            raise JobError(
                f"model file {single} is missing in {folder}; "
                "only safetensors weights are loaded, pickled ones never"
            )
        yield single
        return
    yield index
    weight_map = read_json(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise JobError(f"model file {index} has no weight_map")
    for part in sorted({str(value) for value in weight_map.values()}):
        if not re.fullmatch(r"[\w.-]+\.safetensors", part):
            raise JobError(f"model file {index} names {part!r}, which is not a file beside it")
        yield f"{name}/{part}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

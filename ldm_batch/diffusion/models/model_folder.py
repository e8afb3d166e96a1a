"""A model in memory becomes a folder in diffusers' layout, whole or not at all.

The same model gives the same bytes: no date, no path, no machine stands in it. Must not know where
the model came from.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ldm_batch.diffusion.models.cache import sha256
from ldm_batch.diffusion.models.files import MODEL_INDEX
from ldm_batch.diffusion.models.new_folder import umask
from ldm_batch.diffusion.models.side_file import (
    CONDITION_WEIGHTS,
    CONVERTER,
    SIDE_FILE,
    SideFile,
    to_json,
)
from ldm_batch.errors import JobError


@dataclass(frozen=True)
class Part:
    """One sub-folder: a network, a scheduler, or a tokenizer's files."""

    library: str
    class_name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False)
    weights_name: str = "diffusion_pytorch_model.safetensors"
    copied: tuple[Path, ...] = ()
    """Files that are taken over as they are."""


@dataclass(frozen=True)
class ModelFolder:
    """All that a model's folder will hold."""

    class_name: str
    """Of the pipeline, in `model_index.json`."""
    parts: Mapping[str, Part]
    side: SideFile
    conditions: Mapping[str, Mapping[str, torch.Tensor]]
    """Weights of what the side file names, by folder."""
    readme: str


def describe_sources(
    class_name: str, what: str, sources: Mapping[str, Path], facts: Sequence[str]
) -> str:
    """The README of an imported model: what it was made of, by content, and what was taken.

    Raises:
        JobError: a source cannot be read.
    """
    rows = [f"| {kind} | `{path.name}` | `{_sha256(path)}` |" for kind, path in sources.items()]
    lines = [
        f"# {class_name}",
        f"Made by `python -m ldm_batch import` of {what}, by converter {CONVERTER}.",
        "",
        "| from | file | SHA-256 |",
        "| --- | --- | --- |",
        *rows,
        "",
        *(f"- {fact}" for fact in facts),
    ]
    return "\n".join(lines) + "\n"


def _sha256(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise JobError(f"{path}: cannot be read: {error.strerror or error}") from error


def write_model(model: ModelFolder, folder: Path) -> None:
    """Write a model into an empty folder."""
    index: dict[str, Any] = {"_class_name": model.class_name, "_diffusers_version": _version()}
    for name, part in sorted(model.parts.items()):
        index[name] = [part.library, part.class_name]
        _write_part(part, folder / name)
    write_json(folder / MODEL_INDEX, index)
    for name, weights in model.conditions.items():
        (folder / name).mkdir()
        write_weights(weights, folder / name / CONDITION_WEIGHTS)
    if model.side != SideFile():
        (folder / SIDE_FILE).write_text(to_json(model.side), encoding="utf-8")
    (folder / "README.md").write_text(model.readme, encoding="utf-8")


def write_weights(weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write tensors as safetensors; those that share memory are parted, which no file of it can."""
    separate: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name in sorted(weights):
        value = weights[name].detach().contiguous()
        memory = value.untyped_storage()
        if memory.nbytes() != value.nbytes or memory.data_ptr() in seen:
            value = value.clone()
        seen.add(value.data_ptr())
        separate[name] = value
    save_file(separate, path, metadata={"format": "pt"})
    path.chmod(0o666 & ~umask())  # safetensors lets nobody else read it


def _write_part(part: Part, folder: Path) -> None:
    folder.mkdir()
    for path in part.copied:
        shutil.copyfile(path, folder / path.name)
    if part.config:
        name = "scheduler_config.json" if "Scheduler" in part.class_name else "config.json"
        write_json(folder / name, part.config)
    if part.weights:
        write_weights(part.weights, folder / part.weights_name)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write one JSON object, its keys in order."""
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _version() -> str:
    import diffusers

    return str(diffusers.__version__)

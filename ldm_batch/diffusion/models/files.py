"""The files of a model's folder: which of them loading reads, and what they hold.

Imports no torch, so that a driver can plan a job on a machine that has none of it in memory; must
not know how weights become modules (load.py does), nor where folders come from (find.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_batch.diffusion.family.table import (
    FAMILIES,
    LOW_RES_SCHEDULER,
    NOT_LOADED,
    TEXT_ENCODERS,
    TOKENIZERS,
)
from ldm_batch.diffusion.models.cache import remembered_sha256, sha256
from ldm_batch.diffusion.models.conversion import read_conversion
from ldm_batch.diffusion.models.side_file import side_files
from ldm_batch.errors import JobError

MODEL_INDEX = "model_index.json"
LDM_TEXT_TO_IMAGE, LDM_SUPER_RESOLUTION = "LDMTextToImagePipeline", "LDMSuperResolutionPipeline"
"""diffusers' classes of the paper's pipelines, those that our own loop draws by."""
LDM_COMPONENTS = ("bert", "tokenizer", "unet", "vqvae", "scheduler")
"""Sub-folders of the paper's models."""
COMPONENTS = (
    *LDM_COMPONENTS,
    *(*TEXT_ENCODERS, *TOKENIZERS[1:], "transformer", "vae", LOW_RES_SCHEDULER),
)
"""The only sub-folders that are ever read, whatever `model_index.json` names."""
WEIGHT_NAMES = {
    **dict.fromkeys(("bert", *TEXT_ENCODERS), ("model", "pytorch_model")),
    **dict.fromkeys(
        ("unet", "vqvae", "transformer", "vae"),
        ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    ),
}
"""Component -> what its weights are called, in safetensors and pickled."""
SAFE, PICKLED = ENDINGS = ("safetensors", "bin")
TOKENIZER_NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
)
FAMILY_TOKENIZER_NAMES = (
    *TOKENIZER_NAMES,
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
    "chat_template.jinja",
    "config.json",
)
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")
CHECKPOINTS = (".ckpt", ".pt", ".pth")
"""Endings of checkpoints of the original code, pickled."""
MAX_JSON_BYTES = 64 * 1024 * 1024
"""A model's largest JSON, its vocabulary, has up to 34 MB; a hostile one must not fill memory."""


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files that hold the weights of one component."""

    paths: tuple[str, ...]
    """Below the model's folder: one file, or an index and its parts."""
    ending: str
    variant: str | None

    @property
    def is_pickled(self) -> bool:
        """Whether they must be converted before they are loaded."""
        return self.ending == PICKLED


def lock_model(folder: Path, variant: str | None = None) -> dict[str, str]:
    """Return `{relative path: sha256}` of exactly the files that loading reads.

    Of a folder that we converted: of the files that it was made from, and the converter's number.

    Raises:
        JobError: a file that loading needs is missing, unreadable or names files outside.
    """
    if (made := read_conversion(folder)) is not None:
        return made.source
    return {path: remembered_sha256(folder / path) for path in needed_files(folder, variant)}


def verify_lock(folder: Path, lock: Mapping[str, str], variant: str | None = None) -> None:
    """Check that the model in `folder` is the one that `lock` was made of.

    Raises:
        JobError: a file is missing, added or differs in content; the message names it.
    """
    made = read_conversion(folder)
    if made is None:
        found = {path: sha256(folder / path) for path in needed_files(folder, variant)}
        _compare(folder, found, lock)
        return
    _compare(folder, made.source, lock)
    for path, planned in made.result.items():
        if not (folder / path).is_file() or sha256(folder / path) != planned:
            raise JobError(
                f"model file {path} in {folder} is not what was converted; delete that folder and "
                "run the same command again"
            )


def _compare(folder: Path, found: Mapping[str, str], lock: Mapping[str, str]) -> None:
    for path in sorted({*found, *lock}):
        if path not in found:
            raise JobError(f"model file {path} is part of the plan but missing in {folder}")
        if path not in lock:
            raise JobError(f"model file {path} in {folder} is not part of the plan")
        if found[path] != lock[path]:
            raise JobError(
                f"model file {path} in {folder} is not the planned one: "
                f"sha256 {found[path][:16]}..., planned {lock[path][:16]}..."
            )


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object of a model; anything else is a JobError that names the file."""
    try:
        _refuse_huge(path)
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise JobError(f"model file {path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise JobError(f"model file {path} is not a JSON object")
    return value


def _refuse_huge(path: Path) -> None:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise JobError(f"model file {path} is larger than {MAX_JSON_BYTES} bytes")


def read_index(folder: Path) -> dict[str, str]:
    """Return the pipeline's components, `{name: class name}`, from `model_index.json`."""
    index = read_json(folder / MODEL_INDEX)
    family = FAMILIES.get(str(index.get("_class_name")))
    known = LDM_COMPONENTS if family is None else (*family.parts, "scheduler")
    apart = () if family is None else (*NOT_LOADED, *family.settings)
    parts = {}
    for name, value in index.items():
        if name.startswith("_") or value in (None, [None, None]) or name in apart:
            continue
        if name not in known:
            raise JobError(f"{folder / MODEL_INDEX}: unknown component {name!r}")
        if not (isinstance(value, list) and len(value) == 2 and isinstance(value[1], str)):
            raise JobError(f"{folder / MODEL_INDEX}: {name} must be [library, class name]")
        parts[name] = value[1]
    return parts


def read_kind(folder: Path) -> str:
    """Return the pipeline's class name in `model_index.json`."""
    return str(read_json(folder / MODEL_INDEX).get("_class_name"))


def needed_files(folder: Path, variant: str | None = None) -> list[str]:
    """Paths, below the folder, of exactly the files that loading reads.

    Raises:
        JobError: one is missing or names files outside.
    """
    paths = [MODEL_INDEX, *side_files(folder)]
    weights = find_weights(folder, variant)
    is_family = read_kind(folder) in FAMILIES
    for name in sorted(read_index(folder)):
        if name in TOKENIZERS:
            paths += _tokenizer_files(folder, name, is_family)
        elif name in ("scheduler", LOW_RES_SCHEDULER):
            paths.append(f"{name}/scheduler_config.json")
        else:
            paths += [f"{name}/config.json", *weights[name].paths]
            paths += _generation_files(folder, name)
    for path in paths:
        if not (folder / path).is_file():
            raise JobError(f"model file {path} is missing in {folder}")
        if not path.endswith(ENDINGS):
            _refuse_huge(folder / path)
    return paths


def _generation_files(folder: Path, name: str) -> list[str]:
    """Language models read how they write texts, too, though they write none here."""
    path = f"{name}/generation_config.json"
    return [path] if name in TEXT_ENCODERS and (folder / path).is_file() else []


def _tokenizer_files(folder: Path, name: str, is_family: bool) -> list[str]:
    names = FAMILY_TOKENIZER_NAMES if is_family else TOKENIZER_NAMES
    vocabularies = VOCABULARIES if is_family else VOCABULARIES[:2]
    present = [n for n in names if (folder / name / n).is_file()]
    if not {*vocabularies} & {*present}:
        raise JobError(f"model folder {folder}/{name} has neither {' nor '.join(vocabularies)}")
    return [f"{name}/{n}" for n in present]


def find_weights(folder: Path, variant: str | None = None) -> dict[str, WeightFiles]:
    """The weights of each component of a folder: of the variant where a component has it, and
    safetensors before pickles.

    Raises:
        JobError: a component has none, or none has the variant.
    """
    names = [name for name in sorted(read_index(folder)) if name in WEIGHT_NAMES]
    found = {name: _weights_of(folder, name, variant) for name in names}
    if variant is not None and all(weights.variant is None for weights in found.values()):
        raise JobError(
            f"model.variant={variant}: {folder} has no weights of this variant; leave it out for "
            "the usual ones"
        )
    return found


def weight_forms(variant: str | None) -> list[tuple[str | None, str]]:
    """(variant, ending) of the files that may hold weights, the best first."""
    variants = [None] if variant is None else [variant, None]
    return [(v, ending) for v in variants for ending in ENDINGS]


def weight_name(component: str, ending: str, variant: str | None) -> str:
    """The single file of a component's weights."""
    stem = WEIGHT_NAMES[component][ENDINGS.index(ending)]
    return f"{component}/{stem}.{variant}.{ending}" if variant else f"{component}/{stem}.{ending}"


def index_name(component: str, ending: str, variant: str | None) -> str:
    """The index of a component's weights where they are in parts."""
    name = f"{weight_name(component, ending, None)}.index"
    return f"{name}.{variant}.json" if variant else f"{name}.json"


def _weights_of(folder: Path, name: str, variant: str | None) -> WeightFiles:
    for one, ending in weight_forms(variant):
        single, index = weight_name(name, ending, one), index_name(name, ending, one)
        if (folder / single).is_file():
            return WeightFiles((single,), ending, one)
        if (folder / index).is_file():
            parts = part_names(folder / index, ending)
            return WeightFiles((index, *(f"{name}/{part}" for part in parts)), ending, one)
    found = variants_of(name, [str(p.relative_to(folder)) for p in folder.glob(f"{name}/*")])
    hint = f"; it has {', '.join(found)}: model.variant={found[0]}" if found else ""
    raise JobError(
        f"model file {weight_name(name, SAFE, variant)} is missing in {folder}, and so is "
        f"{weight_name(name, PICKLED, variant)}{hint}"
    )


def variants_of(component: str, paths: Iterable[str]) -> list[str]:
    """Variants of which a component has weights, by the paths of files below a model's folder."""
    stems = "|".join(WEIGHT_NAMES[component])
    pattern = re.compile(rf"{component}/(?:{stems})\.(\w+)\.(?:{'|'.join(ENDINGS)})")
    return sorted({match[1] for match in map(pattern.fullmatch, paths) if match})


def part_names(index: Path, ending: str) -> Sequence[str]:
    """The parts that an index of weights names, files beside it; a JobError if anything else."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise JobError(f"model file {index} has no weight_map")
    parts = sorted({str(value) for value in weight_map.values()})
    for part in parts:
        if not re.fullmatch(rf"[\w.-]+\.{ending}", part):
            raise JobError(f"model file {index} names {part!r}, which is not a file beside it")
    return parts

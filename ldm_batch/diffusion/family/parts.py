"""What a folder must hold to become one of diffusers' own pipelines, told without its weights.

Parts of the closed table alone, no code of a repository, weights that are there, configurations
that end. Imports no torch. Must not know how parts are loaded (components.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldm_batch.diffusion.family.extras import check_vocabulary
from ldm_batch.diffusion.family.family import Family
from ldm_batch.diffusion.family.files import read_family
from ldm_batch.diffusion.family.table import LOW_RES_SCHEDULER, TOKENIZERS
from ldm_batch.diffusion.models.conversion import read_conversion
from ldm_batch.diffusion.models.files import (
    MODEL_INDEX,
    SAFE,
    find_weights,
    index_name,
    read_index,
    read_json,
    read_kind,
    weight_name,
)
from ldm_batch.diffusion.models.headers import check_headers
from ldm_batch.diffusion.models.untrusted import refuse_foreign_code
from ldm_batch.diffusion.scheduler_settings import refuse_odd_numbers
from ldm_batch.errors import JobError

NEVER_READ = ("adapter_config.json", "additional_chat_templates")
"""What libraries would take from a part's folder beside its own files, and no lock would hold."""
CLOCK = "strftime_now"
"""What a chat template would tell the time by."""


def check_parts(folder: Path, variant: str | None = None) -> None:
    """Check, by headers and configurations alone, that a folder has the parts of its pipeline's
    class, whole, each of a class of the closed table, and that none brings code or never ends.

    Raises:
        JobError: names the part, or the file.
    """
    kind, family, index = read_kind(folder), read_family(folder), read_index(folder)
    for name, classes in family.parts.items():
        if name not in index:
            if name not in family.optional:
                raise JobError(f"{folder}: {kind} lacks the component {name}")
            continue
        if index[name] not in classes:
            supported = ", ".join(classes)
            raise JobError(f"{folder}: {name} is a {index[name]}; supported are {supported}")
        for file in NEVER_READ:
            if (folder / name / file).exists():
                raise JobError(f"model file {folder / name / file} is never read; take it away")
        if name in TOKENIZERS:
            _check_tokenizer(folder, name, family)
        elif name == LOW_RES_SCHEDULER:
            refuse_odd_numbers(read_json(folder / name / "scheduler_config.json"))
        else:
            refuse_foreign_code(folder / name / "config.json")
    if "scheduler" not in index:
        raise JobError(f"{folder}: {kind} lacks the component scheduler")
    _check_optional(folder, kind, family, index)
    _check_settings(folder, family)
    _check_weights(folder, variant)


def _check_tokenizer(folder: Path, name: str, family: Family) -> None:
    check_vocabulary(folder / name)
    for file in ("tokenizer_config.json", "config.json"):
        if (folder / name / file).is_file():
            refuse_foreign_code(folder / name / file)
    path = folder / name / "tokenizer_config.json"
    config = read_json(path) if path.is_file() else {}
    limit = config.get("model_max_length")
    if limit is not None and not _is_length(limit):
        raise JobError(f"{path}: model_max_length is {limit!r:.100}, not a whole number from 1")
    if family.template == "chat":
        _check_template(path, config.get("chat_template"))


def _is_length(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 1


def _check_template(config: Path, said: Any) -> None:
    """Refuse a chat template by which images would depend on the time."""
    path = config.with_name("chat_template.jinja")
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
    except (OSError, ValueError) as error:
        raise JobError(f"model file {path} cannot be read: {error}") from error
    for where, template in ((path, text), (config, str(said))):
        if CLOCK in template:
            raise JobError(
                f"model file {where}: its chat template asks for {CLOCK}, so that images would "
                "depend on the time; take that out"
            )


def _check_optional(folder: Path, kind: str, family: Family, index: dict[str, str]) -> None:
    """Parts that a model may lack belong together."""
    if family.optional and 0 < len(index.keys() & {*family.optional}) < len(family.optional):
        there = next(name for name in family.optional if name in index)
        absent = next(name for name in family.optional if name not in index)
        raise JobError(f"{folder}: {kind} has {there} but no {absent}; it needs both or neither")


def _check_settings(folder: Path, family: Family) -> None:
    """What is true or false must say so."""
    said = read_json(folder / MODEL_INDEX)
    for name, usual in family.settings.items():
        value = said.get(name, usual)
        if isinstance(usual, bool) and name not in family.always and not isinstance(value, bool):
            raise JobError(f"{folder / MODEL_INDEX}: {name} is {value!r:.100}, not true or false")


def _check_weights(folder: Path, variant: str | None) -> None:
    """Weights are there once, as their index says, and enough of them for their configuration."""
    made = read_conversion(folder)
    for name, weights in find_weights(folder, variant if made is None else None).items():
        if weights.is_pickled:
            raise JobError(f"{folder}: {weights.paths[0]} is pickled; only safetensors are loaded")
        single = weight_name(name, SAFE, weights.variant)
        index = index_name(name, SAFE, weights.variant)
        if (folder / single).is_file() and (folder / index).is_file():
            raise JobError(f"{folder}: holds {single} and {index}; keep one of the two")
    check_headers(folder, variant if made is None else None)

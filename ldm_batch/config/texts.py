"""Which fields of a job are texts, and which name places: found in its dataclasses.

Pure. Must not know how a text is written on a command line, nor what it may be.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ldm_batch.config.job import JobConfig
from ldm_batch.config.loras import NAMES as LORA_NAMES
from ldm_batch.config.places import is_place

TextKind = Literal["one", "many", "either"]
"""What a field takes: a text, a list of texts, or either."""
INNER_TEXTS = (
    *(
        f"{section}.loras[].{name}"
        for section in ("model", "upscale.model")
        for name in LORA_NAMES
        if name != "scale"
    ),
    *("cluster.runtime_env.working_dir", "cluster.runtime_env.pip", "cluster.runtime_env.pip[]"),
    *("cluster.runtime_env.py_modules[]", "cluster.runtime_env.excludes[]"),
    "cluster.runtime_env.env_vars.",
)
"""Texts within what the schema leaves open; `[]` stands for every piece of a list, a dot at the end
for every key."""


@cache
def text_fields() -> dict[str, TextKind]:
    """The fields that are texts, dotted; `NAME.*` stands for the keys that a user gives NAME."""
    return {path: kind for path, kind, _ in _walk(JobConfig, "") if kind is not None}


@cache
def place_fields() -> tuple[str, ...]:
    """The fields that name a place, dotted."""
    return tuple(path for path, _, names_place in _walk(JobConfig, "") if names_place)


def text_kind(path: str) -> TextKind | None:
    """What the field of this name takes, or None where that is no text."""
    if path in text_fields():
        return text_fields()[path]
    open_fields = [name.removesuffix("*") for name in text_fields() if name.endswith(".*")]
    is_key = any(path.startswith(name) and path != name for name in open_fields)
    return "one" if is_key else None


def is_text(path: str) -> bool:
    """Tell whether what stands at a path within a document is a text; `[]` is a piece of a list."""
    kinds = {text_kind(path), text_kind(path.removesuffix("[]")) if path.endswith("[]") else None}
    return kinds != {None} or any(
        path == name or (name.endswith(".") and path.startswith(name)) for name in INNER_TEXTS
    )


def _walk(section: type[Any], prefix: str) -> Iterator[tuple[str, TextKind | None, bool]]:
    hints = get_type_hints(section)
    for field in fields(section):
        path, hint = prefix + field.name, hints[field.name]
        names_place = is_place(field)
        if isinstance(hint, type) and is_dataclass(hint):
            yield from _walk(hint, f"{path}.")
        elif _is_text(hint):
            yield path, "one", names_place
        elif get_origin(hint) is list and _is_text(get_args(hint)[0]):
            yield path, "many", names_place
        elif get_origin(hint) is dict and _is_text(get_args(hint)[1]):
            yield f"{path}.*", "one", names_place
        else:
            yield path, "either" if names_place else None, names_place


def _is_text(hint: Any) -> bool:
    """Tell whether a type is `str` or `str | None`."""
    if get_origin(hint) in (Union, types.UnionType):
        return {*get_args(hint)} == {str, type(None)}
    return hint is str

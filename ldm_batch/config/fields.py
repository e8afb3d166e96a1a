"""The fields of a job by name: which there are, what was meant, and a document without others.

Pure. Must not know what a value may be, which the checks beside the dataclasses say.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from numbers import Integral, Real
from typing import Any

from ldm_batch.config.job import JobConfig
from ldm_batch.errors import JobError


def field_paths(node: Any = JobConfig, prefix: str = "") -> Iterator[str]:
    """Every field of a job, dotted, e.g. `call.eta`."""
    instance = node() if isinstance(node, type) else node
    for field in fields(instance):
        value = getattr(instance, field.name)
        yield prefix + field.name
        if is_dataclass(value):
            yield from field_paths(value, f"{prefix}{field.name}.")


def no_such_field(path: str) -> str:
    """Say that there is no field of this name, and which was probably meant."""
    paths = list(field_paths())
    meant = first_named([known for known in paths if known.endswith(f".{path}")])
    others = sorted(known for known in paths if not path.startswith(f"{known}."))
    meant = meant or difflib.get_close_matches(path, others, n=1, cutoff=0.6)
    hint = f"did you mean {' or '.join(map(repr, meant))}?" if meant else "--help lists all fields"
    return f"{path}: no such field; {hint}"


def first_named(paths: Sequence[str]) -> list[str]:
    """Of fields of one name in several sections those that somebody means who says no section: the
    least deep, and of these not the second stage's."""
    depth = min((path.count(".") for path in paths), default=0)
    least = [path for path in paths if path.count(".") == depth]
    return [path for path in least if not path.startswith("upscale.")] or least


def plain_job(job: JobConfig) -> JobConfig:
    """A document that Python wrote, with numbers of numpy as Python's own.

    Raises:
        JobError: a field was set that there is not, or a section is none.
    """
    found: JobConfig = _plain_section(job, JobConfig(), "")
    return found


def _plain_section(node: Any, usual: Any, prefix: str) -> Any:
    if not isinstance(node, type(usual)):
        where = prefix.removesuffix(".") or "job"
        raise JobError(f"{where}: {type(node).__name__}; must be a {type(usual).__name__}")
    names = [field.name for field in fields(usual)]
    for name in vars(node):
        if name not in names:
            raise JobError(no_such_field(prefix + name))
    values = {name: getattr(node, name) for name in names}
    return replace(
        node,
        **{
            name: _plain_section(value, section, f"{prefix}{name}.")
            if is_dataclass(section := getattr(usual, name))
            else _plain(value)
            for name, value in values.items()
        },
    )


def _plain(value: Any) -> Any:
    """A value with numbers as Python's own, at any depth."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value

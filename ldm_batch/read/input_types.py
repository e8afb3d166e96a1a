"""What a plan says of its input's columns for as long as it lives: types that no file decides.

Values only; must not know files, rows or the sink.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from ldm_batch.read.folders import FOLDER_TYPES


@dataclass(frozen=True, slots=True)
class InputTypes:
    """Types of carried columns, and of columns that stand in the names of folders."""

    carried: Mapping[str, pa.DataType] = field(default_factory=dict)
    """By name in the output. A column that is not named here has the type of its file."""
    folders: Mapping[str, str] = field(default_factory=dict)
    """Name of a column -> `int64` or `string`: those that a job uses. No other folder's name is
    read."""
    words: Mapping[str, str] = field(default_factory=dict)
    """Of all carried columns the types as text, by which a plan is identified."""


NO_TYPES = InputTypes()
"""All columns have the types of their files, and folders are no columns."""


def encode_carried(carried: Mapping[str, pa.DataType]) -> str:
    """Types of carried columns as text that holds them exactly: an Arrow schema in base64, nothing
    where there are none."""
    if not carried:
        return ""
    return base64.b64encode(pa.schema(list(carried.items())).serialize()).decode()


def planned_types(document: Mapping[str, Any]) -> InputTypes:
    """The types of a stored plan; of an older one that has them as text, those that are one word.

    Raises:
        ValueError, TypeError, pa.ArrowException: the plan is damaged.
    """
    source = document["images"].get("source", {})
    if not isinstance(source, Mapping):
        raise TypeError("its source is no mapping")
    words, folders = dict(source.get("carry", {})), dict(source.get("folders", {}))
    if not all(isinstance(word, str) for word in words.values()):
        raise TypeError("a type of a carried column is no text")
    if not {*folders.values()} <= FOLDER_TYPES.keys():
        raise ValueError("folders of a type that there is not")
    carried: dict[str, pa.DataType] = {}
    if encoded := document.get("carried"):
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(encoded)))
        carried = dict(zip(schema.names, schema.types, strict=True))
    elif encoded is None:
        known = {name: _one_word(text) for name, text in words.items()}
        carried = {name: kind for name, kind in known.items() if kind is not None}
    return InputTypes(carried, folders, words)


def _one_word(text: str) -> pa.DataType | None:
    name: Any = text
    try:
        kind: pa.DataType = pa.type_for_alias(name)
    except ValueError:
        return None
    return kind

"""The columns that a converted file has beside its own, and what its footer says of its origin.

Whoever asks whether a Parquet file was text asks here. Must not know how it was converted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

LINE, REASON, MESSAGE, TEXT = (
    f"ldm_batch_{name}" for name in ("line", "reason", "message", "text")
)
"""Number of the line that a row begins at; of a line that is no row why, in a word and in words,
and how it begins."""
OF_CONVERSION: dict[str, Any] = {
    LINE: pa.int64(),
    REASON: pa.string(),
    MESSAGE: pa.string(),
    TEXT: pa.string(),
}
"""Columns that stand after those of the text."""
ORIGIN_KEY = b"ldm_batch_text"
"""Of a schema's metadata: what the file was converted of, and how (JSON)."""


def origin_of(schema: pa.Schema) -> Mapping[str, Any] | None:
    """What a file was converted of and how; None where it was no text of ours.

    Whoever writes Parquet can say so: where the columns are of other types, it is none.
    """
    raw = (schema.metadata or {}).get(ORIGIN_KEY)
    try:
        origin = None if raw is None else json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(origin, dict):
        return None
    is_ours = all(
        schema.names.count(name) == 1 and schema.field(name).type == kind
        for name, kind in OF_CONVERSION.items()
    )
    return origin if is_ours else None


def own_names(schema: pa.Schema) -> list[str]:
    """Names of a file's own columns."""
    if origin_of(schema) is None:
        return list(schema.names)
    return [name for name in schema.names if name not in OF_CONVERSION]


def largest_stated(schema: pa.Schema, column: str) -> int | None:
    """The largest whole number of a column of text, where the footer says it."""
    stated = (origin_of(schema) or {}).get("largest")
    largest = stated.get(column) if isinstance(stated, dict) else None
    return largest if type(largest) is int else None

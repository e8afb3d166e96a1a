"""Columns that stand in the names of folders, as Hive, Spark and DuckDB write them: `topic=cats/`.

A file's own column of the same name counts in their place. Must not know jobs, tasks or rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from ldm_batch.errors import JobError
from ldm_batch.read.footer import Footer

NULL = "__HIVE_DEFAULT_PARTITION__"
WHOLE, TEXT = "int64", "string"
FOLDER_TYPES: Mapping[str, pa.DataType] = {WHOLE: pa.int64(), TEXT: pa.string()}
"""Arrow types of columns of folders, by the names under which plans have them."""
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,18}")


def folder_values(name: str) -> dict[str, str | None]:
    """Columns of the folders that a file stands in, below its source; null where a value is.

    What two folders name, or a name that is no text in UTF-8, is no column.

    Args:
        name: of the file, relative to its source.
    """
    values: dict[str, str | None] = {}
    repeated: set[str] = set()
    for part in _folders(name):
        key, _, value = part.partition("=")
        try:
            key, value = (unquote(text, errors="strict") for text in (key, value))
        except UnicodeDecodeError:
            continue
        if key in values:
            repeated.add(key)
        values[key] = None if value == NULL else value
    return {key: value for key, value in values.items() if key not in repeated}


def has_other_folders(name: str) -> bool:
    """Tell whether a file stands in folders that look like columns and are none."""
    return len(folder_values(name)) < len(_folders(name))


def _folders(name: str) -> list[str]:
    return [part for part in name.split("/")[:-1] if part.find("=") > 0]


def common_folder_type(values: Iterable[str | None]) -> str:
    """The type of a column by all its values: whole numbers, if it has nothing else."""
    found = {value for value in values if value is not None}
    return WHOLE if found and all(map(is_whole, found)) else TEXT


def is_whole(value: str) -> bool:
    """Tell whether a value is a whole number as such are written: `064` and `+1` are text."""
    return bool(_WHOLE.fullmatch(value)) and -(2**63) <= int(value) < 2**63


def with_folders(footer: Footer, name: str, types: Mapping[str, str] | None = None) -> Footer:
    """A footer with the columns of its file's folders, behind the file's own.

    Args:
        name: of the file, relative to its source.
        types: the planned columns, by name; None: all of them, as text.

    Raises:
        JobError: a value is not of its column's type.
    """
    own = set(footer.schema.names)
    values = {
        key: value
        for key, value in folder_values(name).items()
        if key not in own and (types is None or key in types)
    }
    schema: Any = footer.schema
    for key, value in values.items():
        kind = TEXT if types is None else types[key]
        if kind == WHOLE and value is not None and not is_whole(value):
            raise JobError(
                f"{name}: the folder {key}={value} is no whole number, as which {key} was planned; "
                "rename it, or write to a new sink, where the column is text"
            )
        schema = schema.append(pa.field(key, FOLDER_TYPES[kind]))
    return replace(footer, schema=schema, folders=values)


def with_folder_columns(
    batch: pa.RecordBatch, footer: Footer, names: Iterable[str]
) -> pa.RecordBatch:
    """A batch of a file's rows with some of the columns of its folders, of one value each."""
    for key in names:
        kind, value = footer.schema.field(key).type, footer.folders[key]
        number = int(value) if value is not None and pa.types.is_integer(kind) else value
        batch = batch.append_column(key, pa.repeat(pa.scalar(number, kind), batch.num_rows))
    return batch

"""The columns of a dataset's input: types that all its files share, decided once.

A file without rows has no say, nor has the order of files where their types can be one. Must not
know shards or stores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from ldm_batch.columns import COLUMNS, TaskColumns
from ldm_batch.config import SourceConfig
from ldm_batch.errors import JobError
from ldm_batch.read import matching
from ldm_batch.read.carried import NotCarried, can_carry, common_type, settled_type
from ldm_batch.read.folders import (
    FOLDER_TYPES,
    TEXT,
    common_folder_type,
    folder_values,
    has_other_folders,
    with_folders,
)
from ldm_batch.read.footer import Footer
from ldm_batch.read.input_types import InputTypes
from ldm_batch.storage import text_format

NOTHING_YET = "what the dataset began with had nothing in it, so begin a new sink with this file, "
LEAVE_OUT = "or do not carry it (source.carry, source.carry_parent)"


@dataclass(frozen=True, slots=True)
class FoundColumns:
    """What a job reads of one file."""

    name: str
    uri: str
    fields: Mapping[str, str]
    """Field -> column that stands for it."""
    carried: Mapping[str, pa.DataType]
    """Name in the output -> the column's own type."""
    folders: Mapping[str, str | None]
    """Columns among these that stand in the names of its folders, and their values."""
    hidden: tuple[str, ...]
    """Columns that stand there and do not count, as the file has its own of their names."""
    int96: tuple[str, ...]
    """Carried columns of a kind of time stamps that may not be what is read of them."""


def find_columns_of(
    footer: Footer,
    name: str,
    uri: str,
    task: TaskColumns,
    source: SourceConfig,
    types: InputTypes | None,
) -> tuple[Footer, FoundColumns]:
    """The columns of a new file, and its footer with those of its folders.

    Args:
        name: of the file, relative to its source.
        types: the plan's, if there is one; None: they are to be decided yet.

    Raises:
        JobError: it lacks a column, or has one whose type cannot hold its field.
    """
    whole = with_folders(footer, name, None if types is None else types.folders)
    fields = matching.resolve_columns(whole, task, source, uri)
    carry = matching.carried_columns(whole, task, source)
    used = {*fields.values(), *carry.values()}
    return whole, FoundColumns(
        name,
        uri,
        fields,
        dict(matching.carried_fields(whole, task, source)),
        {key: value for key, value in whole.folders.items() if key in used},
        tuple(key for key in folder_values(name) if key in footer.schema.names),
        tuple(name for name, column in carry.items() if _is_int96(footer, column)),
    )


def settle_types(files: Sequence[FoundColumns], task: TaskColumns) -> InputTypes:
    """Decide the types of carried columns, and of those in the names of folders.

    Args:
        files: all that a dataset begins with, which have rows.

    Raises:
        JobError: names the file and the column that fit no type of all of them.
    """
    folders = _folder_types(files)
    carried: dict[str, pa.DataType] = {}
    for number, file in enumerate(files):
        for field, column in file.fields.items():
            if column in file.folders:
                kind = FOLDER_TYPES[folders[column]]
                matching.check_type(field, column, kind, file.uri, task)
        for name, declared in file.carried.items():
            if number and name not in carried:
                raise _other(file, name, declared, "without it")
            kind = FOLDER_TYPES[folders[name]] if name in file.folders else declared
            settled = _settled(file, name, kind)
            common = common_type(carried.get(name, settled), settled)
            if common is None:
                is_text = any(text_format(one.name) is not None for one in files)
                remedy = "give what is text a type by source.types, " * is_text
                raise _other(file, name, declared, str(carried[name]), remedy)
            carried[name] = common
        _refuse_missing(file, carried)
    return InputTypes(carried, folders, {name: str(kind) for name, kind in carried.items()})


def refuse_other_columns(file: FoundColumns, types: InputTypes, *, is_exact: bool) -> None:
    """Refuse a new file whose carried columns are not those of its dataset.

    Args:
        types: the plan's.
        is_exact: the plan knows its types to the last.

    Raises:
        JobError: names the file and the column.
    """
    for name, declared in file.carried.items():
        kind = types.carried.get(name)
        is_same = str(declared) == types.words.get(name)
        if not is_same and (kind is None or not can_carry(declared, kind)):
            planned = types.words.get(name, "without it")
            remedy = NOTHING_YET if planned == "null" else ""
            raise _other(file, name, declared, planned, remedy)
        if is_exact:
            _refuse_int96(file, name)
    _refuse_missing(file, types.words)


def describe_used(files: Sequence[FoundColumns]) -> Iterator[str]:
    """Which columns of new files stand for fields, and which fields some files have no column of, a
    line each."""
    having = {field: [file for file in files if field in file.fields] for field in _fields(files)}
    columns = {field: found[0].fields[field] for field, found in having.items()}
    folders = {
        columns[field] for field, [file, *_] in having.items() if _is_of_folders(file, field)
    }
    if files:
        yield f"columns used: {matching.columns_in_words(columns, folders)}"
    for field, found in having.items():
        if number := len(files) - len(found):
            without = next(file.uri for file in files if field not in file.fields)
            given = "the key that is made for them" if field == "id" else "what the job gives"
            yield (
                f"{field}: {number:,} of {len(files):,} files have none, such as {without}; their "
                f"rows take {given}"
            )


def _fields(files: Sequence[FoundColumns]) -> list[str]:
    """Fields of files in the order in which a file has them, those of the first file first."""
    return list(dict.fromkeys(field for file in files for field in file.fields))


def _is_of_folders(file: FoundColumns, field: str) -> bool:
    return file.fields[field] in file.folders


def describe_folders(
    files: Sequence[FoundColumns], types: InputTypes, late: Collection[str]
) -> Iterator[str]:
    """What a user should know of columns in the names of new files' folders, a line each.

    Args:
        late: what such columns would stand for, had the dataset been planned with them.
    """
    hidden = Counter(key for file in files for key in file.hidden)
    for key, number in sorted(hidden.items()):
        example = next(file.uri for file in files if key in file.hidden)
        yield (
            f"column {key!r}: what {number:,} files hold themselves counts, not what their folders "
            f"say, such as {example}"
        )
    others = {
        key: file.uri
        for file in reversed(files)
        for key in folder_values(file.name)
        if key not in types.folders and key not in file.hidden
    }
    for key in sorted(others.keys() & set(late)):
        yield (
            f"folders {key}=... are no column of this dataset, which was planned without: "
            f"{others[key]}; a new sink would have it"
        )
    if odd := [file.uri for file in files if has_other_folders(file.name)]:
        yield (
            f"folders of {len(odd):,} files are no columns, as two have one name, or one is no "
            f"text once %XX is read: {odd[0]}"
        )
    if "id" in others:
        yield (
            "folders id=... give rows no id, as all rows of a file would have the same: "
            f"{others['id']}"
        )


def _folder_types(files: Sequence[FoundColumns]) -> dict[str, str]:
    """Type of each used column of folders: text where it stands for text or a file has text of its
    own in it, else by its values."""
    values: dict[str, list[str | None]] = {}
    texts: set[str] = set()
    for file in files:
        texts |= {column for field, column in file.fields.items() if _is_text(field)}
        texts |= {name for name, kind in file.carried.items() if _is_own_text(file, name, kind)}
        for key, value in file.folders.items():
            values.setdefault(key, []).append(value)
    return {
        key: TEXT if key in texts else common_folder_type(found)
        for key, found in sorted(values.items())
    }


def _is_own_text(file: FoundColumns, name: str, kind: pa.DataType) -> bool:
    is_text = matching.is_text(kind) and not pa.types.is_null(kind)
    return is_text and name not in file.folders


def _is_text(field: str) -> bool:
    column = COLUMNS[field]
    return column.type == "image" or (column.is_text and field != "id")


def _settled(file: FoundColumns, name: str, declared: pa.DataType) -> pa.DataType:
    _refuse_int96(file, name)
    try:
        return settled_type(declared)
    except NotCarried as error:
        raise JobError(
            f"{file.uri}: carried column {name!r} has type {declared}, {error}, {LEAVE_OUT}"
        ) from error


def _refuse_int96(file: FoundColumns, name: str) -> None:
    if name in file.int96:
        raise JobError(
            f"{file.uri}: carried column {name!r} holds time stamps of the old kind INT96, of "
            "which years before 1678 and after 2261 are read as others; write it as TIMESTAMP "
            f"(Spark: spark.sql.parquet.outputTimestampType=TIMESTAMP_MICROS), {LEAVE_OUT}"
        )


def _is_int96(footer: Footer, column: str) -> bool:
    leaves = footer.metadata.schema
    return any(
        f"{leaves.column(i).path}.".startswith(f"{column}.")
        and leaves.column(i).physical_type == "INT96"
        for i in range(footer.metadata.num_columns)
    )


def _refuse_missing(file: FoundColumns, planned: Mapping[str, object]) -> None:
    missing = planned.keys() - file.carried.keys()
    if missing:
        raise JobError(
            f"{file.uri}: lacks {min(missing)!r}, which other files of the dataset carry"
        )


def _other(
    file: FoundColumns, name: str, declared: pa.DataType, planned: str, remedy: str = ""
) -> JobError:
    return JobError(
        f"{file.uri}: carried column {name!r} has type {declared}, planned {planned}; all files of "
        f"a dataset need the same, or one that it holds: {remedy}write this file with it, "
        f"{LEAVE_OUT}"
    )

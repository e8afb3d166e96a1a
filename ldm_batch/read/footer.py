"""Parquet footers of input files: what they hold, and which column stands for which field.

Reads footers only, never rows; must not know shards or the sink.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ldm_batch.columns import COLUMNS, IMAGE_COLUMNS, METADATA_KEY, TaskColumns
from ldm_batch.config import SourceConfig
from ldm_batch.config.bounds import suggest
from ldm_batch.errors import JobError, StorageError
from ldm_batch.read.deadly_footers import MAGIC as PARQUET_MAGIC
from ldm_batch.read.deadly_footers import find_deadly, parse_footer
from ldm_batch.records import InputFile
from ldm_batch.storage import Access, SourceFile, open_file

TAIL_BYTES = 64 * 1024
"""Read at once: most footers are smaller, so that one request is enough."""
MAX_FOOTER_BYTES = 128 * 1024 * 1024
MAX_COLUMNS = 10_000
MAX_CHUNK_BYTES = 2 * 1024**3
"""What a column of a row group may unpack to: 28 kB of zstd were made that declare 900 MB."""
MAX_SIDE = 4096
FOOTER_THREADS = 16
"""Reading a footer waits for the store, not for a CPU."""
FILES_AT_ONCE = 500
"""Whose footers are held at once, and for which one process is started to read them first."""
UNREADABLE = (pa.ArrowException, OSError, ValueError, LookupError, ArithmeticError, MemoryError)
"""What pyarrow raises of damaged files: its own exceptions, and Python's where it decodes a name or
a date late."""
PARENT = "parent_"
OWN_COLUMNS = {"image": "image", "id": "key", "image_index": "image_index"}
"""Fields of images to enlarge -> columns of a dataset of ours, whose seeds, steps and eta are those
of the images that it holds and not of those to be made."""


@dataclass(frozen=True, slots=True)
class Footer:
    """What a Parquet file says of itself; `sha256` is of the footer's own bytes."""

    metadata: pq.FileMetaData
    schema: pa.Schema
    num_rows: int
    sha256: str


def read_new_footers(files: Sequence[SourceFile], access: Access = None) -> Iterator[Footer]:
    """Read footers that were never read before, in parallel, one or two range reads each.

    They are first read to their end in a process of their own: some damage ends the reader's. The
    footers of a few hundred files are held at once, however many there are.

    Raises:
        JobError: a file is not Parquet, is cut off, is damaged, or declares more than a worker
            could hold.
    """
    for start in range(0, len(files), FILES_AT_ONCE):
        some = files[start : start + FILES_AT_ONCE]
        with ThreadPoolExecutor(FOOTER_THREADS) as pool:
            raws = list(pool.map(lambda file: _fetch(file.uri, file.size_bytes, access), some))
        deadly = find_deadly(raws)
        if deadly is not None:
            raise JobError(f"{some[deadly].uri}: a damaged footer, the Parquet reader dies of it")
        for raw, file in zip(raws, some, strict=True):
            yield _parse(raw, file.uri)


def read_planned_footer(file: InputFile, access: Access = None) -> Footer:
    """Read the footer of a planned file, which must be the one that was planned.

    Raises:
        JobError: it is another one, or cannot be read.
    """
    raw = _fetch(file.uri, file.size_bytes, access)
    if hashlib.sha256(raw).hexdigest() != file.footer_sha256:
        raise JobError(f"{file.uri}: changed after it was planned (its footer differs)")
    return _parse(raw, file.uri)


def _fetch(uri: str, size_bytes: int, access: Access) -> bytes:
    try:
        with open_file(uri, access) as file:
            return _footer_bytes(file, uri, size_bytes)
    except StorageError as error:
        raise JobError(str(error)) from error
    except UNREADABLE as error:
        raise JobError(f"{uri}: cannot be read: {first_line(error)}") from error


def _parse(raw: bytes, uri: str) -> Footer:
    try:
        parsed = parse_footer(raw)
        footer = Footer(
            metadata=parsed.metadata,
            schema=parsed.schema_arrow,
            num_rows=parsed.metadata.num_rows,
            sha256=hashlib.sha256(raw).hexdigest(),
        )
        if footer.metadata.num_columns > MAX_COLUMNS:
            raise JobError(f"{uri}: {footer.metadata.num_columns} columns, at most {MAX_COLUMNS}")
        _decode_names(footer)
    except UNREADABLE as error:
        raise JobError(f"{uri}: not a readable Parquet file: {first_line(error)}") from error
    return footer


def _decode_names(footer: Footer) -> None:
    """Read every name once: pyarrow decodes them late, and each may be no UTF-8."""
    metadata = footer.metadata
    for i in range(metadata.num_columns):
        _ = metadata.schema.column(i).path
    for group in range(metadata.num_row_groups):
        for i in range(metadata.num_columns):
            _ = metadata.row_group(group).column(i).path_in_schema
    _ = footer.schema.names


def _footer_bytes(file: BinaryIO, uri: str, size_bytes: int) -> bytes:
    file.seek(max(0, size_bytes - TAIL_BYTES))
    tail = file.read(TAIL_BYTES)
    length = int.from_bytes(tail[-8:-4], "little")
    if tail[-4:] != PARQUET_MAGIC or length + 8 > size_bytes:
        raise JobError(f"{uri}: not a Parquet file, or cut off: it does not end in a footer")
    if length > MAX_FOOTER_BYTES:
        raise JobError(f"{uri}: a footer of {length} bytes, at most {MAX_FOOTER_BYTES}")
    if length + 8 > len(tail):
        file.seek(size_bytes - 8 - length)
        tail = file.read(length + 8)
    return tail[-8 - length : -8]


def first_line(error: Exception) -> str:
    """An error in one line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def resolve_columns(
    footer: Footer, task: TaskColumns, source: SourceConfig, uri: str
) -> dict[str, str]:
    """Tell which column stands for which field; a field without a column is left out.

    Raises:
        JobError: a mapped or carried column is missing, or a column has a type that cannot hold
            its field.
    """
    names = footer.schema.names
    columns: dict[str, str] = {}
    for field in task.fields:
        wanted = source.columns.get(field, _usual_name(field, footer, task))
        if wanted in names:
            columns[field] = str(wanted)
        elif wanted is not None and (field in source.columns or field == task.main):
            raise JobError(
                f"{uri}: no column {wanted!r} for {field} (source.columns.{field})"
                f"{suggest(wanted, names)}"
            )
    carried = carried_columns(footer, task, source).values()
    for name in (*columns.values(), *carried):
        if name not in names:
            raise JobError(f"{uri}: no column {name!r} (source.carry){suggest(name, names)}")
        if names.count(name) > 1:
            raise JobError(f"{uri}: two columns are named {name!r}")
    for field, name in columns.items():
        _check_type(field, name, footer.schema.field(name).type, uri)
    _check_size(footer.metadata, {*columns.values(), *carried}, uri)
    return columns


def _usual_name(field: str, footer: Footer, task: TaskColumns) -> str | None:
    """The column that stands for a field where the job does not say."""
    if COLUMNS[field].is_named:
        return None
    if task.has_image and is_own(footer):
        return OWN_COLUMNS.get(field)
    return field


def is_own(footer: Footer) -> bool:
    """Tell whether a file is a shard of a dataset of ours."""
    return METADATA_KEY in (footer.schema.metadata or {})


def _check_type(field: str, column: str, declared: pa.DataType, uri: str) -> None:
    kind = plain_type(declared)
    if COLUMNS[field].type == "image":
        fits, wanted = is_image(kind), "bytes, {bytes, path} structs or paths"
    elif field == "id":
        fits, wanted = is_text(kind) or pa.types.is_integer(kind), "text or whole numbers"
    elif COLUMNS[field].is_text:
        fits, wanted = is_text(kind), "text"
    else:
        fits = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)
        wanted = "numbers"
    if not fits:
        raise JobError(
            f"{uri}: column {column!r} has type {declared}, {field} needs {wanted}; "
            f"map another column with source.columns.{field}, or null to ignore it"
        )


def _check_size(metadata: pq.FileMetaData, names: set[str], uri: str) -> None:
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for i in range(row_group.num_columns):
            chunk = row_group.column(i)
            path = chunk.path_in_schema
            name = next((n for n in names if path == n or path.startswith(f"{n}.")), None)
            if name is not None and chunk.total_uncompressed_size > MAX_CHUNK_BYTES:
                raise JobError(
                    f"{uri}: column {name!r} of row group {group} unpacks to "
                    f"{chunk.total_uncompressed_size} bytes, at most {MAX_CHUNK_BYTES}; "
                    "write the file with smaller row groups"
                )


def plain_type(declared: pa.DataType) -> pa.DataType:
    """The value type of a dictionary-encoded type, any other type as it is."""
    return declared.value_type if pa.types.is_dictionary(declared) else declared


def is_text(kind: pa.DataType) -> bool:
    """Tell whether a type holds text (or, as null, nothing)."""
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
    )


def is_image(kind: pa.DataType) -> bool:
    """Tell whether a type holds images: bytes, structs of bytes and path, or paths."""
    if pa.types.is_struct(kind):
        types = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
        return set(types) == {"bytes", "path"} and is_binary(types["bytes"])
    return is_binary(kind) or is_text(kind)


def is_binary(kind: pa.DataType) -> bool:
    """Tell whether a type holds bytes."""
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    )


def carried_columns(footer: Footer, task: TaskColumns, source: SourceConfig) -> dict[str, str]:
    """Which columns are copied to the output, by their name there.

    What a job enlarges of a dataset of ours brings along all that is known of it, with `parent_`
    before names that the new dataset has itself, and before those that have it already.
    """
    carried = {name: name for name in source.carry}
    if not task.has_image or not source.carry_parent or not is_own(footer):
        return carried
    for name in footer.schema.names:
        if name in IMAGE_COLUMNS or name in source.carry:
            continue
        is_taken = name in task.recorded or name.startswith(PARENT)
        carried[f"{PARENT}{name}" if is_taken else name] = name
    return carried


def carried_fields(
    footer: Footer, task: TaskColumns, source: SourceConfig
) -> list[tuple[str, pa.DataType]]:
    """Name in the output and Arrow type of the carried columns."""
    return [
        (name, plain_type(footer.schema.field(column).type))
        for name, column in carried_columns(footer, task, source).items()
    ]


def mean_bytes(footer: Footer, column: str) -> float:
    """Bytes of a column's values per row, unpacked."""
    total = sum(
        chunk.total_uncompressed_size
        for group in range(footer.metadata.num_row_groups)
        for i in range(footer.metadata.num_columns)
        if (chunk := footer.metadata.row_group(group).column(i)).path_in_schema.split(".")[0]
        == column
    )
    return float(total) / max(1, footer.num_rows)


def largest_value(footer: Footer, column: str) -> float | None:
    """Largest value of a column by the footer's statistics, None where these do not tell."""
    position = {
        footer.metadata.schema.column(i).path: i for i in range(footer.metadata.num_columns)
    }
    largest: list[float] = []
    for group in range(footer.metadata.num_row_groups):
        statistics = footer.metadata.row_group(group).column(position[column]).statistics
        if statistics is None or not statistics.has_min_max or statistics.max is None:
            return None
        largest.append(statistics.max)
    return max(largest, default=None)


def row_group_ends(footer: Footer) -> list[int]:
    """Row at which each row group ends."""
    ends, total = [], 0
    for group in range(footer.metadata.num_row_groups):
        total += footer.metadata.row_group(group).num_rows
        ends.append(total)
    return ends


def columns_in_words(columns: Mapping[str, str]) -> str:
    """The used columns in words, for the plan's notes."""
    return ", ".join(
        field if field == name else f"{field} (column {name!r})" for field, name in columns.items()
    )

"""Parquet footers of input files: fetched, read through, and what they tell of sizes.

Reads footers only, never rows; must not know shards or the sink.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from decimal import Decimal
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ldm_batch.errors import JobError, StorageError
from ldm_batch.read import thrift
from ldm_batch.read.deadly_footers import MAGIC as PARQUET_MAGIC
from ldm_batch.read.deadly_footers import find_deadly, parse_footer
from ldm_batch.read.text.columns import largest_stated
from ldm_batch.records import InputFile
from ldm_batch.storage import Access, SourceFile, open_file

TAIL_BYTES = 64 * 1024
"""Read at once: most footers are smaller, so that one request is enough."""
MAX_FOOTER_BYTES = 128 * 1024 * 1024
ENCRYPTED_MAGIC = b"PARE"
ENCRYPTION_ALGORITHM = 8
"""Field of a footer, in parquet.thrift, which says that columns are encrypted."""
WITHOUT_KEYS = "ldm_batch takes no keys: write it anew without encryption, or without such columns"
MAX_READ_HERE_BYTES = 16 * 1024 * 1024
"""Of a footer that is read by us, which is slow, to tell what Arrow's reader does not."""
MAX_COLUMNS = 10_000
MAX_SIDE = 4096
FOOTER_THREADS = 16
"""Reading a footer waits for the store, not for a CPU."""
FILES_AT_ONCE = 500
"""Whose footers are held at once, and for which one process is started to read them first."""
UNREADABLE = (pa.ArrowException, OSError, ValueError, LookupError, ArithmeticError, MemoryError)
"""What pyarrow raises of damaged files: its own exceptions, and Python's where it decodes a name or
a date late."""


@dataclass(frozen=True, slots=True)
class Footer:
    """What a Parquet file says of itself; `sha256` is of the footer's own bytes."""

    metadata: pq.FileMetaData
    schema: pa.Schema
    num_rows: int
    sha256: str
    folders: Mapping[str, str | None] = field(default_factory=dict)
    """Columns of the schema that stand in the names of the file's folders; see `folders.py`."""


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
        deadly = find_deadly(raws, [file.uri for file in some])
        if deadly is not None:
            _refuse_encrypted(raws[deadly], some[deadly].uri)
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


def read_footer(file: BinaryIO, uri: str, size_bytes: int) -> Footer:
    """Read the footer of a file that this process has written.

    Raises:
        JobError: it cannot be read all the same.
    """
    return _parse(_footer_bytes(file, uri, size_bytes), uri)


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
        if parsed.metadata.serialized_size < len(raw):  # a signature follows it
            _refuse_encrypted(raw, uri)
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


def _refuse_encrypted(raw: bytes, uri: str) -> None:
    """Refuse a file whose footer can be read and says that its columns are encrypted.

    Arrow's reader dies where it is asked for such a column without a key.
    """
    if len(raw) > MAX_READ_HERE_BYTES:
        return
    try:
        told, _ = thrift.read_struct(raw)
    except (thrift.Damaged, IndexError):
        return
    if ENCRYPTION_ALGORITHM in told:
        raise JobError(f"{uri}: columns of it are encrypted; {WITHOUT_KEYS}")


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
    if tail[-4:] == ENCRYPTED_MAGIC:
        raise JobError(f"{uri}: encrypted Parquet; {WITHOUT_KEYS}")
    if tail[-4:] != PARQUET_MAGIC or length + 8 > size_bytes:
        raise JobError(
            f"{uri}: not a Parquet file, or cut off: it does not end in a footer; write it anew, "
            "as Parquet; the name of a table in text ends in .csv, .tsv, .jsonl or .txt"
        )
    if length > MAX_FOOTER_BYTES:
        raise JobError(f"{uri}: a footer of {length} bytes, at most {MAX_FOOTER_BYTES}")
    if length + 8 > len(tail):
        file.seek(size_bytes - 8 - length)
        tail = file.read(length + 8)
    return tail[-8 - length : -8]


def first_line(error: Exception) -> str:
    """An error in one line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def mean_bytes(footer: Footer, column: str) -> float:
    """Bytes of a column's values per row, unpacked; or of a field of a struct, as `image.bytes`."""
    total = sum(
        chunk.total_uncompressed_size
        for group in range(footer.metadata.num_row_groups)
        for i in range(footer.metadata.num_columns)
        if f"{(chunk := footer.metadata.row_group(group).column(i)).path_in_schema}.".startswith(
            f"{column}."
        )
    )
    return float(total) / max(1, footer.num_rows)


def largest_value(footer: Footer, column: str) -> float | Decimal | None:
    """Largest value of a column of numbers by the footer's statistics, None where these do not
    tell."""
    if column in footer.folders:
        value = footer.folders[column] or ""
        return int(value) if value.isascii() and value.isdecimal() and len(value) < 20 else None
    position = {
        footer.metadata.schema.column(i).path: i for i in range(footer.metadata.num_columns)
    }
    if (stated := largest_stated(footer.schema, column)) is not None:
        return stated
    largest: list[float | Decimal] = []
    for group in range(footer.metadata.num_row_groups):
        statistics = footer.metadata.row_group(group).column(position[column]).statistics
        if statistics is None or not statistics.has_min_max or statistics.max is None:
            return None
        value = statistics.max
        if isinstance(value, bytes) and len(value) == 2:  # half floats stay as they are stored
            [value] = struct.unpack("<e", value)
        if not isinstance(value, (int, float, Decimal)) or value != value:
            return None
        largest.append(value)
    return max(largest, default=None)


def row_group_ends(footer: Footer) -> list[int]:
    """Row at which each row group ends."""
    ends, total = [], 0
    for group in range(footer.metadata.num_row_groups):
        total += footer.metadata.row_group(group).num_rows
        ends.append(total)
    return ends

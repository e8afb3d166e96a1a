"""The rows of a shard as record batches: a planned file opened with care, in bounded memory.

Whoever reads rows reads them here. Must not know what a cell means, pipelines or the sink.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ldm_batch.columns import TaskColumns
from ldm_batch.config import SourceConfig
from ldm_batch.errors import AccessError, JobError, ShardError
from ldm_batch.read import footer as footers
from ldm_batch.read import matching
from ldm_batch.read.decoding import choose_decoding
from ldm_batch.read.folders import with_folder_columns, with_folders
from ldm_batch.read.input_types import InputTypes
from ldm_batch.read.text.columns import OF_CONVERSION, origin_of
from ldm_batch.records import Shard
from ldm_batch.storage import open_file

ROWS_PER_BATCH, LARGE_ROWS_PER_BATCH = 256, 8
"""Rows that are made values of Python at once; fewer where a cell may be large: images, lists,
structs. How many are decoded at once is decoding.py's."""
LOCAL = re.compile(r"file://|(?!.*://)", re.DOTALL)
"""How places on a local disk begin."""


@dataclass(frozen=True, slots=True)
class UsedColumns:
    """What a job reads of a planned file."""

    footer: footers.Footer
    fields: Mapping[str, str]
    """Field -> column that stands for it."""
    carry: Mapping[str, str]
    """Name in the output -> column that is carried along."""
    carried: list[tuple[str, pa.DataType]]
    """Name in the output and planned Arrow type of these."""

    @property
    def names(self) -> list[str]:
        """The columns themselves, each once, and those that a conversion made beside them."""
        wanted = [*self.fields.values(), *self.carry.values(), *self.of_conversion]
        return list(dict.fromkeys(wanted))

    @property
    def of_conversion(self) -> Sequence[str]:
        """Columns that say what became of the lines of text; none where the file was none."""
        return () if origin_of(self.footer.schema) is None else tuple(OF_CONVERSION)


@contextmanager
def as_shard_error(shard: Shard) -> Iterator[None]:
    """What reading a shard fails of is a ShardError, but for a store that lets nobody in."""
    try:
        yield
    except footers.UNREADABLE as error:
        line = footers.first_line(error)
        raise ShardError(f"{shard.file.uri}: cannot be read: {line}") from error
    except AccessError:
        raise
    except JobError as error:
        raise ShardError(str(error)) from error


def find_columns(
    shard: Shard, task: TaskColumns, source: SourceConfig, types: InputTypes
) -> UsedColumns:
    """The columns that a job reads of a shard's file, which must be the one that was planned.

    Args:
        types: what the plan says of them.

    Raises:
        JobError: it is another file, or a column is missing or of a wrong type.
    """
    planned = footers.read_planned_footer(shard.file, source.access)
    footer = with_folders(planned, shard.file.name, types.folders)
    return UsedColumns(
        footer,
        matching.resolve_columns(footer, task, source, shard.file.uri),
        matching.carried_columns(footer, task, source),
        [
            (name, types.carried.get(name, kind))
            for name, kind in matching.carried_fields(footer, task, source)
        ],
    )


def read_batches(
    shard: Shard, used: UsedColumns, source: SourceConfig, *, is_image: bool
) -> Iterator[pa.RecordBatch]:
    """Record batches of exactly the shard's rows, with the columns that a job uses.

    Args:
        is_image: the rows bring images, which make a column large.
    """
    footer, columns = used.footer, used.names
    first, last = shard.row_start, shard.row_start + shard.num_rows
    is_large = is_image or any(_is_nested(footer, name) for name in columns)
    rows_per_batch = LARGE_ROWS_PER_BATCH if is_large else ROWS_PER_BATCH
    is_near, start = LOCAL.match(shard.file.uri) is not None, 0
    own = [name for name in columns if name not in footer.folders]
    of_folders = [name for name in columns if name in footer.folders]
    with open_file(shard.file.uri, source.access) as file:
        for group, end in enumerate(footers.row_group_ends(footer)):
            if start < last and end > first:
                wanted = range(max(first - start, 0), min(last, end) - start)
                for batch in _read_group(file, footer, group, own, wanted, is_near=is_near):
                    for place in range(0, batch.num_rows, rows_per_batch):
                        some = batch.slice(place, rows_per_batch)
                        yield with_folder_columns(some, footer, of_folders)
            start = end


def _read_group(
    file: BinaryIO,
    footer: footers.Footer,
    group: int,
    columns: list[str],
    wanted: range,
    *,
    is_near: bool,
) -> Iterator[pa.RecordBatch]:
    """Batches of some rows of a row group, whatever their size."""
    decoding, spliced = choose_decoding(
        file, footer.metadata, group, columns, wanted, is_near=is_near
    )
    parquet = pq.ParquetFile(
        spliced,
        metadata=footer.metadata,
        page_checksum_verification=True,
        pre_buffer=False,
        read_dictionary=decoding.as_dictionaries,
        buffer_size=decoding.buffer_bytes,
    )
    position, num_rows = 0, decoding.next_rows(0, 0, 0)
    for batch in parquet.iter_batches(num_rows, row_groups=[group], columns=columns):
        begin, stop = (max(place - position, 0) for place in (wanted.start, wanted.stop))
        position += batch.num_rows
        if begin < batch.num_rows:
            yield batch.slice(begin, min(stop, batch.num_rows) - begin)
        if position >= wanted.stop:
            return
        num_rows = decoding.next_rows(position, batch.num_rows, _row_bytes(batch))
        parquet.reader.set_batch_size(num_rows)  # taken by the read that follows, in Arrow 21 to 26


def _row_bytes(batch: pa.RecordBatch) -> int:
    """Memory that a batch takes, but for dictionaries, which take no more of it with more rows."""
    columns = [
        column.indices if isinstance(column, pa.DictionaryArray) else column
        for column in batch.columns
    ]
    return sum(buffer.size for column in columns for buffer in column.buffers() if buffer)


def _is_nested(footer: footers.Footer, column: str) -> bool:
    return bool(pa.types.is_nested(footer.schema.field(column).type))

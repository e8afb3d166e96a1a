"""The rows of a shard as record batches: a planned file opened with care, in bounded memory.

Whoever reads rows reads them here. Must not know what a cell means, pipelines or the sink.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from ldm_batch.columns import TaskColumns
from ldm_batch.config import SourceConfig
from ldm_batch.errors import AccessError, JobError, ShardError
from ldm_batch.read import footer as footers
from ldm_batch.read import matching
from ldm_batch.read.folders import with_folder_columns, with_folders
from ldm_batch.read.input_types import InputTypes
from ldm_batch.records import Shard
from ldm_batch.storage import open_file

ROWS_PER_READ, LARGE_ROWS_PER_READ = 256, 8
"""Rows decoded at once; fewer where a cell may be large: images, lists, structs. Measured on 60
million rows in a file of 1.3 MB: read whole it takes 12.3 GB of memory, batch by batch 0.3 GB."""
IMAGE_BUFFER_BYTES = 8 * 1024 * 1024
"""A column of images is read in parts of this size, not a whole row group at once."""


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
        """The columns themselves, each once."""
        return list(dict.fromkeys([*self.fields.values(), *self.carry.values()]))


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
    ends = footers.row_group_ends(footer)
    first, last = shard.row_start, shard.row_start + shard.num_rows
    starts = [0, *ends[:-1]]
    groups = [i for i in range(len(ends)) if starts[i] < last and ends[i] > first]
    position = starts[groups[0]]
    is_large = is_image or any(_is_nested(footer, name) for name in columns)
    own = [name for name in columns if name not in footer.folders]
    repeated = [name for name in own if _holds_bytes(footer, name)]
    rows_per_read = LARGE_ROWS_PER_READ if is_large else ROWS_PER_READ
    with open_file(shard.file.uri, source.access) as file:
        parquet = pq.ParquetFile(
            file,
            metadata=footer.metadata,
            page_checksum_verification=True,
            pre_buffer=False,
            read_dictionary=[] if is_image else repeated,
            buffer_size=IMAGE_BUFFER_BYTES if is_image else 0,
        )
        batches = parquet.iter_batches(rows_per_read, row_groups=groups, columns=own)
        for batch in batches:
            begin, end = max(first - position, 0), min(last - position, batch.num_rows)
            position += batch.num_rows
            if begin < end:
                some = batch.slice(begin, end - begin)
                yield with_folder_columns(some, footer, [n for n in columns if n in footer.folders])
            if position >= last:
                return


def _holds_bytes(footer: footers.Footer, column: str) -> bool:
    """Tell whether a column's cells have any size: kept as a dictionary, a value that a small
    file repeats a million times stands in memory once."""
    kind = matching.plain_type(footer.schema.field(column).type)
    return matching.is_text(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_nested(footer: footers.Footer, column: str) -> bool:
    return bool(pa.types.is_nested(footer.schema.field(column).type))

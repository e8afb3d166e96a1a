"""How some rows of a row group are decoded in bounded time and memory: which pages, how many rows
at once, and which texts as dictionaries, by what its footer and its pages' headers say.

Must not know shards or what a cell means.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow.parquet as pq

from ldm_batch.read import chunks, pages
from ldm_batch.read.chunks import Chunk
from ldm_batch.read.spliced import SplicedFile

READ_BYTES = 32 * 1024 * 1024
"""What the rows that are decoded at once take, as far as a footer and the rows before them tell."""
WORST_BYTES = 256 * 1024 * 1024
"""What they take at most, where one value of a small file may stand for many."""
MOST_ROWS, DICTIONARY_ROWS = 4096, 65_536
"""Decoded at once: of a million prompts, reads of 256 rows take .2 to .5 s of CPU, of 4,096 .1 to
.2 s. A dictionary comes with every read again, whole."""
FEWEST_DICTIONARY_ROWS = 64
FIRST_ROWS, GROWTH = 4, 4
"""Rows of the first read where nothing bounds them; how many times more the next may be."""
SKEW = 4
"""Rows may be so many times larger than they are on the mean."""
HELD_BYTES = 64 * 1024 * 1024
"""Chunks up to this size, together, are fetched whole, once: then their pages can be looked at in
any store."""
BUFFER_BYTES = 8 * 1024 * 1024
"""Larger chunks are read in parts of this size."""
INDEX_BYTES, HEADERS_BYTES = 5, 16 * 1024
"""Of a value in pages of a dictionary, at most, and of the headers of a few pages."""


@dataclass(frozen=True, slots=True)
class Step:
    """How rows are decoded from one on, where a further column begins to have its own values."""

    begins: int
    first_rows: int
    """Decoded by the first read from there."""
    most_rows: int
    """Decoded by any read from there."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """How the used columns of a row group are decoded."""

    as_dictionaries: list[str]
    steps: list[Step]
    """From row 0 on, in order; before its column begins, what is read of it is nothing."""
    ends: int
    """Row at which the wanted ones end: nothing is read from there on."""
    buffer_bytes: int
    unpacked_bytes: int
    """What the pages take that are unpacked."""

    def next_rows(self, position: int, num_rows: int, num_bytes: int) -> int:
        """Rows of the next read, which begins at a position, by those of the last one and the
        memory that they take."""
        number = bisect_right(self.steps, position, key=lambda step: step.begins) - 1
        step, later = self.steps[number], self.steps[number + 1 :]
        wanted = step.first_rows
        if position > step.begins and num_rows:
            within = READ_BYTES * num_rows // max(1, num_bytes)
            wanted = min(GROWTH * num_rows, within, step.most_rows)
        ends = min(self.ends, later[0].begins) if later else self.ends
        return max(1, min(wanted, ends - position))


def choose_decoding(
    file: BinaryIO,
    metadata: pq.FileMetaData,
    group: int,
    columns: Collection[str],
    rows: range,
    *,
    is_near: bool,
) -> tuple[Decoding, BinaryIO]:
    """Tell how to decode some columns of a row group.

    Args:
        file: the Parquet file.
        columns: top-level ones.
        rows: of the row group; no others need their values.
        is_near: many small reads of it cost little.

    Returns:
        How, and the file to do it with, in which pages that hold none of the rows are blank.
    """
    row_group = metadata.row_group(group)
    used = [
        (row_group.column(i), metadata.schema.column(i))
        for i in range(metadata.num_columns)
        if any(f"{metadata.schema.column(i).path}.".startswith(f"{name}.") for name in columns)
    ]
    spliced = SplicedFile(file, HELD_BYTES)
    seen = [
        chunks.look_at(
            spliced, chunk, schema, row_group.num_rows, rows, reads_headers_alone=is_near
        )
        for chunk, schema in used
    ]
    is_large = any(chunk.total_compressed_size > BUFFER_BYTES for chunk, _ in used)
    return _decide(seen, rows.stop, BUFFER_BYTES if is_large else 0), spliced.as_file()


def _decide(seen: Sequence[Chunk], ends: int, buffer_bytes: int) -> Decoding:
    as_dictionaries = [chunk.path for chunk in seen if _is_dictionary(chunk)]
    plain = [chunk for chunk in seen if chunk.path not in as_dictionaries]
    begins = sorted({0, *(chunk.begins for chunk in plain if chunk.begins < ends)})
    return Decoding(
        as_dictionaries,
        steps=[_step(row, [c for c in plain if c.begins <= row]) for row in begins],
        ends=ends,
        buffer_bytes=buffer_bytes,
        unpacked_bytes=sum(chunk.unpacked_bytes for chunk in seen),
    )


def _step(begins: int, plain: Sequence[Chunk]) -> Step:
    """How rows are decoded where some columns have their own values."""
    if not plain:
        return Step(begins, DICTIONARY_ROWS, DICTIONARY_ROWS)
    first = int(READ_BYTES / max(1.0, sum(map(_mean_bytes, plain))))
    most = max(1, min([SKEW * first, *map(_most_rows, plain)]))
    if any(chunk.is_repeated or pages.DELTA_BYTE_ARRAY in chunk.encodings for chunk in plain):
        first = min(first, FIRST_ROWS)
    return Step(begins, max(1, min(first, most)), most)


def _is_dictionary(chunk: Chunk) -> bool:
    """Tell whether a chunk is decoded as a dictionary, so that a value stands in memory once.

    Only where copies could be too large: of a chunk whose later pages hold plain values Arrow makes
    a dictionary, too, and hashes them all.
    """
    if not (chunk.is_flat and chunk.is_bytes and chunk.dictionary_bytes):
        return False
    if not chunk.encodings <= {pages.PLAIN, *pages.DICTIONARY_ENCODINGS}:
        return False  # Arrow makes no dictionaries of these
    if chunk.largest_bytes * FEWEST_DICTIONARY_ROWS > READ_BYTES:
        return True
    rest = chunk.unpacked_bytes - chunk.dictionary_bytes
    is_whole = rest <= INDEX_BYTES * chunk.num_values + HEADERS_BYTES
    return is_whole and chunk.largest_bytes * chunk.num_values > WORST_BYTES


def _most_rows(chunk: Chunk) -> int:
    per_row = max(1.0, chunk.num_values / max(1, chunk.num_rows))
    largest = chunk.largest_bytes if chunk.is_bytes else chunk.value_bytes
    if pages.DELTA_BYTE_ARRAY in chunk.encodings:  # a value begins as the one before it
        largest = max(largest, chunk.page_bytes)
    if largest * chunk.num_values <= READ_BYTES:
        return MOST_ROWS
    return min(MOST_ROWS, int(WORST_BYTES / max(1.0, largest * per_row)))


def _mean_bytes(chunk: Chunk) -> float:
    """Bytes of a row in memory, unless a dictionary repeats values that are larger than most."""
    per_row = chunk.num_values / max(1, chunk.num_rows)
    if not chunk.is_bytes:
        return chunk.value_bytes * max(1.0, per_row)
    repeated = per_row * min(chunk.largest_bytes, READ_BYTES // MOST_ROWS)
    return max(repeated, chunk.unpacked_bytes / max(1, chunk.num_rows))

"""What is known of a column chunk before any of it is decoded; its pages without wanted rows are
laid over with blank ones.

Arrow counts rows through all pages before the wanted ones, and unpacks them to count. Must not
know what is made of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow.parquet as pq

from ldm_batch.read import pages
from ldm_batch.read.pages import Page
from ldm_batch.read.spliced import Kept, SplicedFile
from ldm_batch.read.thrift import CutOff

MAX_PAGES = 100_000
MAX_BLANK_BYTES = 64 * 1024 * 1024
VALUE_BYTES = 32
"""Of a number, a time or an offset, in memory, at most; longer ones say their length."""
BLANKS = {
    "BOOLEAN": bytes(1),
    "INT32": bytes(4),
    "INT64": bytes(8),
    "INT96": bytes(12),
    "FLOAT": bytes(4),
    "DOUBLE": bytes(8),
    "BYTE_ARRAY": bytes(4),
}
"""The shortest value of each type, as the encoding PLAIN has it."""
ENCODINGS = {
    "PLAIN": pages.PLAIN,
    "PLAIN_DICTIONARY": pages.PLAIN_DICTIONARY,
    "RLE_DICTIONARY": pages.RLE_DICTIONARY,
    "DELTA_BYTE_ARRAY": pages.DELTA_BYTE_ARRAY,
}
OTHER_ENCODING = -1
"""One by which no value is longer than its bytes."""
LEVELS = ("RLE", "BIT_PACKED")
"""Encodings of levels, which a footer lists among those of values."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What is known of a column chunk; of its pages with wanted rows, where these are known."""

    path: str
    is_flat: bool
    """Neither in a list nor in a struct."""
    is_repeated: bool
    """A row may have any number of values."""
    is_bytes: bool
    num_rows: int
    num_values: int
    unpacked_bytes: int
    value_bytes: int
    """Of a value in memory, where all are of one size."""
    encodings: frozenset[int]
    """Of its pages of data, by number."""
    page_bytes: int
    """The largest page, unpacked: no single value is larger."""
    begins: int = 0
    """The first row that is not blank."""
    is_part: bool = False
    """Whether only pages with wanted rows are counted here, without the dictionary."""
    dictionary_bytes: int = 0
    """The whole dictionary, unpacked; 0: there is none."""
    largest_bytes: int = 0
    """The largest value of the dictionary."""


def look_at(
    file: SplicedFile,
    chunk: pq.ColumnChunkMetaData,
    schema: pq.ColumnSchema,
    num_rows: int,
    rows: range,
    *,
    reads_headers_alone: bool,
) -> Chunk:
    """Tell what is known of a chunk, and lay blank pages over those without wanted rows.

    Args:
        num_rows: of its row group.
        rows: the wanted ones, of the row group.
        reads_headers_alone: its pages are looked at even where there is no room for all of it.
    """
    told = _told_by_footer(chunk, schema, num_rows)
    start, dictionary = chunk.data_page_offset, chunk.dictionary_page_offset
    if chunk.has_dictionary_page and dictionary is not None and 0 < dictionary < start:
        start = dictionary
    is_held = file.hold(start, chunk.total_compressed_size)
    most = MAX_PAGES if is_held or reads_headers_alone else 1
    found, is_all = _find_pages(file, chunk, start, most)
    values = [page for page in found if page.type != pages.DICTIONARY]
    if is_all and not any(page.type == pages.DICTIONARY for page in found[1:]):
        told = replace(
            told,
            encodings=frozenset(page.encoding for page in values),
            page_bytes=max((page.unpacked_bytes for page in values), default=0),
        )
        if not told.is_repeated and chunk.num_values == num_rows:
            told = _lay_over(file, chunk, schema, told, start, values, rows)
    if not (told.is_bytes and told.encodings & pages.DICTIONARY_ENCODINGS):
        return told
    if not found or found[0].type != pages.DICTIONARY:
        return _with_any_dictionary(told)
    dictionary_bytes = found[0].unpacked_bytes
    return replace(
        told,
        unpacked_bytes=told.unpacked_bytes + dictionary_bytes * told.is_part,
        dictionary_bytes=max(1, dictionary_bytes),
        largest_bytes=pages.largest_value_bytes(file, found[0], chunk.compression),
    )


def _told_by_footer(chunk: pq.ColumnChunkMetaData, schema: pq.ColumnSchema, num_rows: int) -> Chunk:
    """What a footer says of a chunk, which may be untrue."""
    names = [name for name in chunk.encodings if name not in LEVELS]
    return Chunk(
        path=chunk.path_in_schema,
        is_flat=schema.max_repetition_level == 0 and "." not in schema.path,
        is_repeated=schema.max_repetition_level > 0,
        is_bytes=schema.physical_type == "BYTE_ARRAY",
        num_rows=num_rows,
        num_values=max(chunk.num_values, num_rows),
        unpacked_bytes=chunk.total_uncompressed_size,
        value_bytes=max(VALUE_BYTES, schema.length or 0),
        encodings=frozenset(ENCODINGS.get(name, OTHER_ENCODING) for name in names),
        page_bytes=chunk.total_uncompressed_size,
    )


def _with_any_dictionary(told: Chunk) -> Chunk:
    """What is known of a chunk of which a dictionary may be anywhere, if its footer lists one."""
    if not (told.is_bytes and told.encodings & pages.DICTIONARY_ENCODINGS):
        return told
    size_bytes = told.unpacked_bytes
    return replace(told, dictionary_bytes=size_bytes, largest_bytes=size_bytes)


def _find_pages(
    file: SplicedFile, chunk: pq.ColumnChunkMetaData, start: int, most: int
) -> tuple[list[Page], bool]:
    """Pages of a chunk that hold values, and whether they are all."""
    found: list[Page] = []
    try:
        for page in pages.read_pages(file, start, chunk.total_compressed_size, chunk.num_values):
            if page.type in (pages.DATA, pages.DATA_V2, pages.DICTIONARY):
                found.append(page)
            if len(found) >= most:
                return found, False
    except CutOff:
        return found, False  # decoding says what is wrong, if anything is
    return found, sum(
        page.num_values for page in found if page.type != pages.DICTIONARY
    ) == chunk.num_values


def _lay_over(
    file: SplicedFile,
    chunk: pq.ColumnChunkMetaData,
    schema: pq.ColumnSchema,
    known: Chunk,
    start: int,
    found: Sequence[Page],
    rows: range,
) -> Chunk:
    """What is known of a chunk that has a value for each row, with blank pages around the wanted
    ones."""
    position = 0
    kept: list[Page] = []
    for page in found:
        if position >= rows.stop:
            break
        position += page.num_values
        if position > rows.start:
            kept.append(page)
    num_kept = sum(page.num_values for page in kept)
    begins = position - num_kept
    if not kept or not num_kept:
        return known
    if begins and not (
        _is_cheap(schema, known)
        and file.lay(
            start, chunk.total_compressed_size, _parts(schema, known, start, found, kept, position)
        )
    ):
        return known
    return replace(
        known,
        num_rows=num_kept,
        num_values=num_kept,
        unpacked_bytes=sum(page.unpacked_bytes for page in kept),
        encodings=frozenset(page.encoding for page in kept),
        page_bytes=max(page.unpacked_bytes for page in kept),
        begins=begins,
        is_part=True,
    )


def _is_cheap(schema: pq.ColumnSchema, known: Chunk) -> bool:
    """Tell whether blank pages of a chunk take little memory."""
    value_bytes = 0 if schema.max_definition_level else len(_blank(schema))
    return value_bytes * known.num_values <= MAX_BLANK_BYTES


def _blank(schema: pq.ColumnSchema) -> bytes:
    return BLANKS.get(schema.physical_type, bytes(schema.length or 1))


def _parts(
    schema: pq.ColumnSchema,
    known: Chunk,
    start: int,
    found: Sequence[Page],
    kept: Sequence[Page],
    position: int,
) -> list[bytes | Kept]:
    """A chunk anew: its dictionary, where it has one, and the pages to keep amid blank ones.

    Args:
        position: the row that comes after those of the pages to keep.
    """
    blank, may_be_null = _blank(schema), schema.max_definition_level > 0
    first, last = kept[0], kept[-1]
    before = position - sum(page.num_values for page in kept)
    return [
        Kept(start, found[0].header_start - start),
        pages.blank_page(before, blank, may_be_null=may_be_null),
        Kept(first.header_start, last.start + last.packed_bytes - first.header_start),
        pages.blank_page(known.num_values - position, blank, may_be_null=may_be_null),
    ]

"""The pages of a column chunk as their headers tell of them, and the values of its dictionary.

Nothing but the dictionary is unpacked. Source: `PageHeader` of parquet.thrift. Must not know rows,
shards or what is made of it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from ldm_batch.read import thrift
from ldm_batch.read.spliced import SplicedFile
from ldm_batch.read.thrift import CutOff, Damaged

DATA, DICTIONARY, DATA_V2 = 0, 2, 3
"""Types of pages; others hold no values."""
PLAIN, PLAIN_DICTIONARY, RLE_DICTIONARY = 0, 2, 8
DICTIONARY_ENCODINGS = frozenset({PLAIN_DICTIONARY, RLE_DICTIONARY})
DELTA_BYTE_ARRAY = 7
INTEGER, NOT_COMPRESSED, VERSION_2_HEADER = b"\x15", b"\x12", b"\x5c"
"""How fields begin in Thrift's compact protocol: the next one, a whole number or `false`; field 8
after field 3, a struct."""
HEADER_BYTES, MAX_HEADER_BYTES = 512, 16 * 1024 * 1024
"""Read at first, and at most, as Arrow does: statistics may be long."""
MAX_DICTIONARY_BYTES = 64 * 1024 * 1024
"""A larger dictionary is taken for one value: nothing of it is unpacked."""
BODIES: dict[Any, tuple[int, int]] = {DATA: (5, 2), DICTIONARY: (7, 2), DATA_V2: (8, 4)}
"""Type of a page -> the field of what is told of its values; the field there of their encoding."""
LENGTH = struct.Struct("<I")
"""What stands before a text or binary value."""
CODECS: dict[str, Literal["snappy", "gzip", "brotli", "zstd"]] = {
    "SNAPPY": "snappy",
    "GZIP": "gzip",
    "BROTLI": "brotli",
    "ZSTD": "zstd",
}


@dataclass(frozen=True, slots=True)
class Page:
    """One page, as its header has it."""

    type: int
    encoding: int
    num_values: int
    header_start: int
    """Where in the file it begins."""
    start: int
    """Where its content does."""
    packed_bytes: int
    """What its content takes in the file."""
    unpacked_bytes: int


def read_pages(file: SplicedFile, start: int, size_bytes: int, num_values: int) -> Iterator[Page]:
    """The pages of a column chunk, in their order, by their headers alone.

    Args:
        start: where in the file it begins.
        size_bytes: what it takes there.
        num_values: nulls included; pages after the last of them are not looked at.

    Raises:
        CutOff: a page leads out of the chunk: some old writers said too little of its size.
        Damaged: a header is no page header, or the pages are too few. Arrow passes over such pages
            without a word, and takes later rows for theirs.
    """
    end = start + size_bytes
    while start < end and num_values > 0:
        page = _read_page(file, start, end)
        num_values -= 0 if page.type == DICTIONARY else page.num_values
        start = page.start + page.packed_bytes
        yield page
    if num_values > 0:
        raise Damaged("pages with fewer values than the footer says")


def largest_value_bytes(file: SplicedFile, page: Page, codec: str) -> int:
    """Bytes of the largest text or binary value of a dictionary; at most what all of it takes.

    Args:
        codec: of the chunk, Parquet's name.
    """
    bound = max(page.unpacked_bytes, page.packed_bytes)
    if bound > MAX_DICTIONARY_BYTES or (codec != "UNCOMPRESSED" and codec not in CODECS):
        return bound
    raw = file.read_original(page.start, page.packed_bytes)
    try:
        if codec != "UNCOMPRESSED":
            unpacked = pa.Codec(CODECS[codec]).decompress(raw, page.unpacked_bytes)
            raw = unpacked.to_pybytes()
    except (pa.ArrowException, OSError, ValueError):
        return bound
    largest = place = 0
    try:
        for _ in range(page.num_values):
            (length,) = LENGTH.unpack_from(raw, place)
            place += 4 + length
            if length > largest:
                largest = length
    except struct.error:
        return bound
    return min(largest, bound)


def blank_page(num_values: int, value: bytes, *, may_be_null: bool) -> bytes:
    """A page of as many nulls, or of one value where a column has no nulls, for columns that are no
    lists: whatever reads it reads nothing, but counts on.

    Args:
        value: as the encoding PLAIN has it.
    """
    content = _varint(num_values << 1) + b"\0" if may_be_null else num_values * value
    num_nulls, level_bytes = (num_values, len(content)) if may_be_null else (0, 0)
    told = [num_values, num_nulls, num_values, PLAIN, level_bytes, 0]
    body = b"".join(INTEGER + _varint(number << 1) for number in told) + NOT_COMPRESSED
    sizes = [DATA_V2, len(content), len(content)]
    head = b"".join(INTEGER + _varint(number << 1) for number in sizes)
    return head + VERSION_2_HEADER + body + b"\0\0" + content


def _varint(number: int) -> bytes:
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def _read_page(file: SplicedFile, start: int, end: int) -> Page:
    window = HEADER_BYTES
    while True:
        raw = file.read_original(start, min(window, end - start))
        try:
            header, length = thrift.read_struct(raw)
            return _as_page(header, start, length, end)
        except IndexError:
            if window >= min(end - start, MAX_HEADER_BYTES):
                raise CutOff("a page header that does not end") from None
            window *= 8


def _as_page(header: dict[int, Any], start: int, length: int, end: int) -> Page:
    kind = header.get(1)
    body, place = BODIES.get(kind, (0, 0))
    told = header.get(body, {}) if body else {}
    if not isinstance(told, dict):
        raise Damaged("a page header whose fields are others")
    numbers = [kind, header.get(2), header.get(3), told.get(1, 0), told.get(place, 0)]
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise Damaged("a page header without its numbers")
    content = start + length
    if content + numbers[2] > end:
        raise CutOff("a page that does not end within its column")
    return Page(numbers[0], numbers[4], numbers[3], start, content, numbers[2], numbers[1])

"""Lines of a stream of UTF-8, each with its number, none larger than a few megabytes.

Must not know what a line holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

MAX_LINE_BYTES = 4 * 1024 * 1024
"""Of a line, or of the lines of one record; a longer one is read to its end and not kept."""
KEPT_BYTES = 4096
"""Of a line that is too long."""


class Line(NamedTuple):
    """A line without its end; its number counts from 1."""

    number: int
    raw: bytes
    """The whole line, or its beginning where it is too long."""
    num_bytes: int

    @property
    def is_too_long(self) -> bool:
        """Tell whether only the beginning of it is here."""
        return self.num_bytes > MAX_LINE_BYTES


def split_lines(blocks: Iterable[bytes]) -> Iterator[Line]:
    """Lines that end with LF or CRLF, the last one also with nothing."""
    number, kept, num_bytes = 1, b"", 0
    for block in blocks:
        first, *others = block.split(b"\n")
        kept, num_bytes = _with(kept, num_bytes, first)
        for piece in others:
            yield Line(number, kept.removesuffix(b"\r"), num_bytes)
            number += 1
            kept, num_bytes = _with(b"", 0, piece)
    if num_bytes:
        yield Line(number, kept.removesuffix(b"\r"), num_bytes)


def _with(kept: bytes, num_bytes: int, piece: bytes) -> tuple[bytes, int]:
    """What is kept of a line that goes on with a piece, and how long it is by now."""
    total = num_bytes + len(piece)
    if total <= MAX_LINE_BYTES:
        return kept + piece if kept else piece, total
    return (kept[:KEPT_BYTES] + piece[:KEPT_BYTES])[:KEPT_BYTES], total

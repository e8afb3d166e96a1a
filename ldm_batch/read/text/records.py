"""What stands in a text file, row by row: cells by the name of their column, or why there are none.

The sibling modules read one format each. Must not know files, Parquet or jobs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ldm_batch.read.text.lines import KEPT_BYTES, MAX_LINE_BYTES, Line

MAX_COLUMNS = 2_000
"""Of a table in text: whose rows have more names are none."""


class Record(NamedTuple):
    """A row, or what stands in the place of one."""

    line: int
    """Number of the line that it begins at, from 1."""
    num_bytes: int
    cells: Mapping[str, str | None]
    """Empty where there is a fault."""
    fault: str = ""
    """Why it is no row."""
    raw: bytes = b""
    """How a faulty one begins."""


def faulty(line: Line, fault: str) -> Record:
    """A line that is no row."""
    return Record(line.number, len(line.raw), {}, fault, line.raw[:KEPT_BYTES])


def fault_of_bytes(line: Line) -> str:
    """Why a line is no text; empty where it may be."""
    if line.is_too_long:
        return f"{line.num_bytes} bytes long, a row may have {MAX_LINE_BYTES}"
    if b"\0" in line.raw:
        return "holds a byte 0, which no text has (source.encoding)"
    return ""


def fault_of_encoding(error: UnicodeDecodeError) -> str:
    """Why bytes are no text."""
    return f"is not UTF-8: {error.reason} at byte {error.start + 1} (source.encoding)"

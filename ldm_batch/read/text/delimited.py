"""CSV and TSV -> rows: the first line names the columns, an empty cell is null.

Quotes, doubled within quotes, may hold line ends. Python's own reader splits; which lines it is
given, and what becomes of those that it refuses, is decided here.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from ldm_batch.errors import JobError, one_line
from ldm_batch.read.text.lines import MAX_LINE_BYTES, Line
from ldm_batch.read.text.records import (
    MAX_COLUMNS,
    Record,
    fault_of_bytes,
    fault_of_encoding,
    faulty,
)

OTHER_DELIMITERS = (";", "\t", "|")
"""Guessed of a first line that has none of the job's."""
BLANK = b" "
MAX_RECORD_LINES = 10_000
"""Of one record: a line takes memory even where it is empty."""


def read_delimited(lines: Iterable[Line], uri: str, delimiter: str | None) -> Iterator[Record]:
    """A row for every record that is not blank; one with another number of cells is a fault.

    A quote that nothing closes makes its own line a fault, and those after it are read anew.

    Args:
        lines: of the file.
        uri: what messages call it.
        delimiter: between cells; None: a comma, of which the first line must not look otherwise.

    Raises:
        JobError: the first line cannot name columns.
    """
    feed = _Feed(lines)
    names: list[str] | None = None
    with _long_cells():
        for first in feed:
            found = _read_record(feed, first, delimiter or ",")
            if isinstance(found, Record):
                if names is None:
                    raise JobError(f"{uri}: line {found.line}, which names columns, {found.fault}")
                yield found
                continue
            if not found:
                continue
            if names is None:
                names = _column_names(found, uri, delimiter, feed.last)
            elif len(found) != len(names):
                yield faulty(first, f"has {len(found)} cells, and there are {len(names)} columns")
                within = f"stands in quotes that line {first.number} opens, which is no row"
                yield from (faulty(line, within) for line in feed.taken[1:] if line.raw.strip())
            else:
                cells = {name: cell or None for name, cell in zip(names, found, strict=True)}
                yield Record(first.number, feed.num_bytes, cells)


class _Feed:
    """Lines for a record, which may be taken back."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self._lines, self._again = iter(lines), deque[Line]()
        self.taken: list[Line] = []
        """Lines of the record under way."""
        self.num_bytes = 0
        """Of these."""
        self.last = 0
        """Number of the last line that any record has seen."""
        self._no_more_until = 0

    def __iter__(self) -> Iterator[Line]:
        """First lines of records."""
        while (line := self._next()) is not None:
            self.taken, self.num_bytes = [line], len(line.raw)
            yield line

    def texts(self) -> Iterator[str]:
        """The lines of the record under way as text, as many as are asked for; their ends with
        them, which stand in cells."""
        yield self.taken[0].raw.decode() + "\n"
        while (line := self._next_of_record()) is not None:
            self.taken.append(line)
            self.num_bytes += len(line.raw) + 1
            yield line.raw.decode() + "\n"

    def take_back(self) -> None:
        """Give all lines but the first of the record under way again, as records of one line where
        they have been tried: no line is read more than three times."""
        self._no_more_until = max(self._no_more_until, self.last)
        self._again.extendleft(reversed(self.taken[1:]))
        self.taken = self.taken[:1]

    def _next(self) -> Line | None:
        line = self._again.popleft() if self._again else next(self._lines, None)
        if line is not None:
            self.last = max(self.last, line.number)
        return line

    def _next_of_record(self) -> Line | None:
        """The line after, if a record may go on with it."""
        if self.taken[-1].number < self._no_more_until or len(self.taken) == MAX_RECORD_LINES:
            return None
        line = self._next()
        if line is None or not (
            fault_of_bytes(line) or self.num_bytes + len(line.raw) > MAX_LINE_BYTES
        ):
            return line
        self._again.appendleft(line)
        return None


def _read_record(feed: _Feed, first: Line, delimiter: str) -> list[str] | Record:
    """The cells of the record that begins with a line; none where it is blank."""
    if fault := fault_of_bytes(first):
        return faulty(first, fault)
    try:
        if b'"' not in first.raw and b"\r" not in first.raw:  # as most are: twice as fast
            return first.raw.decode().split(delimiter) if first.raw.strip(BLANK) else []
        cells = next(csv.reader(feed.texts(), strict=True, delimiter=delimiter), [])
    except UnicodeDecodeError as error:
        fault = fault_of_encoding(error)
        if len(feed.taken) > 1:
            fault = f"opens a quote, and line {feed.taken[-1].number} {fault}"
    except csv.Error as error:
        fault = _why(error, feed, delimiter)
    else:
        return cells if len(cells) > 1 or first.raw.strip(BLANK) else []
    feed.take_back()
    return faulty(first, fault)


def _why(error: csv.Error, feed: _Feed, delimiter: str) -> str:
    """Why there is no record, in words."""
    last = feed.taken[-1].number
    if "expected after" in str(error):
        place = "" if len(feed.taken) == 1 else f" in line {last}"
        return (
            f"has a quote{place} with neither {delimiter!r} nor the end of the line after it; "
            "quotes within quotes are doubled"
        )
    if "unexpected end" in str(error):
        return f"opens a quote that nothing closes up to line {last}"
    if "new-line character" in str(error):
        return "holds a line end of its own kind (CR alone) outside of quotes"
    return f"is no CSV: {one_line(error, 200)}"


def _column_names(cells: Sequence[str], uri: str, delimiter: str | None, line: int) -> list[str]:
    """Names of the columns; one without a name is called by its place.

    Raises:
        JobError: two have the same, they are too many, or another delimiter stands between them.
    """
    if len(cells) > MAX_COLUMNS:
        raise JobError(f"{uri}: {len(cells)} columns, at most {MAX_COLUMNS}")
    names = [name.strip() or f"column_{number}" for number, name in enumerate(cells, 1)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise JobError(f"{uri}: line {line} names two columns {twice!r}; rename one of them")
    other = next((mark for mark in OTHER_DELIMITERS if mark in names[0]), None)
    if delimiter is None and len(names) == 1 and other is not None:
        word = "tab" if other == "\t" else other
        raise JobError(
            f"{uri}: line {line} names one column, {one_line(names[0], 100)!r}; set "
            f"source.delimiter='{word}' if that stands between columns, else source.delimiter=','"
        )
    return names


@contextmanager
def _long_cells() -> Iterator[None]:
    """Let cells be as long as lines while a file is read; the process has one limit for all."""
    before = csv.field_size_limit(MAX_LINE_BYTES)
    try:
        yield
    finally:
        csv.field_size_limit(before)

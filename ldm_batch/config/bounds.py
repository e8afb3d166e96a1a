"""What every check of a value has in common: bounds, closed lists, and what was meant.

Pure. A problem is one line: the field, the value, what it may be.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence

from ldm_batch.columns import Column
from ldm_batch.errors import JobError


def one_of(path: str, value: str, known: Sequence[str]) -> Iterator[str]:
    """Problems of a value that comes from a closed list."""
    if value not in known:
        yield f"{path}: unknown value {value!r}{suggest(str(value), known)}"


def within(path: str, value: float | None, low: float, high: float) -> Iterator[str]:
    """Problems of a number within bounds, both allowed; None is no problem."""
    if value is not None and not low <= value <= high:
        yield f"{path}: {value} is not between {low} and {high}"


def fits(path: str, value: float | None, column: Column) -> Iterator[str]:
    """Problems of a value of a column of numbers; None is no problem."""
    if value is None:
        return
    if column.low is not None and column.high is not None:
        yield from within(path, value, column.low, column.high)
    if column.multiple is not None and value % column.multiple:
        yield f"{path}: {value} is not a multiple of {column.multiple}"


def whole_or_auto(path: str, value: object, largest: int) -> Iterator[str]:
    """Problems of a value that is a whole number from 1 or `auto`."""
    if isinstance(value, int) and not isinstance(value, bool):
        yield from within(path, value, 1, largest)
    elif value != "auto":
        yield f"{path}: {value!r} is neither a whole number nor 'auto'"


def refuse(problems: Iterable[str]) -> None:
    """Raise a JobError that names all problems, where there are any."""
    lines = [*problems]
    if lines:
        raise JobError("\n".join(lines))


def suggest(name: str, known: Sequence[str]) -> str:
    """Say which of the known names was probably meant, or list them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"

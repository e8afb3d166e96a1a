"""Raw values of one input row -> a checked row, or the reason why there is none.

Pure; must not know Parquet files, shards or pipelines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pyarrow as pa

from ldm_batch.columns import COLUMNS
from ldm_batch.config import CallConfig, SourceConfig
from ldm_batch.identity import MAX_EXACT_FLOAT, Form
from ldm_batch.read import footer as footers
from ldm_batch.read.carried import MAX_CARRIED_BYTES
from ldm_batch.read.images import InputImages
from ldm_batch.read.input_types import NO_TYPES, InputTypes
from ldm_batch.read.text.columns import MESSAGE, REASON
from ldm_batch.read.text.types import OtherType, parse_number
from ldm_batch.records import Call, Reason, Row

MAX_ID_CHARS = 512
MAX_MESSAGE_CHARS = 4096
"""Of why a line is no row: a file can say more than we write."""
MAX_SHOWN_CHARS = 100
"""Of a text that is repeated because it is none."""


@dataclass(frozen=True, slots=True)
class RowPlace:
    """Where a row stands: in its shard and in its input file, both 0-based, and its key."""

    index: int
    input_row: int
    key: str

    def row(
        self, inputs: Mapping[str, Any], call: Call, *, seed: int | None, carry: Mapping[str, Any]
    ) -> Row:
        """The row that stands there."""
        return Row(
            index=self.index,
            input_row=self.input_row,
            key=self.key,
            inputs=inputs,
            call=call,
            seed=seed,
            carry=carry,
        )


class NarrowFloat(float):
    """A number that came from a column of narrow floats."""

    largest_exact: float

    def __new__(cls, value: float, bits: int) -> NarrowFloat:
        """Keep how far whole numbers are floats of their own: below 2**bits."""
        number = super().__new__(cls, value)
        number.largest_exact = float(2**bits - 1)
        return number


class InvalidRow(Exception):
    """A value that makes its row a rejection."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class RowContext:
    """What the rows of a job are read with."""

    source: SourceConfig
    """Limits of texts."""
    call: CallConfig
    """Defaults of the call's arguments, the size filled in."""
    form: Form
    """The plan's: how images are named, and which seeds a row may bring."""
    images: InputImages | None = None
    """Where images are checked and kept, if rows bring some."""
    types: InputTypes = NO_TYPES
    """What the plan says of its input's columns."""
    max_side: int | None = None
    """Longest side in pixels that a row may ask for; None: what the columns take."""


ParseRow = Callable[[Mapping[str, Any], RowPlace, RowContext], Row]
"""(raw values by field, place, context) -> the row; raises `InvalidRow`. A task has one."""


def parse_arguments(
    values: Mapping[str, Any], call: CallConfig, names: Iterable[str]
) -> dict[str, Any]:
    """Arguments of the call by name; a null takes the job's default.

    Raises:
        InvalidRow: a value is of the wrong type or out of range.
    """
    return {name: _parse_argument(values, name, getattr(call, name)) for name in names}


def parse_size(values: Mapping[str, Any], context: RowContext) -> dict[str, int]:
    """Height and width of a row; a null takes the job's default.

    Raises:
        InvalidRow: one is of the wrong type, out of range, or more than a row may ask for.
    """
    sides = parse_arguments(values, context.call, ("height", "width"))
    for name, side in sides.items():
        asked = values.get(name)
        if asked is not None and context.max_side is not None and side > context.max_side:
            message = (
                f"{name} {side} is more than {context.max_side}, by what its format, or "
                "source.max_side, takes of the result"
            )
            raise InvalidRow(Reason.OUT_OF_RANGE, message)
    return sides


def parse_seed(values: Mapping[str, Any], form: Form, name: str = "seed") -> int | None:
    """The row's own seed, if it has one; or another of its seeds.

    Raises:
        InvalidRow: it is no whole number, out of range, or a float that stands for several.
    """
    seed: int | None = _parse_argument(values, name, None)
    if seed is None:
        return None
    _refuse_outside(name, seed, 0, form.max_given_seed)
    given = values[name]
    largest = min(form.max_given_float, getattr(given, "largest_exact", MAX_EXACT_FLOAT))
    if isinstance(given, float) and form.max_given_float < math.inf and seed > largest:
        message = f"{name} {seed} is a float, and other whole numbers have the same; store integers"
        raise InvalidRow(Reason.OUT_OF_RANGE, message)
    return seed


def refuse_faulty(values: Mapping[str, Any]) -> None:
    """Refuse what stands in the place of a row in a text file.

    Raises:
        InvalidRow: it is none, for the reason that was found when the file was converted.
    """
    reason = values.get(REASON)
    if reason is not None:
        known = Reason(reason) if reason in {*Reason} else Reason.MALFORMED_LINE
        raise InvalidRow(known, str(values[MESSAGE] or known)[:MAX_MESSAGE_CHARS])


def parse_key(values: Mapping[str, Any], derived: str, form: Form) -> str:
    """The row's own id, as an image's name where the input has image numbers, else the derived key.

    Raises:
        InvalidRow: the id is null, empty, too long or no UTF-8.
    """
    if "id" not in values:
        return derived
    key = _parse_id(values["id"])
    if "image_index" not in values:
        return key
    return form.image_key(key, _parse_argument(values, "image_index", 0))


def _parse_id(value: bytes | int | None) -> str:
    if value is None:
        raise InvalidRow(Reason.INVALID_ID, "the id is null")
    if isinstance(value, int):
        return str(value)
    if not value or len(value) > MAX_ID_CHARS:
        raise InvalidRow(
            Reason.INVALID_ID, f"the id has {len(value)} bytes, it may have 1 to {MAX_ID_CHARS}"
        )
    return _decode(value, "id")


def parse_text(values: Mapping[str, Any], name: str, max_chars: int) -> str | None:
    """A text of a row; None where it has none.

    Raises:
        InvalidRow: it is longer than `max_chars` characters, or no UTF-8.
    """
    value = values.get(name)
    if value is None:
        return None
    if len(value) <= 4 * max_chars:
        text = _decode(value, name)
        if len(text) <= max_chars:
            return text
    raise InvalidRow(
        Reason.PROMPT_TOO_LARGE,
        f"{name} has {len(value)} bytes; at most {max_chars} characters (source.max_prompt_chars)",
    )


def _decode(value: bytes, name: str) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRow(Reason.INVALID_TEXT, f"{name} is not UTF-8: {error.reason}") from None


def _parse_argument(values: Mapping[str, Any], name: str, default: Any) -> Any:
    column = COLUMNS[name]
    assert column.low is not None
    assert column.high is not None
    if not column.is_whole:
        return _number(values, name, default, (column.low, column.high))
    value = _whole(values, name, default, int(column.low), int(column.high))
    if value is not None and column.multiple is not None and value % column.multiple:
        message = f"{name} {value} is not a multiple of {column.multiple}"
        raise InvalidRow(Reason.OUT_OF_RANGE, message)
    return value


def _whole(
    values: Mapping[str, Any], name: str, default: int | None, low: int, high: int
) -> int | None:
    value = _given_number(values, name)
    if value is None:
        return default
    if isinstance(value, Decimal) or (isinstance(value, float) and not value.is_integer()):
        raise InvalidRow(Reason.WRONG_TYPE, f"{name} {value} is not a whole number")
    _refuse_outside(name, value, low, high)
    return int(value)


def _number(
    values: Mapping[str, Any], name: str, default: float | None, limits: tuple[float, float]
) -> float | None:
    value = _given_number(values, name)
    if value is None:
        return default
    _refuse_outside(name, value, *limits)
    return float(value)


def _given_number(values: Mapping[str, Any], name: str) -> float | Decimal | None:
    """The number of a cell; of text in a column that was text, exactly what it stands for."""
    value: bytes | float | Decimal | None = values.get(name)
    if not isinstance(value, bytes):
        return value
    text = value.decode("utf-8", "replace")
    try:
        return parse_number(text) if text else None
    except OtherType:
        shown = f"{text[:MAX_SHOWN_CHARS]!r}{' ...' * (len(text) > MAX_SHOWN_CHARS)}"
        raise InvalidRow(Reason.WRONG_TYPE, f"{name} {shown} is not a number") from None


def _refuse_outside(name: str, value: float | Decimal, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InvalidRow(Reason.OUT_OF_RANGE, f"{name} {value} is not between {low} and {high}")


def parse_all_carried(values: Mapping[str, Any]) -> dict[str, Any]:
    """The carried columns of a row, each an Arrow array of one.

    Raises:
        InvalidRow: a value is too large, or damaged.
    """
    return {
        name.removeprefix("carry."): _parse_carried(value, name.removeprefix("carry."))
        for name, value in values.items()
        if name.startswith("carry.")
    }


def _parse_carried(value: pa.Array[Any] | int | str, name: str) -> pa.Array[Any]:
    if isinstance(value, str):
        raise InvalidRow(Reason.INVALID_TEXT, f"carried column {name!r}: {value}")
    if isinstance(value, int):
        raise InvalidRow(
            Reason.OUT_OF_RANGE,
            f"carried column {name!r} holds {value} bytes, at most {MAX_CARRIED_BYTES}",
        )
    try:
        value.validate(full=True)
    except pa.ArrowInvalid as error:
        message = f"carried column {name!r}: {footers.first_line(error)}"
        raise InvalidRow(Reason.INVALID_TEXT, message) from None
    return value

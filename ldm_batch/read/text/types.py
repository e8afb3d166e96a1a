"""Text cells -> cells of the types that a job gives their columns, exactly or not at all.

Pure; must not know files or rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, TypeAlias

import pyarrow as pa

MAX_DIGITS = 400
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,6})?")
BOOLEANS = {"true": True, "false": False}
Parse: TypeAlias = "Callable[[str], Any]"


class OtherType(Exception):
    """A text that does not stand for a value of the type that is asked for."""


def parse_number(text: str) -> int | float:
    """The number that a text stands for: whole ones exactly, `64.0` and `1e3` among them.

    Raises:
        OtherType: it is no number, or no finite one.
    """
    stripped = text.strip()
    if len(stripped) > MAX_DIGITS or NUMBER.fullmatch(stripped) is None:
        raise OtherType
    if stripped.isdecimal():
        return int(stripped)
    number = Decimal(stripped)
    if abs(number.adjusted()) <= MAX_DIGITS and number == number.to_integral_value():
        return int(number)
    return float(number)


def arrow_type(name: str) -> Any:
    """The Arrow type of a name of `source.types`."""
    aliases: Any = pa.type_for_alias  # its stubs know names only as literals
    return aliases(name)


def parser(name: str) -> Parse:
    """What makes a value of a type of a text; it raises `OtherType`."""
    if name == "string":
        return str
    if name == "bool":
        return _parse_bool
    if name.startswith("float"):
        largest = float("3.4028234663852886e38") if name == "float32" else math.inf
        return lambda text: _parse_float(text, largest)
    bits = int(name.removeprefix("u").removeprefix("int"))
    low, high = (
        (0, 2**bits - 1) if name.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    )
    return lambda text: _parse_whole(text, low, high)


def parsers(types: Mapping[str, str]) -> dict[str, Parse]:
    """What reads each column that is no text, by its name."""
    return {name: parser(kind) for name, kind in types.items() if kind != "string"}


def _parse_bool(text: str) -> bool:
    try:
        return BOOLEANS[text.strip().lower()]
    except KeyError:
        raise OtherType from None


def _parse_whole(text: str, low: int, high: int) -> int:
    number = parse_number(text)
    if isinstance(number, float) or not low <= number <= high:
        raise OtherType
    return number


def _parse_float(text: str, largest: float) -> float:
    try:
        number = float(parse_number(text))
    except OverflowError:
        raise OtherType from None
    if not -largest <= number <= largest or math.isinf(number):
        raise OtherType
    return number

"""Columns of every type that a dataset carries, with extreme values, and what is read of them."""

import datetime
import decimal
import uuid
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa

UUIDS = [uuid.UUID(int=0), uuid.UUID("12345678-1234-5678-1234-567812345678"), None]
ENTRIES = [[("a", 1), ("a", None)], None, []]
LAST = 253402300799999
"""Milliseconds to the end of the last year that Python has."""


def _decimals(digits: int, scale: int) -> list[Decimal | None]:
    with decimal.localcontext(prec=digits):
        largest = Decimal("9" * digits).scaleb(-scale)
    return [largest, largest.copy_negate(), None]


def _extension(kind: Any, storage: Sequence[Any]) -> Any:
    return pa.ExtensionArray.from_storage(kind, pa.array(storage, kind.storage_type))


def _shared(values: Sequence[Any]) -> Any:
    return pa.array(values, pa.string()).dictionary_encode()


def _ints() -> dict[str, Any]:
    kinds = [(pa.type_for_alias(f"int{bits}"), bits - 1, -1) for bits in (8, 16, 32, 64)]
    kinds += [(pa.type_for_alias(f"uint{bits}"), bits, 0) for bits in (8, 16, 32, 64)]
    return {
        str(kind): pa.array([2**bits - 1, sign * 2**bits, None], kind) for kind, bits, sign in kinds
    }


def _times() -> dict[str, Any]:
    zones = [pa.timestamp("ns"), pa.timestamp("ns", "Europe/Berlin")]
    day = 86400
    return {
        "ms": pa.array([LAST, -1, None], pa.timestamp("ms")),
        "us": pa.array([LAST * 1000 + 999, -1, None], pa.timestamp("us", "UTC")),
        **{str(kind): pa.array([2**63 - day * 10**9, -(2**63) + 1, None], kind) for kind in zones},
        "date32": pa.array([LAST // (day * 1000), -719162, None], pa.date32()),
        "time32": pa.array([day * 1000 - 1, 0, None], pa.time32("ms")),
        "time64": pa.array([day * 10**6 - 1, 0, None], pa.time64("us")),
        "time64_ns": pa.array([day * 10**9 - 1, 0, None], pa.time64("ns")),
        "duration": pa.array([2**63 - 1, -1, None], pa.duration("us")),
    }


def _nested() -> dict[str, Any]:
    inner = pa.struct([("x, y", pa.list_(pa.int8())), ("t", pa.timestamp("ns", "UTC"))])
    day = datetime.datetime(2026, 11, 28, tzinfo=datetime.UTC)
    return {
        "list": pa.array([[1, None], [], None], pa.list_(pa.int64())),
        "fixed_list": pa.array([[1.5, float("nan")], None, [0.0, -0.0]], pa.list_(pa.float32(), 2)),
        "list_of_nulls": pa.array([[None], None, []], pa.list_(pa.null())),
        "struct": pa.array([{"x, y": [1], "t": day}, {"x, y": None, "t": None}, None], inner),
        "deep": pa.array([[[{"x, y": [], "t": day}], None], None, []], pa.list_(pa.list_(inner))),
    }


UNCHANGED: dict[str, Any] = {
    **_ints(),
    **_times(),
    **_nested(),
    "bool": pa.array([True, False, None]),
    "float16": pa.array([65504.0, float("nan"), None], pa.float16()),
    "float32": pa.array([-0.0, 3.4028234663852886e38, None], pa.float32()),
    "float64": pa.array([5e-324, float("-inf"), None]),
    "decimal128": pa.array(_decimals(38, 10), pa.decimal128(38, 10)),
    "decimal256": pa.array(_decimals(76, 76), pa.decimal256(76, 76)),
    "text": pa.array(["", "\0 é 👩‍👩‍👧 \ud7ff\r\n", None]),
    "binary": pa.array([b"", bytes(range(256)) * 2000, None]),
    "fixed_binary": pa.array([b"\0\0\0", b"\xff\0a", None], pa.binary(3)),
    "nulls": pa.nulls(3),
}
"""Name -> three cells that come out as they are."""
CONVERTED: dict[str, tuple[Any, Any]] = {
    "large_text": (pa.array(["a", "", None], pa.large_string()), pa.array(["a", "", None])),
    "text_view": (pa.array(["a" * 20, "", None], pa.string_view()), pa.array(["a" * 20, "", None])),
    "large_binary": (
        pa.array([b"\xff", b"", None], pa.large_binary()),
        pa.array([b"\xff", b"", None]),
    ),
    "binary_view": (
        pa.array([b"\xff" * 20, b"", None], pa.binary_view()),
        pa.array([b"\xff" * 20, b"", None]),
    ),
    "dictionary": (_shared(["b", "a", None]), pa.array(["b", "a", None])),
    "list_of_shared": (
        pa.ListArray.from_arrays([0, 2, 2, 3], _shared(["b", None, "a"])),
        pa.array([["b", None], [], ["a"]]),
    ),
    "struct_of_shared": (
        pa.StructArray.from_arrays([_shared(["b", "a", None])], ["s"]),
        pa.array([{"s": "b"}, {"s": "a"}, {"s": None}]),
    ),
    "views": (
        pa.StructArray.from_arrays(
            [
                pa.array(["a" * 20, "b", None], pa.string_view()),
                _extension(pa.bool8(), [1, 0, None]),
            ],
            ["text", "is_so"],
        ),
        pa.array(
            [{"text": t, "is_so": s} for t, s in (("a" * 20, True), ("b", False), (None, None))]
        ),
    ),
    "large_list": (
        pa.array([["a"], [], None], pa.large_list(pa.large_string())),
        pa.array([["a"], [], None], pa.list_(pa.string())),
    ),
    "map": (
        pa.array(ENTRIES, pa.map_(pa.string(), pa.int32())),
        pa.array(
            [
                entries and [dict(zip(("key", "value"), e, strict=True)) for e in entries]
                for entries in ENTRIES
            ],
            pa.list_(pa.struct([("key", pa.string()), ("value", pa.int32())])),
        ),
    ),
    "decimal32": (
        pa.array(_decimals(9, 2), pa.decimal32(9, 2)),
        pa.array(_decimals(9, 2), pa.decimal128(9, 2)),
    ),
    "decimal64": (
        pa.array(_decimals(18, 0), pa.decimal64(18, 0)),
        pa.array(_decimals(18, 0), pa.decimal128(18, 0)),
    ),
    "uuid": (
        _extension(pa.uuid(), [value and value.bytes for value in UUIDS]),
        pa.array([value and str(value) for value in UUIDS]),
    ),
    "bool8": (_extension(pa.bool8(), [2, 0, None]), pa.array([True, False, None])),
    "json": (
        _extension(pa.json_(), ['{"a": 1.00}', "", None]),
        pa.array(['{"a": 1.00}', "", None]),
    ),
}
"""Name -> three cells, and what becomes of them: a type that `datasets` reads, the same values."""
INPUT = {**UNCHANGED, **{name: given for name, (given, _) in CONVERTED.items()}}
EXPECTED = {**UNCHANGED, **{name: wanted for name, (_, wanted) in CONVERTED.items()}}


def seen(column: Any) -> list[str]:
    """The cells of a column, told apart as far as they differ: `-0.0`, NaN, years beyond 9999."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    return [repr(value) for value in _plain(column).to_pylist()]


def _plain(column: Any) -> Any:
    """A column whose cells Python can hold: of moments and times how many units they count."""
    kind = column.type
    if pa.types.is_temporal(kind):
        return column.view(pa.int32() if kind.bit_width == 32 else pa.int64())
    return column

"""Carried columns: the type in which a dataset has them, and their cells in that type.

A dataset has one type for all its files, which `datasets` can read; what is no such type and
becomes one exactly is converted, all else refused. Must not know files, plans or rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import starmap
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ldm_batch.read import cells
from ldm_batch.read.cells import Cells

MAX_CARRIED_BYTES = 1024 * 1024
"""Of one carried cell: those of all rows are in memory until their shard is written."""
INT_BITS: Mapping[Any, int] = {
    pa.int8(): 7,
    pa.int16(): 15,
    pa.int32(): 31,
    pa.int64(): 63,
    pa.uint8(): 8,
    pa.uint16(): 16,
    pa.uint32(): 32,
    pa.uint64(): 64,
}
"""Whole numbers up to 2 to this power; negative ones as well, of the first line."""
FLOAT_BITS: Mapping[Any, int] = {pa.float16(): 11, pa.float32(): 24, pa.float64(): 53}
"""Whole numbers up to 2 to this power are floats of their own."""
_FIRST = pa.array([0])
MAX_DIGITS, MAX_LARGE_DIGITS = 38, 76


class NotCarried(Exception):
    """A type that no reader of a dataset would know; says what to do."""


def settled_type(declared: Any) -> pa.DataType:
    """The type in which a dataset that begins now carries a column of a file.

    Values stay what they are; an UUID becomes its usual text, a map the list of its entries.

    Raises:
        NotCarried: there is none.
    """
    if isinstance(declared, pa.UuidType):
        return pa.string()
    kind: pa.DataType = _settled(declared)
    try:
        pq.write_table(pa.schema([("column", kind)]).empty_table(), pa.BufferOutputStream())
    except (pa.ArrowException, OSError) as error:
        raise NotCarried("which Parquet cannot hold") from error
    return kind


def _settled(kind: Any) -> Any:
    if pa.types.is_dictionary(kind):
        return _settled(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return _settled_extension(kind)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_decimal(kind):
        return _decimal(kind.precision, kind.scale)
    if pa.types.is_map(kind):
        entry = [("key", _settled(kind.key_type)), ("value", _settled(kind.item_type))]
        return pa.list_(pa.struct(entry))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_settled(kind.value_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_settled(kind.value_type), kind.list_size)
    if pa.types.is_struct(kind):
        return _settled_struct(kind)
    if pa.types.is_nested(kind) or pa.types.is_interval(kind):
        raise NotCarried("which no reader would know; write it as a list or a struct")
    return pa.date32() if pa.types.is_date64(kind) else kind


def _settled_extension(kind: Any) -> pa.DataType:
    if isinstance(kind, pa.Bool8Type):
        return pa.bool_()
    if isinstance(kind, pa.JsonType):
        return pa.string()
    raise NotCarried("which `datasets` cannot read; write it as text, a list or a struct")


def _settled_struct(kind: Any) -> pa.DataType:
    fields = [kind.field(i) for i in range(kind.num_fields)]
    if len({part.name for part in fields}) < len(fields):
        raise NotCarried("of which two fields have one name; write them under two")
    return pa.struct([(part.name, _settled(part.type)) for part in fields])


def common_type(one: Any, other: Any) -> Any:
    """The settled type that holds the values of two, exactly; None where there is none."""
    for kind, wider in ((one, other), (other, one)):
        if kind == wider or pa.types.is_null(kind):
            return wider
    if one in INT_BITS or one in FLOAT_BITS:
        return _common_number(one, other)
    if pa.types.is_decimal(one) and pa.types.is_decimal(other):
        return _common_decimal(one, other)
    if _holds_bytes(one) and _holds_bytes(other):
        return pa.binary()
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        return _common_struct(one, other)
    if _is_list(one) and _is_list(other):
        value = common_type(one.value_type, other.value_type)
        if value is None:
            return None
        sizes = {getattr(kind, "list_size", None) for kind in (one, other)}
        [size] = sizes if len(sizes) == 1 else [None]
        return pa.list_(value) if size is None else pa.list_(value, size)
    return None


def _common_number(one: Any, other: Any) -> Any:
    if other in INT_BITS and one in INT_BITS:
        is_signed = any(pa.types.is_signed_integer(kind) for kind in (one, other))
        bits = max(INT_BITS[one], INT_BITS[other])
        fitting = (
            kind
            for kind, held in INT_BITS.items()
            if held >= bits and pa.types.is_signed_integer(kind) == is_signed
        )
        return next(fitting, None)
    if other in INT_BITS or other in FLOAT_BITS:
        bits = max({**INT_BITS, **FLOAT_BITS}[kind] for kind in (one, other))
        return next((kind for kind, held in FLOAT_BITS.items() if held >= bits), None)
    return None


def _decimal(digits: int, scale: int) -> pa.DataType:
    if digits > MAX_DIGITS:
        return pa.decimal256(digits, scale)
    return pa.decimal128(digits, scale)


def _common_decimal(one: Any, other: Any) -> pa.DataType | None:
    scale = max(one.scale, other.scale)
    digits = scale + max(one.precision - one.scale, other.precision - other.scale)
    return _decimal(digits, scale) if digits <= MAX_LARGE_DIGITS else None


def _common_struct(one: Any, other: Any) -> Any:
    fields = [[kind.field(i) for i in range(kind.num_fields)] for kind in (one, other)]
    if [part.name for part in fields[0]] != [part.name for part in fields[1]]:
        return None
    pairs = zip(*([part.type for part in parts] for parts in fields), strict=True)
    types: list[Any] = list(starmap(common_type, pairs))
    if None in types:
        return None
    return pa.struct(list(zip([part.name for part in fields[0]], types, strict=True)))


def _holds_bytes(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind))


def can_carry(declared: pa.DataType, planned: pa.DataType) -> bool:
    """Tell whether a planned type holds the values of a file's column, exactly."""
    if declared == planned:
        return True
    try:
        wanted = settled_type(planned)
        return bool(common_type(settled_type(declared), wanted) == wanted)
    except NotCarried:
        return False


def carried_cells(column: Cells, kind: pa.DataType) -> list[Cells | int | str]:
    """Each cell of a column as an array of one.

    Args:
        kind: the planned type, which `can_carry` them.

    Returns:
        In place of a cell that is too large, its size in bytes; of one that is damaged, what is
        wrong with it.
    """
    column = cells.without_views(column)
    if not pa.types.is_nested(column.type) and column.nbytes <= MAX_CARRIED_BYTES:
        try:
            column = _converted(column, kind)
        except pa.ArrowException:
            return [_carried(column.slice(i, 1), kind) for i in range(len(column))]
        return [column.slice(i, 1) for i in range(len(column))]
    return [_carried(column.slice(i, 1), kind) for i in range(len(column))]


def _carried(cell: Cells, kind: pa.DataType) -> Cells | int | str:
    try:
        if not _can_be_taken(cell.type):
            cell = _converted(cell, kind)
        num_bytes = cells.num_bytes(cell) if cells.has_shared(cell.type) else cell.nbytes
        if num_bytes > MAX_CARRIED_BYTES:
            return int(num_bytes)
        copy = cell.take(_FIRST)  # a small value does not keep its large neighbours
        converted: Cells = _converted(copy, kind)
    except pa.ArrowException as error:
        return str(error).partition("\n")[0]
    return converted


@lru_cache(maxsize=64)
def _can_be_taken(kind: pa.DataType) -> bool:
    """False of what holds views at some depth."""
    try:
        cells.null_of(kind).take(_FIRST)
    except pa.ArrowNotImplementedError:
        return False
    return True


def _converted(column: Any, kind: Any) -> Any:
    """A column in another type, every value unchanged.

    Raises:
        pa.ArrowException: a value is damaged.
    """
    if column.type == kind:
        return column
    if isinstance(column.type, pa.UuidType):
        texts = [None if value is None else str(value) for value in column.to_pylist()]
        return pa.array(texts, pa.string()).cast(kind)
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.storage
    return column.cast(kind)

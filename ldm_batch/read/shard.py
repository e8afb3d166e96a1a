"""One shard of Parquet -> rows and rejections, in bounded memory.

Must not know pipelines, images or the sink. Only the shard's rows are ever held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import partial
from typing import Any

import pyarrow as pa

from ldm_batch.columns import COLUMNS, TaskColumns
from ldm_batch.errors import ShardError
from ldm_batch.identity import derive_key
from ldm_batch.read import matching
from ldm_batch.read.batches import UsedColumns, as_shard_error, find_columns, read_batches
from ldm_batch.read.carried import carried_cells
from ldm_batch.read.cells import Cells
from ldm_batch.read.rows import (
    InvalidRow,
    NarrowFloat,
    ParseRow,
    RowContext,
    RowPlace,
    parse_key,
    refuse_faulty,
)
from ldm_batch.read.text.columns import LINE
from ldm_batch.records import Reason, Rejection, Row, Shard

NARROW_FLOATS = {pa.float16(): 11, pa.float32(): 24}
"""Bits of their whole numbers, up to which each is a float of its own."""


@dataclass(frozen=True, slots=True)
class ShardRows:
    """The rows of a shard in input order, valid ones and rejections apart.

    `carried` holds name and Arrow type of the columns that rows carry along, `lines` the number of
    the line of each row of a text file, by its place there.
    """

    rows: list[Row] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    carried: list[tuple[str, pa.DataType]] = field(default_factory=list)
    lines: dict[int, int] = field(default_factory=dict)

    def with_lines(self, rejections: Iterable[Rejection]) -> list[Rejection]:
        """Rejections that say at which line of a text file their row begins."""
        return [
            replace(one, message=f"line {self.lines[one.input_row]}: {one.message}")
            if one.input_row in self.lines
            else one
            for one in rejections
        ]


def read_shard(
    shard: Shard,
    columns: TaskColumns,
    parse_row: ParseRow,
    context: RowContext,
) -> ShardRows:
    """Read and check the rows of one shard.

    Args:
        shard: a row range of a planned file.
        columns: of the task.
        parse_row: the task's.
        context: what it reads with; height and width of its call must be set, if rows bring no
            images.

    Raises:
        ShardError: the file is gone, is damaged, or is not the one that was planned.
    """
    found = ShardRows()
    seen: set[str] = set()
    rows = _read_values(shard, columns, context, found.carried)
    if context.images is not None:
        rows = context.images.read_ahead(rows)
    for number, values in enumerate(rows):
        place = shard.row_start + number
        key = derive_key(shard.file.name, place)
        if LINE in values:
            found.lines[place] = values[LINE]
        try:
            refuse_faulty(values)
            key = parse_key(values, key, context.form)
            if key in seen:
                raise InvalidRow(Reason.DUPLICATE_ID, f"id {key!r} stands twice in this shard")
            seen.add(key)
            found.rows.append(parse_row(values, RowPlace(number, place, key), context))
        except InvalidRow as invalid:
            found.rejections.append(Rejection(key, place, invalid.reason, str(invalid)))
    if len(found.rows) + len(found.rejections) != shard.num_rows:
        raise ShardError(f"{shard.file.uri}: fewer rows than its footer says")
    return found


def _read_values(
    shard: Shard,
    task: TaskColumns,
    context: RowContext,
    carried: list[tuple[str, pa.DataType]],
) -> Iterator[Mapping[str, Any]]:
    """Raw values of each row by field; carried columns under their own name as arrays of one."""
    with as_shard_error(shard):
        used = find_columns(shard, task, context.source, context.types)
        carried += used.carried
        for batch in read_batches(shard, used, context.source, is_image=task.has_image):
            yield from _batch_values(batch, used)


def _batch_values(batch: pa.RecordBatch, used: UsedColumns) -> Iterator[Mapping[str, Any]]:
    lists: dict[str, Sequence[Any]] = {}
    for name_in_row, column in used.fields.items():
        convert = _image_cells if COLUMNS[name_in_row].type == "image" else _python_values
        lists[name_in_row] = _cells(batch.column(column), convert)
    for name, kind in used.carried:
        convert = partial(carried_cells, kind=kind)
        lists[f"carry.{name}"] = _cells(batch.column(used.carry[name]), convert)
    for name in used.of_conversion:
        lists[name] = batch.column(name).to_pylist()
    for i in range(batch.num_rows):
        yield {name: values[i] for name, values in lists.items()}


def _cells(column: Cells, convert: Callable[[Cells], list[Any]]) -> list[Any]:
    """Convert a column; a value that a dictionary repeats is held once."""
    if not isinstance(column, pa.DictionaryArray):
        return convert(column)
    used = column.indices.unique().drop_null()
    distinct = dict(zip(used.to_pylist(), convert(column.dictionary.take(used)), strict=True))
    [null] = convert(pa.nulls(1, column.type.value_type))
    return [null if i is None else distinct[i] for i in column.indices.to_pylist()]


def _python_values(column: Cells) -> list[Any]:
    """Numbers, and text as bytes (UTF-8, unchecked)."""
    if isinstance(column, pa.ExtensionArray) and isinstance(column.type, pa.JsonType):
        column = column.storage
    kind = column.type
    if isinstance(kind, pa.UuidType):
        return [None if v is None else str(v).encode() for v in column.to_pylist()]
    if matching.holds_text(kind):
        return list(column.cast(pa.large_binary()).to_pylist())
    if kind in NARROW_FLOATS:
        bits = NARROW_FLOATS[kind]
        return [None if v is None else NarrowFloat(v, bits) for v in column.to_pylist()]
    if pa.types.is_decimal(kind):
        return [None if v is None else _whole_if_it_is(v) for v in column.to_pylist()]
    return list(column.to_pylist())


def _whole_if_it_is(number: Decimal) -> Decimal | int:
    """A decimal as a whole number, where it has no fraction: all its digits stay."""
    return int(number) if number == number.to_integral_value() else number


def _image_cells(column: Cells) -> list[Any]:
    """Bytes and path (UTF-8, unchecked) of each image; both None where there is none."""
    if isinstance(column, pa.StructArray):
        names = [column.type.field(i).name for i in range(column.type.num_fields)]
        found = dict(zip(names, column.flatten(), strict=True))
        parts = {name: found[name] for name in matching.IMAGE_PARTS if name in found}
    else:
        parts = {"path" if matching.is_text(column.type) else "bytes": column}
    nothing: list[bytes | None] = [None] * len(column)
    lists = {name: part.cast(pa.large_binary()).to_pylist() for name, part in parts.items()}
    cells = zip(lists.get("bytes", nothing), lists.get("path", nothing), strict=True)
    return [{"bytes": data, "path": path} for data, path in cells]

"""Cells of any type: what each takes, copies that Parquet can hold, digests of those left out.

A cell is an Arrow array of one. Must not know rows, shards or the limits of what is kept.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ldm_batch.read.matching import IMAGE_PARTS, is_image

Cells: TypeAlias = "pa.Array[Any]"
"""A column of some rows, of any type."""
_FIRST = pa.array([0])
_TOO_MANY_BYTES = 2**63 - 1
"""Of cells of which nobody can tell what copies of them take."""


def stored_type(kind: Any) -> pa.DataType:
    """The type in which copies of cells are kept: without dictionaries, whose values a cell shares
    with all others, without views, and with fields that may all be null."""
    plain: pa.DataType = kind
    if pa.types.is_dictionary(kind):
        plain = stored_type(kind.value_type)
    elif pa.types.is_string_view(kind):
        plain = pa.large_string()
    elif pa.types.is_binary_view(kind):
        plain = pa.large_binary()
    elif pa.types.is_struct(kind):
        plain = pa.struct([_stored_field(kind.field(i)) for i in range(kind.num_fields)])
    elif pa.types.is_map(kind):
        plain = pa.map_(stored_type(kind.key_type), stored_type(kind.item_type))
    elif pa.types.is_fixed_size_list(kind):
        plain = pa.list_(_stored_field(kind.value_field), kind.list_size)
    elif pa.types.is_large_list(kind):
        plain = pa.large_list(_stored_field(kind.value_field))
    elif pa.types.is_list(kind):
        plain = pa.list_(_stored_field(kind.value_field))
    return plain


def _stored_field(field: pa.Field[Any]) -> pa.Field[Any]:
    return field.with_type(stored_type(field.type)).with_nullable(True)


def can_be_stored(kind: pa.DataType) -> bool:
    """Tell whether Parquet can hold cells of a type in a struct, and give them back: tried with two
    nulls. A struct is one level more, and readers take only so many."""
    file = pa.BufferOutputStream()
    try:
        row = pa.StructArray.from_arrays([null_of(kind)], fields=[pa.field("cell", kind)])
        rows = pa.concat_arrays([row, row])
        pq.write_table(pa.table({"row": rows}), file)
        pq.read_schema(pa.BufferReader(file.getvalue()))
    except (pa.ArrowException, OSError):
        return False
    return True


def null_of(kind: Any) -> Cells:
    """A cell that is null."""
    cell: Cells = pa.nulls(1, kind)
    return cell


def without_views(column: Cells) -> Cells:
    """A column whose cells can be taken; of one of views, a copy."""
    is_view = pa.types.is_string_view(column.type) or pa.types.is_binary_view(column.type)
    return column.cast(stored_type(column.type)) if is_view else column


def cell_at(column: Cells, place: int) -> Cells:
    """A cell of a column, which still shares the column's memory; null where a dictionary has it
    so."""
    cell = column.slice(place, 1)
    if isinstance(cell, pa.DictionaryArray):
        number = cell.indices[0].as_py()
        return null_of(cell.type.value_type) if number is None else cell_at(cell.dictionary, number)
    return cell


def copied(column: Cells, places: Sequence[int], kind: pa.DataType) -> Cells:
    """Copies of some cells of a column, which keep no other one in memory.

    Args:
        kind: the column's `stored_type`.

    Raises:
        pa.ArrowException: one of them is damaged: text that is no UTF-8, ...
    """
    copies = column.take(pa.array(places)).cast(kind)
    copies.validate(full=True)
    return copies


def num_bytes(cells: Cells) -> int:
    """Bytes that copies of cells take, and one more for each value within lists and structs.

    Of texts and binary values, these of the texts and values alone.
    """
    kind = cells.type
    if isinstance(cells, pa.ExtensionArray):
        return num_bytes(cells.storage)
    if isinstance(cells, pa.DictionaryArray):
        return _num_shared_bytes(cells)
    if isinstance(cells, pa.MapArray):
        return num_bytes(cells.cast(pa.list_(pa.struct([kind.key_field, kind.item_field]))))
    if isinstance(cells, (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray)):
        return _num_inner_bytes(cells.flatten())
    if isinstance(cells, pa.StructArray):
        return sum(_num_inner_bytes(part) for part in cells.flatten())
    return _sum(_lengths(cells)) if _has_lengths(kind) else cells.nbytes


def _num_inner_bytes(values: Cells) -> int:
    return len(values) + num_bytes(values)


def _num_shared_bytes(cells: pa.DictionaryArray[Any, Any]) -> int:
    """What values of a dictionary take where each has a copy of its own."""
    kind = cells.type.value_type
    if _has_lengths(kind):
        return _sum(_lengths(cells.dictionary).take(cells.indices))
    return _TOO_MANY_BYTES if pa.types.is_nested(kind) else 32 * len(cells)


def _lengths(values: Any) -> Cells:
    lengths: Cells = pc.binary_length(values)
    return lengths


def _sum(numbers: Any) -> int:
    return int(pc.sum(numbers).as_py() or 0)


def _has_lengths(kind: pa.DataType) -> bool:
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return bool(is_text or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def is_image_struct(kind: pa.DataType) -> bool:
    """Tell whether a type is that of images with their paths and nothing else: `{bytes, path}`."""
    if not pa.types.is_struct(kind) or not is_image(kind):
        return False
    return sorted(kind.field(i).name for i in range(kind.num_fields)) == sorted(IMAGE_PARTS)


def part_of(cell: Cells, name: str) -> Cells:
    """A field of a cell that is a struct; null where the struct is."""
    assert isinstance(cell, pa.StructArray)
    return without_views(cell.flatten()[cell.type.get_field_index(name)])


def digest_of(cell: Cells) -> tuple[int, str | None]:
    """How many bytes a cell has, and their SHA-256 (hexadecimal).

    Of text and binary values their own bytes; of an image with its path, those of the image; of any
    other cell, those of an Arrow IPC stream of one batch with one column `cell`, which holds the
    copy that `take([0])` makes. None where values of a dictionary stand within a list or struct:
    what a small file makes of these may be of any size.
    """
    if is_image_struct(cell.type) and (image := part_of(cell, "bytes")).null_count == 0:
        cell = image
    if _has_lengths(cell.type):
        raw = cell[0].as_buffer()
        return raw.size, hashlib.sha256(raw).hexdigest()
    if has_shared(cell.type):
        return num_bytes(cell), None
    batch = pa.record_batch([cell.take(_FIRST)], names=["cell"])
    stream = _Hashed()
    with pa.ipc.new_stream(stream, batch.schema) as writer:
        writer.write_batch(batch)
    return stream.size_bytes, stream.sha256.hexdigest()


def has_shared(kind: Any) -> bool:
    """Tell whether a type has a dictionary at some depth."""
    if pa.types.is_struct(kind):
        return any(has_shared(kind.field(i).type) for i in range(kind.num_fields))
    if pa.types.is_map(kind):
        return has_shared(kind.key_type) or has_shared(kind.item_type)
    if pa.types.is_nested(kind) and hasattr(kind, "value_type"):
        return has_shared(kind.value_type)
    return bool(pa.types.is_dictionary(kind))


class _Hashed(io.RawIOBase):
    """A file that keeps nothing of what is written but its size and digest."""

    def __init__(self) -> None:
        self.size_bytes, self.sha256 = 0, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self.size_bytes += len(data)
        return len(data)

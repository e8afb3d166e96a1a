"""The rejected rows of a shard -> their cells, read a second time and kept within limits.

Good rows keep nothing for this; a shard without rejections is read once. Must not know why a row
was rejected.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pyarrow as pa

from ldm_batch.columns import TaskColumns
from ldm_batch.config import SourceConfig
from ldm_batch.errors import ShardError
from ldm_batch.read import cells
from ldm_batch.read import footer as footers
from ldm_batch.read.batches import as_shard_error, find_columns, read_batches
from ldm_batch.read.cells import Cells
from ldm_batch.read.input_types import NO_TYPES, InputTypes
from ldm_batch.read.text.columns import MESSAGE, REASON
from ldm_batch.records import Shard
from ldm_batch.write.rejections import OMITTED_TYPE, RejectedRows

MAX_CELL_BYTES = 64 * 1024
"""Larger cells of a rejected row are named by size and digest."""
MAX_SHARD_BYTES = 64 * 1024 * 1024
"""Of all cells of a shard's rejected rows, which are in memory together; later ones are named."""
TOLD_BESIDE = (REASON, MESSAGE)
"""Of a row that was no row in its text file: what the rejection says already."""
UNUSABLE = (*footers.UNREADABLE, RecursionError)
"""What a cell raises that is damaged, or nested more deeply than Python follows."""


def read_rejected(
    shard: Shard,
    task: TaskColumns,
    source: SourceConfig,
    places: Collection[int],
    types: InputTypes = NO_TYPES,
) -> RejectedRows:
    """Read the mapped and carried columns of some rows of a shard.

    Args:
        task: the columns of the task.
        places: of the rows in the input file, from 0; at least one.
        types: what the plan says of its input's columns.

    Raises:
        ShardError: the file is gone, is damaged, or is not the one that was planned.
    """
    wanted = sorted(places)
    first, last = wanted[0], wanted[-1]
    part = replace(shard, row_start=first, num_rows=last + 1 - first)
    found: list[RejectedRows] = []
    with as_shard_error(shard):
        used = find_columns(shard, task, source, types)
        beside = TOLD_BESIDE if used.of_conversion else ()
        kept = [name for name in used.names if name not in beside]
        keeper = _Keeper(used.footer.schema, kept)
        for batch in read_batches(part, used, source, is_image=task.has_image):
            here = slice(bisect_left(wanted, first), bisect_left(wanted, first + batch.num_rows))
            if picked := [place - first for place in wanted[here]]:
                found.append(keeper.keep(batch, picked))
            first += batch.num_rows
    if first != last + 1:
        raise ShardError(f"{shard.file.uri}: fewer rows than its footer says")
    rows, omitted = ([getattr(some, name) for some in found] for name in ("rows", "omitted"))
    return RejectedRows(pa.concat_arrays(rows), pa.concat_arrays(omitted))


class _Keeper:
    """Copies of cells, in the order in which they are read, until there are too many bytes."""

    def __init__(self, schema: pa.Schema, names: list[str]) -> None:
        kinds = {name: _kept_type(schema.field(name).type) for name in names}
        self._names = names
        self._kinds = {name: kind for name, kind in kinds.items() if kind is not None}
        self._left = MAX_SHARD_BYTES

    def keep(self, batch: pa.RecordBatch, picked: list[int]) -> RejectedRows:
        """Some rows of a batch; a cell that is left out is null, and named beside its row."""
        omitted: list[list[dict[str, Any]]] = [[] for _ in picked]
        kept = [
            self._keep_column(name, batch.column(name), picked, omitted) for name in self._names
        ]
        fields = [pa.field(name, kind) for name, kind in self._kinds.items()]
        columns = [copies for copies in kept if copies is not None]
        rows = pa.StructArray.from_arrays(columns, fields=fields)
        return RejectedRows(rows, pa.array(omitted, OMITTED_TYPE))

    def _keep_column(
        self, name: str, column: Cells, picked: list[int], omitted: list[list[dict[str, Any]]]
    ) -> Cells | None:
        """Copies of the cells of a column, if Parquet can hold them; what is left out is added to
        `omitted`.

        Cells are copied together where they are small and sound, else by halves.
        """
        kind, column = self._kinds.get(name), cells.without_views(column)
        copies: list[Cells] = []
        described: dict[int, dict[str, Any]] = {}
        spans = [range(len(picked))]
        while spans:
            span = spans.pop()
            copy = self._copy(column, picked[span.start : span.stop], kind)
            if copy is None and len(span) > 1:
                middle = len(span) // 2
                spans += [span[middle:], span[:middle]]
                continue
            if copy is None:
                place = picked[span.start]
                copy, is_whole = self._keep_cell(cells.cell_at(column, place), kind)
                if not is_whole:
                    omitted[span.start].append(_describe(name, column, place, described))
            copies.append(copy)
        return None if kind is None else pa.concat_arrays(copies)

    def _keep_cell(self, cell: Cells, kind: pa.DataType | None) -> tuple[Cells, bool]:
        """What is kept of a cell that cannot be copied: an image's path, or nothing; whether there
        is no more of it."""
        if kind is None or cell.null_count or not cells.is_image_struct(kind):
            return cells.null_of(kind or cell.type), bool(cell.null_count)
        fields = {kind.field(i).name: kind.field(i) for i in range(kind.num_fields)}
        path = self._copy(cells.part_of(cell, "path"), [0], fields["path"].type)
        if path is None:
            return cells.null_of(kind), False
        parts = {"bytes": cells.null_of(fields["bytes"].type), "path": path}
        named = [parts[name] for name in fields]
        return pa.StructArray.from_arrays(named, fields=list(fields.values())), False

    def _copy(self, column: Cells, places: list[int], kind: pa.DataType | None) -> Cells | None:
        """Copies of some cells, if all of them are sound and there is room for them."""
        if kind is None:
            return None
        span = column.slice(places[0], places[-1] + 1 - places[0])
        try:
            if cells.num_bytes(span) > min(MAX_CELL_BYTES, self._left):
                return None
            copies = cells.copied(span, [place - places[0] for place in places], kind)
            self._left -= cells.num_bytes(copies)
        except UNUSABLE:
            return None
        return copies


def _kept_type(declared: pa.DataType) -> pa.DataType | None:
    """The type in which a column is kept; None where Parquet cannot hold it."""
    try:
        kind = cells.stored_type(declared)
        return kind if cells.can_be_stored(kind) else None
    except UNUSABLE:
        return None


def _describe(
    name: str, column: Cells, place: int, described: dict[int, dict[str, Any]]
) -> dict[str, Any]:
    """What is known of a cell that is left out; one that a dictionary repeats is hashed once."""
    if isinstance(column, pa.DictionaryArray):
        place, column = column.indices[place].as_py(), column.dictionary
    if place not in described:
        try:
            size_bytes, sha256 = cells.digest_of(cells.cell_at(column, place))
        except UNUSABLE:
            size_bytes, sha256 = None, None
        described[place] = {"column": name, "size_bytes": size_bytes, "sha256": sha256}
    return described[place]

"""The file of a shard's rejections: Parquet, a row for each rejected row of the input.

The same rejections are the same bytes, and so the same name. Must not know storage, nor how rows
are read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ldm_batch import identity
from ldm_batch.records import Rejection, Shard

_FIELDS: dict[str, pa.DataType] = {
    "key": pa.string(),
    "input_file": pa.string(),
    "input_row": pa.int64(),
    "reason": pa.string(),
    "message": pa.string(),
}
_OMITTED_FIELDS: dict[str, pa.DataType] = {
    "column": pa.string(),
    "size_bytes": pa.int64(),
    "sha256": pa.string(),
}
OMITTED_TYPE = pa.list_(pa.struct(list(_OMITTED_FIELDS.items())))
"""Of the cells of a row that are left out, where `row` has a null."""


@dataclass(frozen=True, slots=True)
class RejectedRows:
    """The rejected rows themselves, in input order."""

    rows: pa.StructArray
    """Their mapped and carried columns, under the input's own names."""
    omitted: pa.Array[Any]
    """Name, size in bytes and SHA-256 of the cells that are left out; see `OMITTED_TYPE`."""


@dataclass(frozen=True, slots=True)
class RejectionsFile:
    """What is published of a shard's rejections."""

    path: str
    """Below the sink."""
    content: bytes
    digest: str
    """SHA-256 (hexadecimal) of the content where the object names it, else nothing."""


def make_rejections_file(
    shard: Shard, rejections: Sequence[Rejection], rows: RejectedRows | None
) -> RejectionsFile:
    """The file of a shard's rejections; without rows, as plans of form 1 have it."""
    content = rejections_bytes(rejections, shard.file.name, rows)
    digest = "" if rows is None else hashlib.sha256(content).hexdigest()
    return RejectionsFile(identity.rejected_path(shard.id, digest), content, digest)


def rejections_bytes(
    rejections: Sequence[Rejection], input_file: str, rows: RejectedRows | None = None
) -> bytes:
    """The Parquet object that holds the rejected rows of a shard, in input order."""
    ordered = sorted(rejections, key=lambda rejection: rejection.input_row)
    table = pa.table(
        {
            "key": [r.key for r in ordered],
            "input_file": [input_file] * len(ordered),
            "input_row": [r.input_row for r in ordered],
            "reason": [str(r.reason) for r in ordered],
            "message": [r.message for r in ordered],
        },
        schema=pa.schema(_FIELDS),
    )
    if rows is not None:
        table = table.append_column("row", rows.rows).append_column("omitted", rows.omitted)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue().to_pybytes()

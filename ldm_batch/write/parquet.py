"""Images of one shard -> one Parquet object, in memory bounded by a row group.

Encoded images come from a spool (spool.py); the object is written in row order to a local file
without a name. Must not know storage or pipelines.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, cast, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from ldm_batch.columns import COLUMNS, IMAGE_COLUMNS, METADATA_KEY, ArrowType
from ldm_batch.errors import ShardError
from ldm_batch.write.spool import Spool

IMAGES_PER_ROW_GROUP = 100
"""Images that a reader fetches for one row of them, and that are in memory when they are written:
about 10 MB of 256 x 256 pixels in lossless WebP."""
ARROW_TYPES: Mapping[str, pa.DataType] = {
    kind: pa.type_for_alias(kind) for kind in get_args(ArrowType)
}
"""The types of our own columns, by name."""
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def object_schema(
    columns: Sequence[tuple[str, str]],
    carried: Mapping[str, pa.DataType],
    metadata: Mapping[str, Any],
) -> pa.Schema:
    """Arrow schema of an output object: images, what is recorded of them, what is carried along.

    Args:
        columns: name and type of each column, as the dataset's plan stores them.
        carried: Arrow types of the columns copied from the input.
        metadata: what the object says of its shard (JSON), under the key `ldm_batch`.

    Raises:
        ShardError: a carried column is not what the plan says.
    """
    fields = [(name, _arrow_type(name, alias, carried)) for name, alias in columns]
    features = {name: {"_type": "Image"} for name, alias in columns if alias == "image"}
    return pa.schema(
        fields,
        metadata={
            b"huggingface": json.dumps({"info": {"features": features}}).encode(),
            METADATA_KEY: json.dumps(metadata, sort_keys=True).encode(),
        },
    )


def _arrow_type(name: str, alias: str, carried: Mapping[str, pa.DataType]) -> pa.DataType:
    if alias == "image":
        return IMAGE_TYPE
    if name not in carried:
        if alias not in ARROW_TYPES:
            raise ShardError(f"column {name!r} ({alias}) is planned, and the input carries none")
        return ARROW_TYPES[alias]
    if str(carried[name]) != alias:
        raise ShardError(f"carried column {name!r} has type {carried[name]}, planned {alias}")
    return carried[name]


@contextmanager
def written_object(
    records: Sequence[tuple[int, Mapping[str, Any]]],
    spool: Spool,
    *,
    schema: pa.Schema,
    extension: str,
) -> Iterator[BinaryIO]:
    """Write the object of a shard to an unnamed local file and hand that file out.

    Args:
        records: number and record of each image, in the order of the output.
        spool: the encoded images, by number and column.
        schema: see `object_schema`.
        extension: file extension of the images, for the `path` that readers show.
    """
    shard = json.loads(schema.metadata[METADATA_KEY])["shard"]
    columns = [name for name in schema.names if name in IMAGE_COLUMNS]
    with tempfile.TemporaryFile(prefix="ldm_batch-") as file:
        with pq.ParquetWriter(file, schema, **_writer_options(schema)) as writer:
            for start in range(0, len(records), IMAGES_PER_ROW_GROUP):
                group = [*enumerate(records[start : start + IMAGES_PER_ROW_GROUP], start)]
                images = {
                    column: [
                        {
                            "bytes": spool.get((number, column)),
                            "path": f"{shard}-{place:06d}.{extension}",
                        }
                        for place, (number, _) in group
                    ]
                    for column in columns
                }
                writer.write_batch(_record_batch(images, [r for _, (_, r) in group], schema))
        yield cast(BinaryIO, file)


def _writer_options(schema: pa.Schema) -> dict[str, Any]:
    """Images as they are, other columns compressed, repeated values once, sums of every page."""
    images = [name for name in schema.names if name in IMAGE_COLUMNS]
    others = [name for name in schema.names if name not in images]
    repeated = [name for name in others if name in COLUMNS and COLUMNS[name].repeats]
    pixels = [f"{name}.bytes" for name in images]
    return {
        "compression": {p: "NONE" if p in pixels else "ZSTD" for p in _leaf_paths(schema)},
        "use_dictionary": repeated,
        "write_statistics": [name for name in others if name not in repeated],
        "write_page_checksum": True,
    }


def _leaf_paths(schema: pa.Schema) -> list[str]:
    """Parquet's own names of the columns, one for each leaf of a nested type."""
    buffer = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), buffer)
    leaves = pq.read_metadata(pa.BufferReader(buffer.getvalue())).schema
    return [leaves.column(i).path for i in range(len(leaves))]


def _record_batch(
    images: Mapping[str, Sequence[Mapping[str, Any]]],
    records: Sequence[Mapping[str, Any]],
    schema: pa.Schema,
) -> pa.RecordBatch:
    arrays = [
        pa.array(images[field.name], IMAGE_TYPE)
        if field.name in images
        else _column([record.get(field.name) for record in records], field.type)
        for field in schema
    ]
    return pa.record_batch(arrays, schema=schema)


def _column(values: Sequence[Any], kind: pa.DataType) -> pa.Array[Any]:
    """A column of Python values, or of carried cells, which are Arrow arrays of one."""
    if isinstance(values[0], pa.Array):
        cells: Sequence[pa.Array[Any]] = values
        return pa.concat_arrays(cells).cast(kind)
    return pa.array(values, kind)

"""Find footers of which the Parquet reader dies, by reading them in a process of their own.

Parquet's C++ reader ends the whole process on some damaged footers instead of raising, so a footer
is read here to the end before the driver reads it. Must not know files or plans.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

MAGIC = b"PAR1"
LENGTH_BYTES = 8


def parse_footer(raw: bytes) -> pq.ParquetFile:
    """Parse a footer by itself, as an empty Parquet file.

    Raises:
        pa.ArrowException: it is damaged.
    """
    return pq.ParquetFile(pa.BufferReader(MAGIC + raw + len(raw).to_bytes(4, "little") + MAGIC))


def find_deadly(footers: Sequence[bytes]) -> int | None:
    """Position of the first footer on which the reader dies; None where it survives them all."""
    package = str(Path(__file__).parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryFile(prefix="ldm_batch-") as file:
        for raw in footers:
            file.write(len(raw).to_bytes(LENGTH_BYTES, "little") + raw)
        file.seek(0)
        ended = subprocess.run(
            [sys.executable, "-m", __name__],
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            check=False,
        )
    num_survived = len(ended.stdout)
    return num_survived if num_survived < len(footers) else None


def _survive(source: BinaryIO, done: BinaryIO) -> None:
    """Read each footer to its last field, and write a byte after each."""
    while length := source.read(LENGTH_BYTES):
        raw = source.read(int.from_bytes(length, "little"))
        with contextlib.suppress(Exception):  # what can be caught is not deadly: the driver says
            _walk(parse_footer(raw))
        done.write(b".")
        done.flush()


def _walk(parsed: pq.ParquetFile) -> None:
    metadata = parsed.metadata
    _ = parsed.schema_arrow.names
    for i in range(metadata.num_columns):
        _ = metadata.schema.column(i).path
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for i in range(row_group.num_columns):
            chunk = row_group.column(i)
            _ = chunk.path_in_schema, chunk.total_uncompressed_size
            if chunk.statistics is not None and chunk.statistics.has_min_max:
                _ = chunk.statistics.min, chunk.statistics.max


if __name__ == "__main__":
    _survive(sys.stdin.buffer, sys.stdout.buffer)

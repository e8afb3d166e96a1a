"""Find footers of which the Parquet reader dies, by reading them in a process of their own.

Parquet's C++ reader ends the whole process on some damaged footers instead of raising, so a footer
is read here to the end before the driver reads it. Must not know files or plans.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ldm_batch.errors import JobError, one_line

MAGIC = b"PAR1"
LENGTH_BYTES = 8
READY = b"+"
"""What the process says before it reads a footer: until then no footer is to blame."""


def parse_footer(raw: bytes) -> pq.ParquetFile:
    """Parse a footer by itself, as an empty Parquet file.

    Raises:
        pa.ArrowException: it is damaged.
    """
    return pq.ParquetFile(pa.BufferReader(MAGIC + raw + len(raw).to_bytes(4, "little") + MAGIC))


def find_deadly(footers: Sequence[bytes], uris: Sequence[str] = ()) -> int | None:
    """Position of the first footer on which the reader dies; None where it survives them all.

    Args:
        uris: whose they are, for messages.

    Raises:
        JobError: the process that would read them does not start, or is taken away.
    """
    try:
        ended = _run(footers)
    except OSError as error:  # no memory, no more processes, no room for a temporary file, ...
        raise _not_checked(f"{error.strerror or error}") from error
    if not ended.stdout:
        raise _not_checked(_why_not_started(ended))
    num_survived = len(ended.stdout) - len(READY)
    if num_survived < len(footers) and ended.returncode == -signal.SIGKILL:
        told = f" at that of {uris[num_survived]}" if uris else ""
        raise _not_checked(f"it was killed{told}, probably for want of memory")
    return num_survived if num_survived < len(footers) else None


def _run(footers: Sequence[bytes]) -> subprocess.CompletedProcess[bytes]:
    package = str(Path(__file__).parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryFile(prefix="ldm_batch-") as file:
        for raw in footers:
            file.write(len(raw).to_bytes(LENGTH_BYTES, "little") + raw)
        file.seek(0)
        return subprocess.run(
            [sys.executable, "-m", __name__],
            stdin=file,
            capture_output=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            check=False,
        )


def _not_checked(why: str) -> JobError:
    return JobError(
        "source.uri: the footers of the input could not be checked: the process that reads them "
        f"first ({sys.executable}) did not start or was ended: {why}. The input may be sound: make "
        "room (memory, processes, temporary files) and run the same command again"
    )


def _why_not_started(ended: subprocess.CompletedProcess[bytes]) -> str:
    last = ended.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
    if ended.returncode < 0:
        return f"signal {-ended.returncode} ended it"
    return one_line(last) or f"exit code {ended.returncode}"


def _survive(source: BinaryIO, done: BinaryIO) -> None:
    """Read each footer to its last field, and write a byte before all and after each."""
    done.write(READY)
    done.flush()
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

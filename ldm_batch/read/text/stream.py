"""The bytes of a text file as a stream: hashed as they are stored, unpacked, and made UTF-8.

Holds one block at a time. Must not know lines or columns.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol

import pyarrow as pa

from ldm_batch.errors import JobError

BLOCK_BYTES = 1024 * 1024
READ_BYTES = 8 * BLOCK_BYTES
"""Asked of a file at once: in S3 each time is a request, and what unpacks asks for little."""
MAX_TEXT_BYTES = 64 * 1024**3
"""Of a file unpacked: a few kilobytes can unpack to any number of lines."""
NO_UTF_8 = b"\xff"
"""Stands in UTF-8 for what another encoding does not know, so that its line is refused."""
MARK_HANDLER = "ldm_batch.mark"
BEGINNINGS = {
    b"PAR1": "Parquet by its first bytes; let its name end in .parquet",
    b"PK\x03\x04": "a zip or a spreadsheet by its first bytes; export it as CSV in UTF-8",
    b"\x1f\x8b": "gzip by its first bytes; let its name end in .gz",
    b"BZh": "bzip2 by its first bytes; let its name end in .bz2",
    b"\x28\xb5\x2f\xfd": "zstandard by its first bytes; let its name end in .zst",
    b"\xff\xfe": "UTF-16 by its first bytes; set source.encoding=utf-16",
    b"\xfe\xff": "UTF-16 by its first bytes; set source.encoding=utf-16",
}
"""What is no text in UTF-8, though its name says so."""
DAMAGED = (EOFError, OSError, zlib.error, pa.ArrowException)
"""What unpacking raises of a damaged file."""

codecs.register_error(MARK_HANDLER, lambda error: ("\udcff", error.end))  # type: ignore[attr-defined]


class Readable(Protocol):
    """What is read in blocks."""

    def read(self, size: int, /) -> bytes:
        """Up to so many bytes; none at the end."""


class HashedFile(io.RawIOBase):
    """A file whose bytes are hashed as they are read, from its start to its end."""

    def __init__(self, file: BinaryIO) -> None:
        """Take a file at its start; it is not closed with this one."""
        self._file, self._sha256, self.size_bytes = file, hashlib.sha256(), 0

    def readable(self) -> bool:
        """It can be read."""
        return True

    def read(self, size: int = -1, /) -> bytes:
        """Read up to `size` bytes."""
        data = self._file.read(size)
        self._sha256.update(data)
        self.size_bytes += len(data)
        return data

    def readinto(self, buffer: Any, /) -> int:
        """Read into a buffer."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def finish(self) -> str:
        """Read what is left; the SHA-256 (hexadecimal) of all bytes."""
        while self.read(READ_BYTES):
            pass
        return self._sha256.hexdigest()


def read_text(
    file: HashedFile, uri: str, compression: str | None, encoding: str
) -> Iterator[bytes]:
    """Blocks of a file's text in UTF-8, without the mark that may begin it.

    What its encoding does not know becomes a byte that is no UTF-8.

    Args:
        file: at its start.
        uri: what messages call it.
        compression: `gzip`, `bz2`, `zstd`, or None.
        encoding: one of Python's names; UTF-8 is passed on as it is.

    Raises:
        JobError: it is damaged, too large, or by its first bytes something else than it is named.
    """
    blocks = _unpacked(file, uri, compression)
    if codecs.lookup(encoding).name == "utf-8":
        return _without_mark(blocks, uri)
    return _made_utf_8(blocks, encoding)


def _unpacked(file: HashedFile, uri: str, compression: str | None) -> Iterator[bytes]:
    total = 0
    try:
        unpacked = _open_packed(io.BufferedReader(file, READ_BYTES), compression)
        while block := unpacked.read(BLOCK_BYTES):
            total += len(block)
            if total > MAX_TEXT_BYTES:
                raise JobError(
                    f"{uri}: more than {MAX_TEXT_BYTES} bytes of text; split it into several files"
                )
            yield bytes(block)
    except DAMAGED as error:
        if compression is None:
            raise
        raise JobError(
            f"{uri}: cannot be unpacked as {compression}: {error}; it is damaged or cut off, put a "
            "whole one in its place"
        ) from error


def _open_packed(file: io.BufferedReader, compression: str | None) -> Readable:
    if compression == "gzip":
        return gzip.GzipFile(fileobj=file, mode="rb")
    if compression == "bz2":
        return bz2.BZ2File(file)
    if compression == "zstd":
        return pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")
    return file


def _without_mark(blocks: Iterator[bytes], uri: str) -> Iterator[bytes]:
    first = next(blocks, b"")
    while 0 < len(first) < 4 and (more := next(blocks, b"")):
        first += more
    for beginning, what in BEGINNINGS.items():
        if first.startswith(beginning):
            raise JobError(f"{uri}: is {what}")
    yield first.removeprefix(codecs.BOM_UTF8)
    yield from blocks


def _made_utf_8(blocks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)(MARK_HANDLER)
    is_first = True
    for block in blocks:
        text = decoder.decode(block)
        if is_first and text:
            is_first, text = False, text.removeprefix("\ufeff")
        yield text.encode("utf-8", "surrogateescape")
    yield decoder.decode(b"", final=True).encode("utf-8", "surrogateescape")

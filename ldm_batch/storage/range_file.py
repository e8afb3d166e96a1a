"""Bytes that are asked for by ranges, as a file: every read asks once, for exactly its bytes."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, BinaryIO, cast


class RangeFile(io.RawIOBase):
    """A file that is read by ranges; not safe in several threads, as files are."""

    def __init__(self, read_range: Callable[[int, int], bytes], size: int) -> None:
        """Wrap `read_range(start, stop)`, which returns those bytes of `size`, and fewer only where
        a file ends before its time."""
        self._read_range, self._size, self._position = read_range, size, 0

    def as_file(self) -> BinaryIO:
        """Itself, typed as the file that it is."""
        return cast(BinaryIO, self)

    def readable(self) -> bool:
        """It can be read."""
        return True

    def seekable(self) -> bool:
        """It can be read anywhere."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to where the next read begins."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        """Read up to `size` bytes, all that are left if negative; fewer only at the end."""
        stop = self._size if size < 0 else min(self._position + size, self._size)
        if stop <= self._position:
            return b""
        data = self._read_range(self._position, stop)
        self._position += len(data)
        return data

    def readall(self) -> bytes:
        """Read all that is left."""
        return self.read()

    def readinto(self, buffer: Any, /) -> int:
        """Read into a buffer."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

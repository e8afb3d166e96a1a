"""Files in one local file without a name, one after the other; nothing is left behind by a crash.

Must not know what is in them.
"""

from __future__ import annotations

import io
import os
import tempfile
from typing import IO, Any, BinaryIO, cast


class Pile:
    """Where files are written, the last one at the end."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None

    def begin(self) -> IO[bytes]:
        """The file to write the next one into, from where it stands."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="ldm_batch-")  # noqa: SIM115
        self._file.seek(0, os.SEEK_END)
        return self._file

    def end(self, start: int) -> BinaryIO:
        """What was written from a place on, as a file for reading."""
        file = self.begin()
        file.flush()
        return cast(BinaryIO, _Part(file.fileno(), start, file.tell()))

    def cut(self, start: int) -> None:
        """Forget what was written from a place on."""
        if self._file is not None:
            self._file.truncate(start)

    def close(self) -> None:
        """Give the room back; no part can be read any more."""
        if self._file is not None:
            self._file.close()
        self._file = None


class _Part(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, descriptor: int, start: int, stop: int) -> None:
        self._descriptor, self._start = descriptor, start
        self._size, self._position = stop - start, 0

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
        """Read up to `size` bytes, all that are left if negative."""
        left = max(0, self._size - self._position)
        wanted = left if size < 0 else min(size, left)
        data = os.pread(self._descriptor, wanted, self._start + self._position) if wanted else b""
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

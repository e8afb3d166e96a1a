"""Files in one local file without a name, one after the other; nothing is left behind by a crash.

Must not know what is in them.
"""

from __future__ import annotations

import os
import tempfile
from typing import IO, BinaryIO

from ldm_batch.storage import RangeFile


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
        descriptor = file.fileno()

        def read(begin: int, stop: int) -> bytes:
            return os.pread(descriptor, stop - begin, start + begin)

        return RangeFile(read, file.tell() - start).as_file()

    def cut(self, start: int) -> None:
        """Forget what was written from a place on."""
        if self._file is not None:
            self._file.truncate(start)

    def close(self) -> None:
        """Give the room back; no part can be read any more."""
        if self._file is not None:
            self._file.close()
        self._file = None

"""A file of which some parts are replaced, and some are in memory, as a file.

Must not know what the parts hold.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes of the file, from wherever they stand there."""

    start: int
    size_bytes: int


class SplicedFile(io.RawIOBase):
    """A file that is read through what was laid over it; everywhere else it is what it was."""

    def __init__(self, file: BinaryIO, free_bytes: int) -> None:
        """Wrap a file, of which so many bytes may be held in memory."""
        self._file, self._place, self._left = file, 0, free_bytes
        self._size = file.seek(0, io.SEEK_END)
        self._held: list[tuple[int, bytes]] = []
        self._laid: list[tuple[int, int, list[bytes | Kept], list[int]]] = []

    def hold(self, start: int, size_bytes: int) -> bool:
        """Read a part into memory, once, if there is room for it."""
        if not 0 <= size_bytes <= self._left:
            return False
        self._left -= size_bytes
        self._held.append((start, self.read_original(start, size_bytes)))
        return True

    def lay(self, start: int, size_bytes: int, parts: Sequence[bytes | Kept]) -> bool:
        """Put some parts, one after the other, in the place of a part of the file, and zeros after
        them; not where they are longer than it, or something is laid there already."""
        end = start + size_bytes
        if any(start < other and begin < end for begin, other, *_ in self._laid):
            return False
        starts, place = [], start
        for part in parts:
            starts.append(place)
            place += part.size_bytes if isinstance(part, Kept) else len(part)
        if place <= end:
            self._laid.append((start, end, list(parts), starts))
        return place <= end

    def read_original(self, start: int, size_bytes: int) -> bytes:
        """Read a part as it stands in the file itself."""
        for held, data in self._held:
            if held <= start and start + size_bytes <= held + len(data):
                return data[start - held : start - held + size_bytes]
        self._file.seek(start)
        return self._file.read(size_bytes)

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
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to where the next read begins."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def read(self, size: int = -1, /) -> bytes:
        """Read up to `size` bytes, all that are left if negative; fewer only at the end."""
        stop = self._size if size < 0 else min(self._place + size, self._size)
        read: list[bytes] = []
        while self._place < stop:
            data = self._read_some(self._place, stop)
            if not data:
                break
            read.append(data)
            self._place += len(data)
        return read[0] if len(read) == 1 else b"".join(read)

    def readinto(self, buffer: Any, /) -> int:
        """Read into a buffer."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _read_some(self, start: int, stop: int) -> bytes:
        """Bytes from a place on, as far as they are of one part."""
        for begin, end, parts, starts in self._laid:
            if begin <= start < end:
                return _read_laid(self, parts, starts, start, min(stop, end))
            if start < begin < stop:
                stop = begin
        return self.read_original(start, stop - start)


def _read_laid(
    file: SplicedFile, parts: list[bytes | Kept], starts: list[int], start: int, stop: int
) -> bytes:
    number = bisect_right(starts, start) - 1
    part, offset = parts[number], start - starts[number]
    size_bytes = part.size_bytes if isinstance(part, Kept) else len(part)
    wanted = min(stop - start, size_bytes - offset)
    if wanted <= 0:  # after the last part
        return bytes(stop - start)
    if isinstance(part, Kept):
        return file.read_original(part.start + offset, wanted)
    return part[offset : offset + wanted]

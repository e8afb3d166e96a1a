"""A file of which some parts are replaced, and some are in memory, as a file.

Must not know what the parts hold.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from ldm_batch.storage import RangeFile


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes of the file, from wherever they stand there."""

    start: int
    size_bytes: int


class SplicedFile(RangeFile):
    """A file that is read through what was laid over it; everywhere else it is what it was."""

    def __init__(self, file: BinaryIO, free_bytes: int) -> None:
        """Wrap a file, of which so many bytes may be held in memory."""
        super().__init__(self._read_between, file.seek(0, io.SEEK_END))
        self._file, self._left = file, free_bytes
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

    def _read_between(self, start: int, stop: int) -> bytes:
        read: list[bytes] = []
        while start < stop and (data := self._read_some(start, stop)):
            read.append(data)
            start += len(data)
        return read[0] if len(read) == 1 else b"".join(read)

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

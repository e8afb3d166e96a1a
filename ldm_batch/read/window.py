"""Files of images that are read ahead: how many at once, and how much of each.

Bounds the memory of what waits; must not know rows, or what the bytes are.
"""

from __future__ import annotations

from dataclasses import dataclass

from ldm_batch.storage import Access, read_file

READ_AHEAD = 8
"""Rows whose files are read at once, which waits for the store and not for a CPU."""
WINDOW_BYTES = 64 * 1024 * 1024
"""What is read ahead at most, one request a file; of a longer file only so much that this shows,
and all of it when its turn comes."""


@dataclass(frozen=True, slots=True)
class Longer:
    """A file that is too long to be read ahead."""

    uri: str


class Window:
    """Reads files, each one byte past the limit at most."""

    def __init__(self, max_bytes: int, num_per_row: int, access: Access) -> None:
        """Share the window out between the files of as many rows as are read at once."""
        self._limit, self._access = max_bytes + 1, access
        self._start = min(self._limit, WINDOW_BYTES // (READ_AHEAD * max(num_per_row, 1)))

    def read(self, uri: str) -> bytes | Longer:
        """A file's bytes, `Longer` if they are many.

        Raises:
            UnservedError: it is not there, or not to be had.
            StorageError: the store is in trouble.
            AccessError: it lets nobody in.
        """
        data = read_file(uri, self._start, self._access)
        return Longer(uri) if len(data) == self._start < self._limit else data

    def read_whole(self, file: Longer) -> bytes:
        """The bytes of a file whose turn it is; raises as `read` does."""
        return read_file(file.uri, self._limit, self._access)

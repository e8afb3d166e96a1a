"""Bytes of images on local disk until they are needed, in a file without a name.

Nothing is left behind by a crash. Must not know what the images are for.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager

from ldm_batch.errors import NoRoomError, is_no_room


@contextmanager
def told_of_no_room() -> Iterator[None]:
    """Say where temporary files stand if there is no room for them.

    Raises:
        NoRoomError: there is none.
    """
    try:
        yield
    except OSError as error:
        if not is_no_room(error):
            raise
        raise NoRoomError(
            f"{tempfile.gettempdir()}: {error.strerror}, and a shard is put together there; make "
            "room, or name a folder on another disk with TMPDIR",
            is_of_node=True,
        ) from error


class Spool:
    """Files of images of a shard, by slot."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="ldm_batch-", buffering=0)  # noqa: SIM115
        self._places: dict[Hashable, tuple[int, int]] = {}
        self._end = 0

    def add(self, slot: Hashable, data: bytes) -> None:
        """Keep the bytes of one image."""
        self.add_all([(slot, data)])

    def add_all(self, files: Sequence[tuple[Hashable, bytes]]) -> None:
        """Keep the bytes of several images, in one write: one of its own costs a small image more
        than its digests do."""
        data = b"".join(data for _, data in files)
        written = 0
        while written < len(data):  # all of it, but for signals and a full disk
            written += os.pwrite(self._file.fileno(), data[written:], self._end + written)
        for slot, file in files:
            self._places[slot] = (self._end, len(file))
            self._end += len(file)

    def get(self, slot: Hashable) -> bytes:
        """The bytes of one image."""
        start, num_bytes = self._places[slot]
        data = os.pread(self._file.fileno(), num_bytes, start)
        while len(data) < num_bytes:
            more = os.pread(self._file.fileno(), num_bytes - len(data), start + len(data))
            if not more:
                raise EOFError(f"{num_bytes - len(data)} bytes of the spool are gone")
            data += more
        return data

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

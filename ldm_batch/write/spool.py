"""Bytes of images on local disk until they are needed, in a file without a name.

Nothing is left behind by a crash. Must not know what the images are for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Hashable


class Spool:
    """Files of images of a shard, by slot."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="ldm_batch-")  # noqa: SIM115
        self._places: dict[Hashable, tuple[int, int]] = {}
        self._end = 0

    def add(self, slot: Hashable, data: bytes) -> None:
        """Keep the bytes of one image."""
        self._file.seek(self._end)
        self._file.write(data)
        self._places[slot] = (self._end, len(data))
        self._end += len(data)

    def get(self, slot: Hashable) -> bytes:
        """The bytes of one image."""
        start, num_bytes = self._places[slot]
        self._file.seek(start)
        return self._file.read(num_bytes)

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

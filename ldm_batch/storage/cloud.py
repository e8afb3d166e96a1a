"""Whole objects in a cloud's bucket: one conditional request each, and input read by ranges.

An object is created by one request that the store refuses where there is an object already. It
carries the attempt that made it and the SHA-256 of its bytes, so that a writer whose reply was lost
knows its own object when it asks again. Knows no cloud: `bucket.py` says what each can be asked.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import BinaryIO

from ldm_batch.errors import StorageError
from ldm_batch.storage.bucket import Bucket, Held, Stamp
from ldm_batch.storage.local import SCRATCH_FOLDER
from ldm_batch.storage.place import Creation, Leftover, content_digest
from ldm_batch.storage.range_file import RangeFile
from ldm_batch.storage.retry import Answer, Empty, Missing, Taken, Unsupported, persist

MAX_VANISHED = 5
"""An object may be removed between the refusal of ours and the look at it; not again and again."""


class CloudFolder:
    """A `Place` below a prefix of a bucket."""

    keys_per_page = 1000
    """How much of a listing is asked for at once; stores answer with no more than this."""

    def __init__(self, bucket: Bucket, prefix: str) -> None:
        """Name a folder of a bucket; nothing is asked yet."""
        self._bucket, self._prefix = bucket, f"{prefix}/" if prefix else ""

    def names(self, folder: str) -> set[str]:
        """Names directly below a folder; empty where the folder is not there."""
        prefix = self._key(f"{folder}/" if folder else "")
        keys = [found.key for found, _ in self._below(prefix, is_deep=False)]
        return {key.removeprefix(prefix).rstrip("/") for key in keys} - {""}

    def modified_at(self, folder: str) -> dict[str, float]:
        """When each object directly below a folder was put there, by name, in seconds since the
        epoch; empty where the folder is not there."""
        prefix = self._key(f"{folder}/" if folder else "")
        found = [held for held, is_folder in self._below(prefix, is_deep=False) if not is_folder]
        times = {held.key.removeprefix(prefix): held.modified_at for held in found}
        return {name: modified_at for name, modified_at in times.items() if name}

    def has(self, path: str) -> bool:
        """Tell whether an object is there."""
        return self.head(path) is not None

    def open(self, path: str) -> BinaryIO:
        """Open an object for random reading, every read one range request."""
        found = self.head(path)
        if found is None:
            raise StorageError(f"{self._name(path)}: No such file")
        read_range = partial(self._read_range, path, found.version)
        return RangeFile(read_range, found.size_bytes).as_file()

    def read(self, path: str) -> bytes | None:
        """All bytes of an object, or None where it is not there."""
        try:
            return self._ask(path, lambda: self._bucket.read(self._key(path)))
        except Missing:
            return None

    def read_start(self, path: str, max_bytes: int) -> bytes | None:
        """The first bytes of an object, or None where it is not there: one request."""
        key = self._key(path)
        try:
            data = self._ask(path, lambda: self._bucket.read(key, start=0, stop=max_bytes))
        except Missing:
            return None
        except Empty:
            return b""
        if len(data) > max_bytes:
            raise StorageError(f"{self._name(path)}: the store does not serve parts of objects")
        return data

    def prove(self, prefix: str) -> None:
        """Ask for a prefix, whatever stands below it."""
        self._ask(prefix, partial(self._bucket.list_page, self._key(prefix), None, 1, is_deep=True))

    def create(self, path: str, content: BinaryIO) -> Creation:
        """Make an object appear whole, unless there is one already: one conditional request."""
        stamp = _stamp(content)
        for _ in range(MAX_VANISHED):
            try:
                self._put(path, content, stamp, is_exclusive=True)
                return Creation.WON
            except Unsupported:
                self._put(path, content, stamp, is_exclusive=False)
                return Creation.WON
            except Taken:
                found = self.head(path)
            if found is not None:
                return self._whose(path, found, stamp)
        raise StorageError(f"{self._name(path)}: appears and vanishes while it is written")

    def compare(self, path: str, content: BinaryIO) -> Creation:
        """Tell whether the object that is there holds these bytes or other ones."""
        found = self.head(path)
        if found is None:
            raise StorageError(f"{self._name(path)}: No such file")
        return self._whose(path, found, _stamp(content))

    def replace(self, path: str, content: BinaryIO) -> None:
        """Make an object appear whole, in place of one that is there."""
        stamp = _stamp(content)
        self._put(path, content, stamp, is_exclusive=False)

    def remove(self, path: str) -> None:
        """Remove an object; nothing happens where it is not there."""
        with suppress(Missing):
            self._ask(path, lambda: self._bucket.delete(self._key(path)))

    def remove_empty_folders(self) -> None:
        """There are no folders."""

    def why_careless(self) -> str:
        """Nothing: a server does not say why it ignores a condition."""
        return ""

    def leftovers(self) -> Iterator[Leftover]:
        """Uploads that were never completed, and temporary objects."""
        for held in self.objects(self._key(f"{SCRATCH_FOLDER}/")):
            yield Leftover(held.key.removeprefix(self._prefix), held.modified_at)
        with suppress(Unsupported):
            for upload in self._uploads():
                path = upload.key.removeprefix(self._prefix)
                yield Leftover(path, upload.modified_at, upload.version)

    def remove_leftover(self, leftover: Leftover) -> None:
        """Remove a leftover; nothing happens where it is gone."""
        upload_id = leftover.upload_id
        if upload_id is None:
            return self.remove(leftover.path)
        key = self._key(leftover.path)
        with suppress(Missing):
            self._ask(leftover.path, lambda: self._bucket.abort_upload(key, upload_id))
        return None

    def head(self, path: str) -> Held | None:
        """What the store says of an object; None where it is not there."""
        try:
            return self._ask(path, lambda: self._bucket.head(self._key(path)))
        except Missing:
            return None

    def objects(self, prefix: str) -> Iterator[Held]:
        """All objects whose keys begin so, page by page."""
        for held, _ in self._below(prefix, is_deep=True):
            yield held

    def _below(self, prefix: str, *, is_deep: bool) -> Iterator[tuple[Held, bool]]:
        """Objects whose keys begin so; if not deep, in place of those below a folder the folder.

        Yields:
            What was found, and whether it is a folder.
        """
        more: str | None = None
        while True:
            request = partial(
                self._bucket.list_page, prefix, more, self.keys_per_page, is_deep=is_deep
            )
            page = self._ask("", request)
            yield from ((held, False) for held in page.objects)
            yield from ((Held(folder), True) for folder in page.folders)
            more = page.more
            if more is None:
                return

    def _uploads(self) -> Iterator[Held]:
        more: str | None = None
        while True:
            page = self._ask("", partial(self._bucket.list_uploads, self._prefix, more))
            yield from page.objects
            more = page.more
            if more is None:
                return

    def _whose(self, path: str, found: Held, stamp: Stamp) -> Creation:
        """Tell whose object it is that stands where ours was to be."""
        if found.metadata.get("attempt") == stamp.attempt:
            return Creation.WON
        theirs = found.metadata.get("sha256")
        if found.size_bytes != stamp.size_bytes:
            return Creation.LOST_TO_OTHER
        if theirs is None:  # another program's, or a store that keeps no such words
            with self.open(path) as other:
                theirs = content_digest(other)
        return Creation.LOST_TO_SAME if theirs == stamp.sha256 else Creation.LOST_TO_OTHER

    def _put(self, path: str, content: BinaryIO, stamp: Stamp, *, is_exclusive: bool) -> None:
        def put() -> None:
            content.seek(0)
            self._bucket.put(self._key(path), content, stamp, is_exclusive=is_exclusive)

        self._ask(path, put)

    def _read_range(self, path: str, version: str, start: int, stop: int) -> bytes:
        key = self._key(path)
        try:
            data = self._ask(path, lambda: self._bucket.read(key, version, start, stop))
        except (Empty, Missing, Taken) as error:
            raise StorageError(f"{self._name(path)}: changed while it was read") from error
        if len(data) != stop - start:
            raise StorageError(f"{self._name(path)}: the store does not serve parts of objects")
        return data

    def _ask(self, path: str, request: Callable[[], Answer]) -> Answer:
        return persist(request, self._name(path), self._bucket.retry_s, self._bucket.judge)

    def _key(self, path: str) -> str:
        return f"{self._prefix}{path}"

    def _name(self, path: str) -> str:
        return f"{self._bucket.url}/{self._key(path)}"


def _stamp(content: BinaryIO) -> Stamp:
    """What is known of an object that an attempt of its own is to make."""
    digest = content_digest(content)
    return Stamp(uuid.uuid4().hex, digest, content.tell())

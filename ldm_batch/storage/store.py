"""The store of a dataset, on whatever kind of storage its URL names.

Knows URLs and bytes; must not know shards, plans or Parquet.
"""

from __future__ import annotations

import io
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import BinaryIO

from ldm_batch.config import SinkConfig
from ldm_batch.errors import JobError, LdmBatchError, StorageError
from ldm_batch.storage.files import absolute, protocol_of
from ldm_batch.storage.kinds import kind_of
from ldm_batch.storage.local import SCRATCH_FOLDER
from ldm_batch.storage.place import Access, Creation, Leftover, Place, as_access

LEFTOVER_AGE_S = 24 * 3600
"""What is younger may be an upload under way, which no other process can tell from a left one."""


NUM_RACERS = 4
"""Threads that create one object at the same time, to prove that one of them wins."""


def open_sink(sink: SinkConfig) -> Store:
    """The store that a job's configuration names."""
    return Store(str(sink.uri), sink.access, allow_unconditional=sink.allow_unconditional)


class Store:
    """A folder that holds whole objects at relative paths: listed, read, published, removed.

    Nothing is cached, so a listing tells what is there now. Safe in several threads; opened anew
    in every process.
    """

    def __init__(
        self, root: str, access: Access = None, *, allow_unconditional: bool = False
    ) -> None:
        """Name a folder; nothing of it is read or written yet.

        Args:
            root: a local path, or `s3://bucket/prefix`, `gs://...`, `az://...`.
            access: how to reach it.
            allow_unconditional: accept a store that lets a second writer replace what the first
                created; see `prove_exclusive`.

        Raises:
            JobError: a kind of storage that cannot hold a dataset, or a path that is no folder.
        """
        self.root = absolute(root.removeprefix("file://")).rstrip("/") or "/"
        self.access = as_access(access)
        self.allow_unconditional = allow_unconditional
        self._place = _open_place(self.root, access)

    def uri(self, path: str) -> str:
        """Full address of an object."""
        return f"{self.root}/{path}"

    def names(self, folder: str) -> set[str]:
        """Names directly below a folder; empty where the folder is not there."""
        return self._place.names(folder)

    def modified_at(self, folder: str) -> dict[str, float]:
        """When each object directly below a folder appeared, by name.

        Returns:
            Seconds since the epoch, by the store's own clock; empty where the folder is not there.
        """
        return self._place.modified_at(folder)

    def has(self, path: str) -> bool:
        """Tell whether an object is there."""
        return self._place.has(path)

    def open(self, path: str) -> BinaryIO:
        """Open an object for random reading."""
        return self._place.open(path)

    def read(self, path: str) -> bytes | None:
        """All bytes of an object, or None where it is not there."""
        return self._place.read(path)

    def create(self, path: str, content: bytes | BinaryIO) -> Creation:
        """Make an object appear whole or not at all, durably, unless there is one already.

        A lost reply or a retry never makes a writer lose to itself.

        Raises:
            StorageError: it could not be written.
        """
        file = _as_file(content)
        is_unique = path.startswith(SCRATCH_FOLDER)
        if self.allow_unconditional and not is_unique and self._place.has(path):
            return self._place.compare(path, file)
        return self._place.create(path, file)

    def publish(self, path: str, content: bytes | BinaryIO, *, exclusive: bool) -> bool:
        """Make an object appear whole or not at all, durably.

        Args:
            path: where, relative to the root.
            content: bytes, or a file that is read from its start.
            exclusive: create only; an object that is already there stays as it is.

        Returns:
            True if this call's content is now the object, False if another one was there first.

        Raises:
            StorageError: it could not be written.
        """
        if exclusive:
            return self.create(path, content) is Creation.WON
        self._place.replace(path, _as_file(content))
        return True

    def remove(self, path: str) -> None:
        """Remove an object; nothing happens where it is not there."""
        self._place.remove(path)

    def prove_exclusive(self) -> bool:
        """Prove that the store can be written and keeps its word on exclusive creation.

        Returns:
            False if it does not keep its word, but `allow_unconditional` accepts that.

        Raises:
            StorageError: it cannot be written.
            JobError: it lets a second writer replace what the first created.
        """
        self._remove_old_leftovers()
        if self._creates_once(_in_turn) and self._creates_once(_at_once):
            return True
        if self.allow_unconditional:
            return False
        why = self._place.why_careless()
        raise JobError(
            f"sink.uri: {self.root} does not refuse to create an object twice"
            f"{f': {why}' if why else ''}, so two attempts at one shard could both count; use "
            "another store, or accept one driver at a time and a weaker promise with "
            "sink.allow_unconditional=true"
        )

    def now(self) -> float:
        """What time it is by the store's own clock, in seconds since the epoch.

        Raises:
            StorageError: it cannot be written to.
        """
        name = f"clock-{uuid.uuid4().hex}"
        path = f"{SCRATCH_FOLDER}/{name}"
        try:
            self.publish(path, b"", exclusive=True)
            return self.modified_at(SCRATCH_FOLDER).get(name, time.time())
        finally:
            self.remove(path)

    def remove_empty_folders(self) -> None:
        """Remove the folders that this process made and nothing stands in."""
        self._place.remove_empty_folders()

    def leftovers(self) -> list[Leftover]:
        """Temporary objects and uncompleted uploads, of crashed writers and of those at work."""
        return list(self._place.leftovers())

    def remove_leftover(self, leftover: Leftover) -> None:
        """Remove one of them; nothing happens where it is gone."""
        self._place.remove_leftover(leftover)

    def _creates_once(self, publish_all: Callable[[Callable[[int], bool]], list[bool]]) -> bool:
        """Tell whether of several who create one object, exactly one succeeds."""
        probe = f"{SCRATCH_FOLDER}/probe-{uuid.uuid4().hex}"
        try:
            won = publish_all(lambda i: self.publish(probe, bytes([i]), exclusive=True))
        except StorageError as error:
            raise StorageError(
                f"sink.uri: {self.root} cannot be written; name another sink, or mend this: {error}"
            ) from error
        finally:
            with suppress(StorageError):  # what could not be written says more
                self.remove(probe)
        return won.count(True) == 1

    def _remove_old_leftovers(self) -> None:
        oldest = time.time() - LEFTOVER_AGE_S
        with suppress(LdmBatchError):  # whoever may not look for them need not remove them
            for leftover in self.leftovers():
                with suppress(StorageError):  # it is another user's
                    if leftover.modified_at < oldest:
                        self.remove_leftover(leftover)


def _open_place(root: str, access: Access) -> Place:
    open_place = kind_of(root).open_place
    if open_place is None:
        scheme = protocol_of(root)
        raise JobError(
            f"{root}: {scheme}:// is not supported for a dataset; use a path, s3://, gs:// or az://"
        )
    return open_place(root, access)


def _in_turn(publish: Callable[[int], bool]) -> list[bool]:
    return [publish(i) for i in range(2)]


def _at_once(publish: Callable[[int], bool]) -> list[bool]:
    with ThreadPoolExecutor(NUM_RACERS, thread_name_prefix="proof") as pool:
        return list(pool.map(publish, range(NUM_RACERS)))


def _as_file(content: bytes | BinaryIO) -> BinaryIO:
    return io.BytesIO(content) if isinstance(content, bytes) else content

"""Keys that stand in more than one shard, found on disk, a 64th of them in memory at a time.

Within a shard a second row of one key is rejected as it is read; what shards share nobody sees
while they are made. Must not know what a shard holds besides keys.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ldm_batch.dataset import rows_of
from ldm_batch.errors import StorageError
from ldm_batch.storage import Store

NUM_BUCKETS = 64
"""Of a billion keys each holds 190 MB; one is read at a time, and sorted in a few times that."""
BUCKET_STARTS = np.arange(1, NUM_BUCKETS, dtype="<u8") * np.uint64(2**64 // NUM_BUCKETS)
ENTRY = np.dtype([("hash", "<u8"), ("shard", "<u4")])
NUM_TOLD = 3


def hash_keys(keys: Iterable[object]) -> NDArray[np.uint64]:
    """64-bit BLAKE2b hashes of keys, uint64 `[keys]`."""
    digests = b"".join(hashlib.blake2b(str(key).encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(digests, dtype="<u8")


@dataclass(frozen=True, slots=True)
class SharedKey:
    """The hash of a key and the first two of the shards that have it."""

    hash: int
    shards: tuple[int, int]


class KeyIndex:
    """Hashes of the keys of all shards, on disk: 12 bytes a key, in files that have no name.

    Without room on the disk it gives up, and says so.
    """

    def __init__(self) -> None:
        self._buckets: list[IO[bytes]] = []
        self.trouble = ""
        """Why not all keys were compared; empty where they were."""

    def __enter__(self) -> KeyIndex:
        self._opened = contextlib.ExitStack()
        with self._giving_up():
            for _ in range(NUM_BUCKETS):
                bucket = tempfile.TemporaryFile(prefix="ldm_batch-")
                self._buckets.append(self._opened.enter_context(bucket))
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Forget all keys."""
        with contextlib.suppress(OSError):  # what could not be written out is not needed
            self._opened.close()

    def add(self, shard: int, hashes: NDArray[np.uint64]) -> None:
        """Add the keys of a shard by their hashes, `[keys]`; one that stands twice counts once."""
        if self.trouble:
            return
        unique = np.unique(hashes)
        entries = np.empty(len(unique), dtype=ENTRY)
        entries["hash"], entries["shard"] = unique, shard
        parts = np.split(entries, np.searchsorted(unique, BUCKET_STARTS))
        with self._giving_up():
            for bucket, part in zip(self._buckets, parts, strict=True):
                bucket.write(part.tobytes())

    def find_shared(self) -> tuple[int, list[SharedKey]]:
        """How many keys more than one shard has, and a few of them; none where it gave up."""
        count, examples = 0, list[SharedKey]()
        for bucket in self._buckets:
            if self.trouble:
                break
            with self._giving_up():
                bucket.seek(0)
                entries = np.frombuffer(bucket.read(), dtype=ENTRY)
                entries = entries[np.argsort(entries["hash"], kind="stable")]
                repeats = entries["hash"][1:] == entries["hash"][:-1]
                firsts = np.flatnonzero(repeats & ~np.concatenate([[False], repeats[:-1]]))
                count += len(firsts)
                for place in firsts[: NUM_TOLD - len(examples)]:
                    first, second = sorted(int(entries["shard"][place + i]) for i in (0, 1))
                    examples.append(SharedKey(int(entries["hash"][place]), (first, second)))
        return (0, []) if self.trouble else (count, examples)

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.trouble = str(error)
            self.close()


def describe_shared(store: Store, index: KeyIndex) -> tuple[int, list[str]]:
    """How many keys stand in more than one shard, and what to tell of that, a line each."""
    count, examples = index.find_shared()
    notes = []
    if index.trouble:
        notes.append(f"keys of different shards were not compared: {index.trouble}")
    if count:
        told = [
            f"{_find_key(store, e)!r} in {e.shards[0]:05d} and {e.shards[1]:05d}" for e in examples
        ]
        are = "key stands" if count == 1 else "keys stand"
        notes.append(
            f"{count:,} {are} in more than one shard ({', '.join(told)}): such rows get the same "
            "seeds, unless they bring their own; in another dataset source.columns.id=null makes "
            "keys of their places"
        )
    return count, notes


def _find_key(store: Store, shared: SharedKey) -> str:
    """The key itself, or its hash where the object cannot be read."""
    with contextlib.suppress(pa.ArrowException, OSError, StorageError):
        for row in rows_of(store, shared.shards[0], ["key"]):
            if hash_keys([row["key"]])[0] == shared.hash:
                return str(row["key"])
    return f"{shared.hash:016x}"

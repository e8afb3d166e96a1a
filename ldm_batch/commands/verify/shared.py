"""Keys that several shards have, and seeds that several images have: found on disk, a 64th of them
in memory at a time.

Within a shard a second row of one key is rejected as it is read; what shards share nobody sees
while they are made. Must not know what a shard holds besides.
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
"""Of a billion values each holds 250 MB; one is read at a time, and sorted in a few times that."""
BUCKET_STARTS = np.arange(1, NUM_BUCKETS, dtype="<u8") * np.uint64(2**64 // NUM_BUCKETS)
ENTRY = np.dtype([("value", "<u8"), ("shard", "<u4"), ("count", "<u4")])
NUM_TOLD = 3
SPREAD = 0x9E3779B97F4A7C15
"""2**64 divided by the golden ratio: seeds such as 0, 1, 2, ... times this (mod 2**64) are spread
evenly, and no two become one."""


def hash_keys(keys: Iterable[object]) -> NDArray[np.uint64]:
    """64-bit BLAKE2b hashes of keys, uint64 `[keys]`."""
    digests = b"".join(hashlib.blake2b(str(key).encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(digests, dtype="<u8")


def spread_seeds(seeds: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Seeds, uint64 `[images]`, as values that fill all buckets alike; `gather_seed` undoes it."""
    return seeds * np.uint64(SPREAD)


def gather_seed(value: int) -> int:
    """The seed that became a value."""
    return value * pow(SPREAD, -1, 2**64) % 2**64


@dataclass(frozen=True, slots=True)
class Example:
    """A value that stands more than once, and the first two shards that have it, or one twice."""

    value: int
    shards: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Shared:
    """Values that stand more than once."""

    num_values: int
    num_places: int
    """Where they stand, in all."""
    examples: list[Example]


class SharedIndex:
    """Values of all shards, on disk: 16 bytes for each, in files that have no name.

    Values must be spread evenly over 0 to 2**64 - 1. Without room on the disk it gives up, and says
    so.
    """

    def __init__(self, *, within_shards: bool = False) -> None:
        """Begin without values.

        Args:
            within_shards: count every place of a value; else one that stands twice in a shard
                counts once.
        """
        self._within_shards = within_shards
        self._buckets: list[IO[bytes]] = []
        self.trouble = ""
        """Why not all values were compared; empty where they were."""

    def __enter__(self) -> SharedIndex:
        self._opened = contextlib.ExitStack()
        with self._giving_up():
            for _ in range(NUM_BUCKETS):
                bucket = tempfile.TemporaryFile(prefix="ldm_batch-")
                self._buckets.append(self._opened.enter_context(bucket))
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Forget all values."""
        with contextlib.suppress(OSError):  # what could not be written out is not needed
            self._opened.close()

    def add(self, shard: int, values: NDArray[np.uint64]) -> None:
        """Add the values of a shard, uint64 `[values]`, all of them at once."""
        if self.trouble:
            return
        unique, counts = np.unique(values, return_counts=True)
        entries = np.empty(len(unique), dtype=ENTRY)
        entries["value"], entries["shard"] = unique, shard
        entries["count"] = counts if self._within_shards else 1
        parts = np.split(entries, np.searchsorted(unique, BUCKET_STARTS))
        with self._giving_up():
            for bucket, part in zip(self._buckets, parts, strict=True):
                bucket.write(part.tobytes())

    def find_shared(self) -> Shared:
        """What stands more than once, and a few examples; nothing where it gave up."""
        num_values = num_places = 0
        examples: list[Example] = []
        for bucket in self._buckets:
            if self.trouble:
                return Shared(0, 0, [])
            with self._giving_up():
                bucket.seek(0)
                found = _find_shared(np.frombuffer(bucket.read(), dtype=ENTRY))
                num_values += found.num_values
                num_places += found.num_places
                examples += found.examples[: NUM_TOLD - len(examples)]
        return Shared(0, 0, []) if self.trouble else Shared(num_values, num_places, examples)

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.trouble = str(error)
            self.close()


def _find_shared(entries: NDArray[np.void]) -> Shared:
    """What stands more than once in a bucket, whose entries are one for each value and shard."""
    if not len(entries):
        return Shared(0, 0, [])
    entries = entries[np.argsort(entries["value"], kind="stable")]
    is_first = np.concatenate([[True], entries["value"][1:] != entries["value"][:-1]])
    firsts = np.flatnonzero(is_first)
    num_places = np.add.reduceat(entries["count"], firsts, dtype=np.int64)
    num_shards = np.diff(firsts, append=len(entries))
    shared = np.flatnonzero(num_places > 1)
    examples = [
        Example(
            int(entries["value"][place]),
            (int(entries["shard"][place]), int(entries["shard"][place + (num > 1)])),
        )
        for place, num in zip(firsts[shared[:NUM_TOLD]], num_shards[shared[:NUM_TOLD]], strict=True)
    ]
    return Shared(
        len(shared),
        int(num_places[shared].sum()),
        [Example(e.value, (min(e.shards), max(e.shards))) for e in examples],
    )


def describe_shared_keys(store: Store, index: SharedIndex) -> tuple[int, list[str]]:
    """How many keys stand in more than one shard, and what to tell of that, a line each."""
    found, notes = index.find_shared(), []
    if index.trouble:
        notes.append(f"keys of different shards were not compared: {index.trouble}")
    if found.num_values:
        told = [f"{_find_key(store, e)!r} in {_shards(e)}" for e in found.examples]
        are = "key stands" if found.num_values == 1 else "keys stand"
        notes.append(
            f"{found.num_values:,} {are} in more than one shard ({', '.join(told)}): such rows get "
            "the same seeds, unless they bring their own; in another dataset "
            "source.columns.id=null makes keys of their places"
        )
    return found.num_values, notes


def describe_shared_seeds(index: SharedIndex) -> tuple[int, list[str]]:
    """How many images have the seed of another one, and what to tell of that, a line each."""
    found, notes = index.find_shared(), []
    if index.trouble:
        notes.append(f"seeds were not compared: {index.trouble}")
    if found.num_places:
        told = [f"{gather_seed(e.value)} in {_shards(e)}" for e in found.examples]
        notes.append(
            f"{found.num_places:,} images have a seed that another image has, too "
            f"({', '.join(told)}): they start from the same noise"
        )
    return found.num_places, notes


def _shards(example: Example) -> str:
    first, second = example.shards
    return f"{first:05d}, twice" if first == second else f"{first:05d} and {second:05d}"


def _find_key(store: Store, shared: Example) -> str:
    """The key itself, or its hash where the object cannot be read."""
    with contextlib.suppress(pa.ArrowException, OSError, StorageError):
        for row in rows_of(store, shared.shards[0], ["key"]):
            if hash_keys([row["key"]])[0] == shared.value:
                return str(row["key"])
    return f"{shared.value:016x}"

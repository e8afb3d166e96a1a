"""The commit of one shard: its object appears exclusively, after its rejections.

A shard is done exactly when its object exists; the receipt follows (receipt.py). Must not know how
an object is made.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple

from ldm_batch import identity
from ldm_batch.errors import ShardError
from ldm_batch.records import Outcome, Rejection, Shard
from ldm_batch.storage import COPY_BYTES, Creation, Store
from ldm_batch.write.parquet import rejections_bytes

OUTCOMES = {
    Creation.WON: Outcome.COMMITTED,
    Creation.LOST_TO_SAME: Outcome.LOST_TO_SAME,
    Creation.LOST_TO_OTHER: Outcome.LOST_TO_OTHER,
}


class Committed(NamedTuple):
    """What became of an attempt, and the object that it made."""

    outcome: Outcome
    size_bytes: int
    sha256: str
    """Of the object's bytes, hexadecimal."""


def make_facts(shard: Shard, fingerprint: str, rejections: Sequence[Rejection]) -> dict[str, Any]:
    """What an object says of its shard, so that a receipt can be rebuilt from it alone."""
    return {
        "shard": shard.id,
        "fingerprint": fingerprint,
        "num_rows": shard.num_rows,
        "num_rows_with_images": shard.num_rows - len(rejections),
        "rejected": dict(Counter(str(rejection.reason) for rejection in rejections)),
    }


def commit_shard(
    store: Store,
    shard: Shard,
    content: BinaryIO,
    rejections: Sequence[Rejection],
    *,
    max_bytes: int,
    overwrite: bool,
) -> Committed:
    """Publish the rejections of a shard, then its object: that second call is the commit.

    Raises:
        ShardError: the object is larger than `max_bytes`.
        StorageError: it could not be written; the shard is not committed.
    """
    size_bytes, digest = size_and_digest(content)
    if size_bytes > max_bytes:
        raise ShardError(
            f"shard {shard.id}: its object has {size_bytes} bytes, more than max_object_bytes "
            f"({max_bytes}); plan a new sink with fewer rows_per_shard"
        )
    path = identity.data_path(shard.id)
    if rejections and (overwrite or not store.has(path)):
        raw = rejections_bytes(rejections, shard.file.name)
        store.publish(identity.rejected_path(shard.id), raw, exclusive=False)
    if overwrite:  # a crash from here on must not leave what the old object had
        store.remove(identity.receipt_path(shard.id))
        if not rejections:
            store.remove(identity.rejected_path(shard.id))
        store.publish(path, content, exclusive=False)
        return Committed(Outcome.REPLACED, size_bytes, digest)
    return Committed(OUTCOMES[store.create(path, content)], size_bytes, digest)


def size_and_digest(file: BinaryIO) -> tuple[int, str]:
    """Size in bytes and SHA-256 (hexadecimal) of a file, read from its start."""
    file.seek(0)
    sha256, size_bytes = hashlib.sha256(), 0
    while block := file.read(COPY_BYTES):
        sha256.update(block)
        size_bytes += len(block)
    return size_bytes, sha256.hexdigest()


def committed_shards(store: Store) -> set[int]:
    """Indices of the shards that are done: those whose object stands in the sink."""
    names = (name for name in store.names(identity.DATA_FOLDER) if name.endswith(".parquet"))
    return {index for index in map(identity.shard_index, names) if index is not None}

"""The commit of one shard: its object appears exclusively, after its rejections.

A shard is done exactly when its object exists; the receipt follows (receipt.py). Must not know how
an object is made.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ldm_batch import identity
from ldm_batch.columns import METADATA_KEY
from ldm_batch.errors import FinalShardError, JobError
from ldm_batch.records import Outcome, Rejection, Shard
from ldm_batch.storage import COPY_BYTES, Creation, Store
from ldm_batch.write.rejections import RejectionsFile

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


def make_facts(
    shard: Shard,
    fingerprint: str,
    rejections: Sequence[Rejection],
    rejected: RejectionsFile | None = None,
) -> dict[str, Any]:
    """What an object says of its shard, so that a receipt can be rebuilt from it alone.

    Args:
        rejected: the file of its rejections, which it names if that has a digest.
    """
    facts = {
        "shard": shard.id,
        "fingerprint": fingerprint,
        "num_rows": shard.num_rows,
        "num_rows_with_images": shard.num_rows - len(rejections),
        "rejected": dict(Counter(str(rejection.reason) for rejection in rejections)),
    }
    return facts | ({"rejections": rejected.digest} if rejected and rejected.digest else {})


def named_digest(facts: Mapping[str, Any]) -> str:
    """SHA-256 (hexadecimal) of the file of rejections that an object names; empty without one.

    Raises:
        TypeError, ValueError: it names something else.
    """
    digest = facts.get("rejections", "")
    if not re.fullmatch(r"([0-9a-f]{64})?", digest):
        raise ValueError(f"its rejections are named {digest!r}, which is no SHA-256")
    return str(digest)


def read_named_digest(store: Store, shard_id: str) -> str:
    """The same of the object that stands for a shard now; empty where there is none.

    Raises:
        JobError: the object is damaged, or none of ours.
        StorageError: it cannot be read.
    """
    path = identity.data_path(shard_id)
    if not store.has(path):
        return ""
    with store.open(path) as file:
        try:
            facts = json.loads((pq.read_metadata(file).metadata or {})[METADATA_KEY])
            return named_digest(dict(facts))
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise JobError(f"{store.uri(path)}: damaged, or not an object of ours") from error


def commit_shard(
    store: Store,
    shard: Shard,
    content: BinaryIO,
    rejected: RejectionsFile | None,
    *,
    max_bytes: int,
    overwrite: bool,
) -> Committed:
    """Publish the rejections of a shard, then its object: that second call is the commit.

    Args:
        content: the object, which names the rejections if they have a digest.
        rejected: the file of the rejections, if there are any.

    Raises:
        FinalShardError: the object is larger than `max_bytes`.
        StorageError: it could not be written; the shard is not committed.
    """
    size_bytes, digest = size_and_digest(content)
    if size_bytes > max_bytes:
        fewer = max(1, shard.num_rows * max_bytes // size_bytes)
        raise FinalShardError(
            f"shard {shard.id}: its object has {size_bytes} bytes, more than max_object_bytes "
            f"({max_bytes}); go on with max_object_bytes={size_bytes} or more, or plan a new sink "
            f"with rows_per_shard={fewer} or fewer"
        )
    path = identity.data_path(shard.id)
    if rejected and (overwrite or not store.has(path)):
        store.publish(rejected.path, rejected.content, exclusive=False)
    if overwrite:
        _replace(store, shard, content, rejected)
        return Committed(Outcome.REPLACED, size_bytes, digest)
    return Committed(OUTCOMES[store.create(path, content)], size_bytes, digest)


def _replace(
    store: Store, shard: Shard, content: BinaryIO, rejected: RejectionsFile | None
) -> None:
    """Put an object in the place of another one, whose receipt and rejections go."""
    before = ""
    with suppress(JobError):  # what a damaged object named, `sweep` finds
        before = read_named_digest(store, shard.id)
    # A crash from here on must not leave what the old object had.
    store.remove(identity.receipt_path(shard.id))
    if not rejected:
        store.remove(identity.rejected_path(shard.id))
    store.publish(identity.data_path(shard.id), content, exclusive=False)
    if before and before != (rejected.digest if rejected else ""):
        store.remove(identity.rejected_path(shard.id, before))
    if rejected and not store.has(rejected.path):  # another attempt has replaced the same object
        store.publish(rejected.path, rejected.content, exclusive=False)


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

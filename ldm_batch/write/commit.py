"""The commit of one shard: its object appears exclusively, its receipt follows.

A shard is done exactly when its object exists. Rejections are published before it; the receipt
comes after it and can always be rebuilt from it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ldm_batch import identity
from ldm_batch.columns import METADATA_KEY
from ldm_batch.errors import JobError, ShardError
from ldm_batch.records import Failure, Outcome, Receipt, Rejection, Shard
from ldm_batch.storage import COPY_BYTES, Creation, Store
from ldm_batch.write.parquet import rejections_bytes

OUTCOMES = {
    Creation.WON: Outcome.COMMITTED,
    Creation.LOST_TO_SAME: Outcome.LOST_TO_SAME,
    Creation.LOST_TO_OTHER: Outcome.LOST_TO_OTHER,
}


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
) -> tuple[Outcome, int, str]:
    """Publish the rejections of a shard, then its object: that second call is the commit.

    Returns:
        What became of it, the size in bytes and the SHA-256 (hexadecimal) of `content`.

    Raises:
        ShardError: the object is larger than `max_bytes`.
        StorageError: it could not be written; the shard is not committed.
    """
    size_bytes, digest = _measure(content)
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
        return Outcome.REPLACED, size_bytes, digest
    return OUTCOMES[store.create(path, content)], size_bytes, digest


def _measure(file: BinaryIO) -> tuple[int, str]:
    file.seek(0)
    sha256, size_bytes = hashlib.sha256(), 0
    while block := file.read(COPY_BYTES):
        sha256.update(block)
        size_bytes += len(block)
    return size_bytes, sha256.hexdigest()


def write_receipt(store: Store, receipt: Receipt) -> None:
    """Store the receipt of a committed shard, and forget its failure.

    An attempt that lost leaves the winner's receipt alone, and makes one up for a winner that
    crashed before it wrote its own.
    """
    shard_id = f"{receipt.shard:05d}"
    path = identity.receipt_path(shard_id)
    if receipt.outcome in (Outcome.COMMITTED, Outcome.REPLACED):
        store.publish(path, _receipt_bytes(receipt), exclusive=False)
    elif not store.has(path):
        is_same = receipt.outcome is Outcome.LOST_TO_SAME
        standing = receipt if is_same else _rebuild_receipt(store, receipt.shard)
        store.publish(path, _receipt_bytes(standing), exclusive=True)
    store.remove(identity.failure_path(shard_id))


def _receipt_bytes(receipt: Receipt) -> bytes:
    return json.dumps(asdict(receipt), indent=2, sort_keys=True).encode()


def write_failure(store: Store, failure: Failure) -> None:
    """Record why a shard could not be made."""
    raw = json.dumps(asdict(failure), indent=2, sort_keys=True).encode()
    store.publish(identity.failure_path(f"{failure.shard:05d}"), raw, exclusive=False)


def read_receipt(store: Store, index: int) -> Receipt:
    """The receipt of a committed shard, rebuilt from its object where it is missing or damaged.

    Raises:
        JobError: the object in `data/` is not one of ours, or is damaged.
    """
    raw = store.read(identity.receipt_path(f"{index:05d}"))
    try:
        if raw is not None:
            fields = json.loads(raw)
            fields |= {"outcome": Outcome(fields["outcome"]), "notes": tuple(fields["notes"])}
            return Receipt(**fields)
    except (ValueError, TypeError, KeyError):
        pass  # a damaged receipt is as good as none: the object knows all that counts
    return _rebuild_receipt(store, index)


def _rebuild_receipt(store: Store, index: int) -> Receipt:
    path = identity.data_path(f"{index:05d}")
    with store.open(path) as file:
        size_bytes, digest = _measure(file)
        try:
            metadata = pq.read_metadata(file)
            facts: Mapping[str, Any] = json.loads(metadata.metadata[METADATA_KEY])
            if facts["shard"] != f"{index:05d}":
                raise ValueError(f"it is shard {facts['shard']}")
            return Receipt(
                shard=index,
                outcome=Outcome.COMMITTED,
                num_rows=facts["num_rows"],
                num_rows_with_images=facts["num_rows_with_images"],
                num_images=metadata.num_rows,
                rejected=facts["rejected"],
                object_bytes=size_bytes,
                object_sha256=digest,
                notes=("rebuilt from the object",),
            )
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise JobError(
                f"{store.uri(path)}: not an object of this dataset, or damaged; remove it and run "
                "the job again to make it anew"
            ) from error


def committed_shards(store: Store) -> set[int]:
    """Indices of the shards that are done: those whose object stands in the sink."""
    names = (name for name in store.names(identity.DATA_FOLDER) if name.endswith(".parquet"))
    return {index for index in map(identity.shard_index, names) if index is not None}


def roll_forward(store: Store, done: set[int]) -> None:
    """Write the receipts that a crash between commit and receipt left out."""
    names = store.names(identity.RECEIPTS_FOLDER)
    for index in sorted(done - {identity.shard_index(name) for name in names}):
        write_receipt(store, read_receipt(store, index))

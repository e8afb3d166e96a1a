"""What is noted of a shard beside its object: a receipt when it is done, else a failure.

A receipt comes after the commit, decides nothing, and can always be rebuilt from the object: its
counts, and how many images were made otherwise than planned.
"""

from __future__ import annotations

import json
import os
import platform
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ldm_batch import identity
from ldm_batch.columns import METADATA_KEY
from ldm_batch.errors import JobError
from ldm_batch.made_as import MADE_AS, count_made_as, describe_made_as
from ldm_batch.records import Failure, Outcome, Receipt
from ldm_batch.storage import Store
from ldm_batch.write.commit import Committed, size_and_digest

REBUILD_THREADS = 8
"""Objects without a receipt that are read at once: all of each, for its digest, from a store that
may be far."""


def make_receipt(
    shard: int,
    facts: Mapping[str, Any],
    committed: Committed,
    *,
    num_images: int,
    started_at: str,
    laps: Mapping[str, float],
    pipeline: Mapping[str, Any],
    notes: tuple[str, ...],
) -> Receipt:
    """The receipt of an attempt that made an object in this process.

    Args:
        facts: what the object says of its shard, see `make_facts`.
        started_at: ISO 8601.
        laps: seconds of each stage.
    """
    return Receipt(
        shard=shard,
        outcome=committed.outcome,
        num_rows=facts["num_rows"],
        num_rows_with_images=facts["num_rows_with_images"],
        num_images=num_images,
        rejected=facts["rejected"],
        object_bytes=committed.size_bytes,
        object_sha256=committed.sha256,
        attempt=uuid.uuid4().hex,
        started_at=started_at,
        host=platform.node(),
        pid=os.getpid(),
        pipeline=pipeline,
        laps=laps,
        notes=notes,
    )


def write_receipt(store: Store, receipt: Receipt, fingerprint: str) -> None:
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
        standing = receipt if is_same else _rebuild_receipt(store, receipt.shard, fingerprint)
        store.publish(path, _receipt_bytes(standing), exclusive=True)
    store.remove(identity.failure_path(shard_id))


def _receipt_bytes(receipt: Receipt) -> bytes:
    return json.dumps(asdict(receipt), indent=2, sort_keys=True).encode()


def write_failure(store: Store, failure: Failure) -> None:
    """Record why a shard could not be made."""
    raw = json.dumps(asdict(failure), indent=2, sort_keys=True).encode()
    store.publish(identity.failure_path(f"{failure.shard:05d}"), raw, exclusive=False)


def read_receipt(store: Store, index: int, fingerprint: str) -> Receipt:
    """The receipt of a committed shard, rebuilt from its object where it is missing or damaged.

    Args:
        fingerprint: the plan's, which the object must name.

    Raises:
        JobError: the object in `data/` is not one of ours, or is damaged.
    """
    raw = store.read(identity.receipt_path(f"{index:05d}"))
    try:
        if raw is not None:
            fields = json.loads(raw)
            fields |= {"outcome": Outcome(fields["outcome"]), "notes": tuple(fields["notes"])}
            return Receipt(**fields)
    except (ValueError, TypeError, KeyError, RecursionError):
        pass  # a damaged receipt is as good as none: the object knows all that counts
    return _rebuild_receipt(store, index, fingerprint)


def _rebuild_receipt(store: Store, index: int, fingerprint: str) -> Receipt:
    path = identity.data_path(f"{index:05d}")
    with store.open(path) as file:
        size_bytes, digest = size_and_digest(file)
        try:
            metadata = pq.read_metadata(file)
            facts: Mapping[str, Any] = json.loads((metadata.metadata or {})[METADATA_KEY])
            if facts["shard"] != f"{index:05d}" or facts["fingerprint"] != fingerprint:
                raise ValueError("it is another shard's, or was made with other settings")
            return Receipt(
                shard=index,
                outcome=Outcome.COMMITTED,
                num_rows=facts["num_rows"],
                num_rows_with_images=facts["num_rows_with_images"],
                num_images=metadata.num_rows,
                rejected=facts["rejected"],
                object_bytes=size_bytes,
                object_sha256=digest,
                notes=("rebuilt from the object", *describe_made_as(count_made_as(_made_as(file)))),
            )
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise JobError(
                f"{store.uri(path)}: not an object of this dataset, or damaged; "
                "remove it and run the job again to make it anew"
            ) from error


def _made_as(file: BinaryIO) -> Iterator[object]:
    """How each image of an object was made, where the object says so; reads only that column."""
    parquet = pq.ParquetFile(file, page_checksum_verification=True)
    if MADE_AS in parquet.schema_arrow.names:
        for batch in parquet.iter_batches(columns=[MADE_AS]):
            yield from batch.column(0).to_pylist()


def roll_forward(
    store: Store, done: set[int], fingerprint: str, num_threads: int = REBUILD_THREADS
) -> None:
    """Write the receipts that a crash between commit and receipt left out, a few at once.

    Raises:
        JobError: an object without a receipt is none of this dataset.
    """
    names = store.names(identity.RECEIPTS_FOLDER)
    missing = sorted(done - {identity.shard_index(name) for name in names})

    def write(index: int) -> None:
        write_receipt(store, read_receipt(store, index, fingerprint), fingerprint)

    with ThreadPoolExecutor(num_threads, thread_name_prefix="receipt") as pool:
        written = [pool.submit(write, index) for index in missing]
        try:
            for one in written:
                one.result()
        finally:
            pool.shutdown(cancel_futures=True)

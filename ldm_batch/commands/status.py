"""How far a dataset is: `python -m ldm_batch status SINK`.

Reads the plan, the listing and the receipts; changes nothing. Exit code 0 if every planned shard is
done, 1 if not, 2 if there is no dataset to tell of.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import TextIO, TypeVar

from ldm_batch import identity
from ldm_batch.commands.dataset_argument import add_sink, named_sink
from ldm_batch.errors import JobError, LdmBatchError
from ldm_batch.plan.stored import load_plan
from ldm_batch.storage import Store
from ldm_batch.write.commit import committed_shards
from ldm_batch.write.receipt import read_receipt

READ_THREADS = 16
AHEAD_PER_THREAD = 4
MAX_LISTED = 20
In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True, slots=True)
class Status:
    """What a dataset holds, against what its plan asks for.

    `failed` are missing shards whose last attempt left a failure, with its message; `stray` are
    names in `data/` that no planned shard explains.
    """

    num_shards: int
    num_rows_planned: int
    num_done: int
    failed: dict[int, str]
    missing: list[int]
    stray: list[str]
    num_rows: int
    num_images: int
    rejected: dict[str, int]
    num_bytes: int
    resume: str


def read_status(store: Store) -> Status:
    """Gather the status of a dataset.

    Raises:
        JobError: there is no plan, or an object is damaged.
    """
    plan = load_plan(store)
    if plan is None:
        raise JobError(f"{store.root}: no dataset here (no {identity.PLAN_PATH})")
    planned = {shard.index for shard in plan.shards}
    done = committed_shards(store) & planned
    num_rows = num_images = num_bytes = 0
    rejected: Counter[str] = Counter()
    for receipt in map_in_threads(partial(read_receipt, store), sorted(done), READ_THREADS):
        num_rows += receipt.num_rows
        num_images += receipt.num_images
        num_bytes += receipt.object_bytes
        rejected.update(receipt.rejected)
    failures = {identity.shard_index(n) for n in store.names(identity.FAILURES_FOLDER)}
    failed = sorted(index for index in failures if index in planned - done)
    return Status(
        num_shards=len(planned),
        num_rows_planned=plan.num_rows,
        num_done=len(done),
        failed={index: failure_message(store, index) for index in failed if index is not None},
        missing=sorted(planned - done - set(failed)),
        stray=sorted(
            store.names(identity.DATA_FOLDER) - {f"{index:05d}.parquet" for index in planned}
        ),
        num_rows=num_rows,
        num_images=num_images,
        rejected=dict(rejected.most_common()),
        num_bytes=num_bytes,
        resume=str(plan.document["environment"]["command"]),
    )


def map_in_threads(
    function: Callable[[In], Out], values: Iterable[In], num_threads: int
) -> Iterator[Out]:
    """What a function returns for each value, in order; only a few calls are ahead of the caller,
    so that the results of many values never stand in memory together."""
    with ThreadPoolExecutor(num_threads) as pool:
        pending: deque[Future[Out]] = deque()
        for value in values:
            pending.append(pool.submit(function, value))
            if len(pending) == AHEAD_PER_THREAD * num_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def failure_message(store: Store, index: int) -> str:
    """Why a shard could not be made, by its record."""
    raw = store.read(identity.failure_path(f"{index:05d}"))
    try:
        return str(json.loads(raw or b"{}")["message"])
    except (ValueError, KeyError, TypeError):
        return "unknown (its record is damaged)"


def print_status(status: Status, out: TextIO) -> None:
    """Print a status for people."""
    num_rejected = sum(status.rejected.values())
    print(
        f"shards: {status.num_done} of {status.num_shards} done, {len(status.failed)} failed, "
        f"{len(status.missing)} missing",
        file=out,
    )
    print(
        f"rows: {status.num_rows:,} of {status.num_rows_planned:,} read = "
        f"{status.num_rows - num_rejected:,} with images + {num_rejected:,} rejected",
        file=out,
    )
    print(f"images: {status.num_images:,} ({status.num_bytes / 1e6:,.1f} MB)", file=out)
    for reason, count in status.rejected.items():
        print(f"  rejected: {count:,} {reason}", file=out)
    for index, message in list(status.failed.items())[:MAX_LISTED]:
        print(f"  failed: shard {index:05d}: {message}", file=out)
    for name in status.stray[:MAX_LISTED]:
        print(f"  stray: {identity.DATA_FOLDER}/{name} belongs to no planned shard", file=out)
    if status.failed or status.missing:
        print(f"to make what is missing:\n  {status.resume}", file=out)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, print the status, exit."""
    parser = argparse.ArgumentParser(prog="python -m ldm_batch status", description=__doc__)
    add_sink(parser)
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    options = parser.parse_args(arguments)
    try:
        status = read_status(named_sink(options))
    except LdmBatchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if options.json:
        print(json.dumps(asdict(status), indent=2))
    else:
        print_status(status, sys.stdout)
    sys.exit(1 if status.failed or status.missing or status.stray else 0)

"""How far a dataset is: `python -m ldm_batch status SINK`.

Reads the plan, the listing and the receipts; changes nothing. Exit code 0 if every planned shard is
done, 1 if not, 2 if there is no dataset to tell of.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TextIO

from ldm_batch import identity
from ldm_batch.commands.dataset_argument import MAX_LISTED, add_sink, named_sink
from ldm_batch.commands.ending import ends
from ldm_batch.commands.program import program
from ldm_batch.config import SinkConfig
from ldm_batch.dataset import Dataset, open_dataset
from ldm_batch.plan.command_line import resume_at, section_settings, variables_to_set
from ldm_batch.storage import Store


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
    to_add: str = ""
    """What the command leaves out and may need."""


def read_status(store: Store) -> Status:
    """Gather the status of a dataset.

    Raises:
        JobError: there is no plan, or an object is damaged.
    """
    dataset = open_dataset(store)
    num_rows = num_images = num_bytes = 0
    rejected: Counter[str] = Counter()
    for receipt in dataset.receipts():
        num_rows += receipt.num_rows
        num_images += receipt.num_images
        num_bytes += receipt.object_bytes
        rejected.update(receipt.rejected)
    return Status(
        num_shards=len(dataset.plan.shards),
        num_rows_planned=dataset.plan.num_rows,
        num_done=len(dataset.done),
        failed=dataset.failed,
        missing=dataset.missing,
        stray=dataset.stray,
        num_rows=num_rows,
        num_images=num_images,
        rejected=dict(rejected.most_common()),
        num_bytes=num_bytes,
        resume=_resume_command(dataset, store),
        to_add=variables_to_set(dataset.job.cluster.runtime_env),
    )


def _resume_command(dataset: Dataset, store: Store) -> str:
    """What makes what is missing, where the dataset stands now: it may have been copied."""
    command = str(dataset.plan.document["environment"]["command"])
    access = store.access
    sink = SinkConfig(s3=access.s3, storage=dict(access.options))
    return resume_at(command, store.root, section_settings("sink", sink))


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
    if status.num_shards == 0:
        print("its plan was not stored to the end; the job's command goes on with it", file=out)
    if status.failed or status.missing or status.num_shards == 0:
        print(f"to make what is missing:\n  {status.resume}", file=out)
        if status.to_add:
            print(f"  {status.to_add}", file=out)


@ends
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, print the status, exit."""
    parser = argparse.ArgumentParser(prog=program("status"), description=__doc__)
    add_sink(parser)
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    options = parser.parse_args(arguments)
    status = read_status(named_sink(options))
    if options.json:
        print(json.dumps(asdict(status), indent=2))
    else:
        print_status(status, sys.stdout)
    is_whole = status.num_shards > 0 and not (status.failed or status.missing or status.stray)
    sys.exit(0 if is_whole else 1)

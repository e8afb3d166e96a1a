"""Remove what crashes left behind: `python -m ldm_batch sweep SINK --older-than 24h`.

Temporary files on a disk, uncompleted uploads and temporary objects in S3, and rejections that no
object names: those of an attempt that lost, or died before its commit; input that was text and that
no plan names. Committed objects and what they name are never touched. Exit code 0, or 2 if it could
not look.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterator, Sequence

from ldm_batch import identity
from ldm_batch.commands.dataset_argument import add_sink, named_sink
from ldm_batch.commands.ending import ends
from ldm_batch.commands.program import program
from ldm_batch.dataset import RECEIPT_THREADS, map_in_threads
from ldm_batch.errors import AccessError, JobError
from ldm_batch.plan.save_inputs import planned_paths
from ldm_batch.storage import Leftover, Store
from ldm_batch.write.commit import read_named_digest

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}


def find_leftovers(store: Store, age_s: float) -> list[Leftover]:
    """What crashes left behind `age_s` seconds ago or earlier."""
    oldest = time.time() - age_s
    found = [
        *store.leftovers(),
        *_unnamed_rejections(store, oldest),
        *_unnamed_inputs(store, oldest),
    ]
    return [leftover for leftover in found if leftover.modified_at <= oldest]


def _unnamed_rejections(store: Store, oldest: float) -> Iterator[Leftover]:
    """Rejections that no object names, which were old before anybody looked into the objects.

    An attempt publishes its rejections, also where they stand by now, moments before its object:
    what it is about to name is young, and asked for its age last.
    """
    ages = store.modified_at(identity.REJECTED_FOLDER)
    old = [name for name, modified_at in ages.items() if modified_at <= oldest]
    parts = {name: parts for name in sorted(old) if (parts := identity.split_rejected(name))}
    shard_ids = sorted({shard_id for shard_id, _ in parts.values()})
    read = map_in_threads(lambda shard_id: _named(store, shard_id), shard_ids, RECEIPT_THREADS)
    named = dict(zip(shard_ids, read, strict=True))
    left = [name for name, (shard, digest) in parts.items() if named[shard] not in (None, digest)]
    ages = store.modified_at(identity.REJECTED_FOLDER) if left else {}
    for name in left:
        if name in ages:
            yield Leftover(f"{identity.REJECTED_FOLDER}/{name}", ages[name])


def _unnamed_inputs(store: Store, oldest: float) -> Iterator[Leftover]:
    """What was stored of text for a plan that never was: its driver died in between."""
    ages = store.modified_at(identity.INPUT_FOLDER)
    old = {f"{identity.INPUT_FOLDER}/{name}": age for name, age in ages.items() if age <= oldest}
    named = planned_paths(store) if old else set()
    for path in sorted(old.keys() - named):
        yield Leftover(path, old[path])


def _named(store: Store, shard_id: str) -> str | None:
    """Digest that a shard's object names, empty for none; None where a damaged one cannot say."""
    try:
        return read_named_digest(store, shard_id)
    except AccessError:
        raise
    except JobError:
        return None


def parse_age(text: str) -> float:
    """Seconds of an age like `30m`, `24h` or `2d`."""
    match = re.fullmatch(r"([0-9]+)([smhd])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not an age like 30m, 24h or 2d")
    return int(match[1]) * UNITS_S[match[2]]


def _refuse_elsewhere(store: Store) -> None:
    """Refuse a place without a dataset, and without anything of one."""
    is_dataset = store.has(identity.PLAN_PATH) or store.names(identity.DATA_FOLDER)
    if not is_dataset and not any(store.leftovers()):
        raise JobError(f"{store.root}: no dataset here (no {identity.PLAN_PATH})")


@ends
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, remove leftovers, print them, exit."""
    parser = argparse.ArgumentParser(prog=program("sweep"), description=__doc__)
    add_sink(parser)
    parser.add_argument(
        "--older-than", type=parse_age, default="24h", metavar="AGE", help="default: 24h"
    )
    parser.add_argument("--dry-run", action="store_true", help="print, remove nothing")
    options = parser.parse_args(arguments)
    store = named_sink(options)
    _refuse_elsewhere(store)
    leftovers = find_leftovers(store, options.older_than)
    for leftover in leftovers:
        if not options.dry_run:
            store.remove_leftover(leftover)
        kind = "upload" if leftover.upload_id else "file"
        age_h = (time.time() - leftover.modified_at) / 3600
        print(f"{kind} {store.uri(leftover.path)}, {age_h:.1f} hours old")
    print(f"{len(leftovers)} leftovers {'found' if options.dry_run else 'removed'}")

"""Remove what crashes left behind: `python -m ldm_batch sweep SINK --older-than 24h`.

Temporary files on a disk, uncompleted uploads and temporary objects in S3. Committed objects and
records are never touched. Exit code 0, or 2 if it could not look.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence

from ldm_batch.commands.dataset_argument import add_sink, named_sink
from ldm_batch.errors import LdmBatchError
from ldm_batch.storage import Leftover, Store

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}


def find_leftovers(store: Store, age_s: float) -> list[Leftover]:
    """What crashes left behind `age_s` seconds ago or earlier."""
    oldest = time.time() - age_s
    return [leftover for leftover in store.leftovers() if leftover.modified_at <= oldest]


def parse_age(text: str) -> float:
    """Seconds of an age like `30m`, `24h` or `2d`."""
    match = re.fullmatch(r"([0-9]+)([smhd])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not an age like 30m, 24h or 2d")
    return int(match[1]) * UNITS_S[match[2]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, remove leftovers, print them, exit."""
    parser = argparse.ArgumentParser(prog="python -m ldm_batch sweep", description=__doc__)
    add_sink(parser)
    parser.add_argument(
        "--older-than", type=parse_age, default="24h", metavar="AGE", help="default: 24h"
    )
    parser.add_argument("--dry-run", action="store_true", help="print, remove nothing")
    options = parser.parse_args(arguments)
    try:
        store = named_sink(options)
        leftovers = find_leftovers(store, options.older_than)
        for leftover in leftovers:
            if not options.dry_run:
                store.remove_leftover(leftover)
            kind = "upload" if leftover.upload_id else "file"
            age_h = (time.time() - leftover.modified_at) / 3600
            print(f"{kind} {store.uri(leftover.path)}, {age_h:.1f} hours old")
    except LdmBatchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{len(leftovers)} leftovers {'found' if options.dry_run else 'removed'}")

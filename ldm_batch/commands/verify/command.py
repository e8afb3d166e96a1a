"""Prove that a dataset is whole and right: `python -m ldm_batch verify SINK`.

Reads the dataset, and none of its inputs. With --regenerate random images are made again, as they
were made: then images that were made from other images need these, as they were.

Exit code 0 if every planned shard is there and right, 1 if something is wrong, 3 if nothing is
wrong but shards are missing, 2 if it cannot tell.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TextIO

from ldm_batch.commands.dataset_argument import MAX_LISTED, add_sink, named_sink
from ldm_batch.commands.ending import ends
from ldm_batch.commands.program import program
from ldm_batch.commands.verify.kinds import count_kinds
from ldm_batch.commands.verify.regenerate import Sample
from ldm_batch.commands.verify.verification import (
    EXIT_CANNOT_TELL,
    EXIT_RIGHT,
    EXIT_WRONG,
    Verification,
    verify,
)


def print_verification(found: Verification, out: TextIO) -> None:
    """Print a verification for people."""
    print(
        f"shards: {found.num_verified} of {found.num_shards} verified, {len(found.failed)} failed, "
        f"{len(found.missing)} missing",
        file=out,
    )
    print(
        f"rows: {found.num_rows:,} = {found.num_rows - sum(found.rejected.values()):,} with images "
        f"+ {sum(found.rejected.values()):,} rejected; images: {found.num_images:,}, "
        f"{found.num_own_seeds:,} with seeds of their own, {found.num_shared_seeds:,} with that of "
        "another image",
        file=out,
    )
    for index, message in list(found.failed.items())[:MAX_LISTED]:
        print(f"  failed: shard {index:05d}: {message}", file=out)
    if (again := found.regenerated) is not None:
        print(
            f"made again on {again.device}: {again.num_images} images, {again.num_equal} with the "
            f"same bytes, {again.num_within_tolerance} of another device or shape within tolerance"
            f"{f'; {again.num_not_made} could not be made' if again.num_not_made else ''}",
            file=out,
        )
    if found.not_regenerated:
        print(f"no image was made again: {found.not_regenerated}", file=out)
    for note in found.notes:
        print(f"  note: {note}", file=out)
    kinds = count_kinds(found.problems)
    if len(kinds) < len(found.problems):
        for kind, count in kinds[:MAX_LISTED]:
            print(f"  {count:,} of a kind: {kind}", file=out)
        if len(kinds) > MAX_LISTED:
            print(f"  and {len(kinds) - MAX_LISTED} kinds more", file=out)
    for problem in found.problems[:MAX_LISTED]:
        print(f"  wrong: {problem}", file=out)
    if len(found.problems) > MAX_LISTED:
        print(f"  and {len(found.problems) - MAX_LISTED} problems more (--json has all)", file=out)
    verdicts = {
        EXIT_RIGHT: "right and complete",
        EXIT_WRONG: f"{len(found.problems)} problems",
        EXIT_CANNOT_TELL: "what is there is right as it stands, but whether it is what its model "
        "makes cannot be told",
    }
    print(verdicts.get(found.exit_code, "right, but not complete"), file=out)


@ends
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, print what was found, exit."""
    parser = argparse.ArgumentParser(prog=program("verify"), description=__doc__)
    add_sink(parser)
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    parser.add_argument(
        "--regenerate", type=int, default=0, metavar="N", help="make N random images again"
    )
    parser.add_argument("--choice", type=int, default=0, help="seed of the random choice")
    parser.add_argument("--model-path", help="the planned model, if it is not where it was")
    parser.add_argument(
        "--lora-path",
        action="append",
        default=[],
        help="a planned LoRA, if it is not where it was; may be given several times",
    )
    options = parser.parse_args(arguments)
    if options.regenerate < 0:
        parser.error(f"--regenerate: {options.regenerate} is not a number of images")
    loras = tuple(options.lora_path)
    sample = Sample(options.regenerate, options.choice, options.model_path, loras)
    found = verify(named_sink(options), sample)
    if options.json:
        print(json.dumps({**asdict(found), "exit_code": found.exit_code}, indent=2))
    else:
        print_verification(found, sys.stdout)
    sys.exit(found.exit_code)

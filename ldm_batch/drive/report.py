"""What a run says, in words: its plan before it begins, and what became of it.

Must not know workers, nor decide anything.
"""

from __future__ import annotations

from typing import TextIO

from ldm_batch import identity
from ldm_batch.drive.settle import Work
from ldm_batch.progress import Tally, tell
from ldm_batch.records import Outcome
from ldm_batch.storage import Store

MAX_NAMED = 20
"""Failed shards that the command which makes them names; more, and it makes all that is missing."""


def print_plan(work: Work, store: Store, out: TextIO) -> None:
    """Print what there is, what is done, and what is to be done."""
    plan, done, todo = work.plan, work.done, work.todo
    files = {shard.file.name for shard in plan.shards}
    for note in plan.notes:
        tell(out, note)
    if plan.new_shards and len(plan.new_shards) < len(plan.shards):
        tell(out, f"new input: {len(plan.new_shards)} shards appended to the plan")
    tell(
        out,
        f"plan: {len(files)} files, {plan.num_rows:,} rows, {len(plan.shards)} shards; "
        f"{len(done & {s.index for s in plan.shards})} done, {len(todo)} to do "
        f"({sum(shard.num_rows for shard in todo):,} rows) -> {store.root}",
    )


def print_report(tally: Tally, store: Store, command: str, out: TextIO) -> None:
    """Print what became of a run, and the command that makes what failed."""
    tell(
        out,
        f"{tally.num_images:,} images from {tally.num_rows - tally.num_rejected:,} rows in "
        f"{tally.num_shards} shards; {tally.num_rejected:,} rows rejected",
    )
    for reason, count in tally.rejected.most_common():
        tell(out, f"  {count:,} {reason}")
    if tally.lost[Outcome.FOUND]:
        tell(out, f"{tally.lost[Outcome.FOUND]} shards were made by another run meanwhile")
    if tally.lost[Outcome.LOST_TO_SAME]:
        tell(out, f"{tally.lost[Outcome.LOST_TO_SAME]} shards were also made by another attempt")
    if tally.lost[Outcome.LOST_TO_OTHER]:
        tell(
            out,
            f"warning: {tally.lost[Outcome.LOST_TO_OTHER]} shards were made by another attempt "
            "with other bytes (other hardware or versions?); the first to commit stands",
        )
    if tally.failures:
        indices = sorted(failure.shard for failure in tally.failures)
        listed = ",".join(map(str, indices[:MAX_NAMED]))
        tell(out, f"{len(indices)} shards failed; to make them:")
        rest = "" if len(indices) > MAX_NAMED else f" 'shards=[{listed}]'"
        tell(out, f"  {command}{rest}")
    tell(out, f"dataset: {store.uri(identity.DATA_FOLDER)}")

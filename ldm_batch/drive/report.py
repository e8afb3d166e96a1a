"""What a run says, in words: its plan before it begins, and what became of it.

Must not know workers, nor decide anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from ldm_batch import identity
from ldm_batch.config import JobConfig
from ldm_batch.drive.settle import Work
from ldm_batch.progress import Tally, tell
from ldm_batch.records import Outcome
from ldm_batch.storage import Store

MAX_NAMED = 20
"""Failed shards that the command which makes them names; more, and it makes all that is missing."""

DEMO_MODEL = "demo:text_to_image"


def print_model(job: JobConfig, overrides: Sequence[str], out: TextIO) -> None:
    """Say which model draws, and what it knows, where rows were named and no job or model: what
    nobody chose is the demo's, which knows little."""
    set_here = {override.lstrip("+").partition("=")[0] for override in overrides}
    is_chosen = any(name.split(".")[0] in ("conf", "model") for name in set_here)
    if job.model.path == DEMO_MODEL and "source.uri" in set_here and not is_chosen:
        tell(
            out,
            "model: the demo model draws, which knows coloured shapes on plain backgrounds, 64 x "
            "64 pixels, and nothing else; conf=... chooses another, such as conf=txt2img_1m",
        )


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


def print_report(
    tally: Tally, store: Store, command: str, out: TextIO, *, to_add: str = ""
) -> None:
    """Print what became of a run, and the command that makes what failed.

    Args:
        to_add: what the command leaves out and may need.
    """
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
        num_final = sum(failure.is_final for failure in tally.failures)
        unless = f", {num_final} of them for good unless the job is changed as said" * (
            num_final > 0
        )
        tell(out, f"{len(indices)} shards failed{unless}; to make them:")
        rest = "" if len(indices) > MAX_NAMED else f" 'shards=[{listed}]'"
        tell(out, f"  {command}{rest}")
        if to_add:
            tell(out, f"  {to_add}")
    tell(out, f"dataset: {store.uri(identity.DATA_FOLDER)}")

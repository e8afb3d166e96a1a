"""Verify a whole dataset: its plan, every object that is there, and what is missing.

Reads every committed object; changes nothing. Must not know how what is found is shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import pyarrow as pa

from ldm_batch import identity
from ldm_batch.commands.verify.again import planned_rows, says_how
from ldm_batch.commands.verify.object import Expected, ObjectReport, verify_object
from ldm_batch.commands.verify.regenerate import Regenerated, Sample, regenerate
from ldm_batch.commands.verify.shared import (
    SharedIndex,
    describe_shared_keys,
    describe_shared_seeds,
    spread_seeds,
)
from ldm_batch.dataset import Dataset, map_in_threads, open_dataset
from ldm_batch.errors import JobError, StorageError, UnforeseenError
from ldm_batch.generate.choose import choose
from ldm_batch.generate.from_images import PARENT_SEED
from ldm_batch.made_as import describe_made_as
from ldm_batch.plan.stored import Plan
from ldm_batch.storage import Store

VERIFY_THREADS = 4
"""Decoding and hashing release the GIL; each thread keeps a local copy of one object."""
EXIT_RIGHT, EXIT_WRONG, EXIT_CANNOT_TELL, EXIT_INCOMPLETE = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found; `problems` is empty where all that is there is right."""

    num_shards: int
    num_verified: int
    missing: list[int]
    failed: dict[int, str]
    num_rows: int
    num_images: int
    num_own_seeds: int
    """Images whose seed came with their row; the others' are derived from the job's."""
    rejected: dict[str, int]
    num_shared_keys: int
    """Keys that stand in more than one shard."""
    num_shared_seeds: int
    """Images whose seed another image has, too: by chance, or because rows brought it."""
    made_as: dict[str, int]
    """Images that were made otherwise than planned, by how; see `made_as.py`."""
    notes: list[str]
    """What is allowed, but perhaps not meant."""
    problems: list[str]
    regenerated: Regenerated | None
    not_regenerated: str = ""
    """Why no image could be made again that was asked for: a model, or a LoRA, does not load, or
    what images were made from cannot be reached."""

    @property
    def exit_code(self) -> int:
        """What a script needs to know."""
        if self.problems:
            return EXIT_WRONG
        if self.not_regenerated:
            return EXIT_CANNOT_TELL
        is_whole = self.num_shards > 0 and not (self.missing or self.failed)
        return EXIT_RIGHT if is_whole else EXIT_INCOMPLETE


def verify(store: Store, sample: Sample | None = None) -> Verification:
    """Verify a dataset, and make some of its images again.

    Raises:
        JobError: there is no dataset.
    """
    dataset = open_dataset(store)
    totals = Totals()
    with SharedIndex() as keys, SharedIndex(within_shards=True) as seeds:
        for report in _verify_objects(dataset):
            totals.add(report)
            keys.add(report.shard, report.key_hashes)
            seeds.add(report.shard, spread_seeds(report.seeds))
        num_shared_keys, about_keys = describe_shared_keys(store, keys)
        num_shared_seeds, about_seeds = describe_shared_seeds(seeds)
    again, why_not = None, ""
    if sample is not None and sample.num_images and dataset.done:
        try:
            again = regenerate(dataset, sample)
        except UnforeseenError:
            raise
        except (JobError, StorageError) as error:  # does not hide what was found
            why_not = str(error)
    return Verification(
        num_shards=len(dataset.plan.shards),
        num_verified=len(dataset.done),
        missing=dataset.missing,
        failed=dataset.failed,
        num_rows=totals.num_rows,
        num_images=totals.num_images,
        num_own_seeds=totals.num_own_seeds,
        rejected=dict(totals.rejected.most_common()),
        num_shared_keys=num_shared_keys,
        num_shared_seeds=num_shared_seeds,
        made_as=dict(totals.made_as.most_common()),
        notes=[*about_keys, *about_seeds, *describe_made_as(totals.made_as)],
        problems=[
            *(f"{identity.DATA_FOLDER}/{n}: belongs to no planned shard" for n in dataset.stray),
            *_plan_problems(dataset.plan),
            *totals.problems,
            *(again.problems if again else ()),
        ],
        regenerated=again,
        not_regenerated=why_not,
    )


class Totals:
    """What the objects of a dataset hold together, and what is wrong with them."""

    def __init__(self) -> None:
        self.num_rows = self.num_images = self.num_own_seeds = 0
        self.rejected: Counter[str] = Counter()
        self.made_as: Counter[str] = Counter()
        self.problems: list[str] = []
        self._schema: pa.Schema | None = None

    def add(self, report: ObjectReport) -> None:
        """Count one object; of all objects, only the first one's schema is kept."""
        self.num_rows += report.num_rows
        self.num_images += report.num_images
        self.num_own_seeds += report.num_own_seeds
        self.rejected.update(report.rejected)
        self.made_as.update(report.made_as)
        self.problems += report.problems
        if self._schema is None:
            self._schema = report.schema
        elif report.schema is not None and not report.schema.equals(self._schema):
            path = identity.data_path(f"{report.shard:05d}")
            self.problems.append(f"{path}: has other columns than the first object")


def _verify_objects(dataset: Dataset) -> Iterator[ObjectReport]:
    plan = dataset.plan
    task = choose(dataset.job).task
    derive = task.seed_of(plan.form)
    planned = plan.document["images"]
    expected = Expected(
        plan.fingerprint,
        planned["num_images_per_prompt"],
        partial(derive, planned["seed"]),
        planned_rows(plan) if says_how(plan) else None,
        knows_parents=PARENT_SEED in task.columns.fields,
    )
    return map_in_threads(
        lambda shard: verify_object(dataset.store, shard, expected), dataset.done, VERIFY_THREADS
    )


def _plan_problems(plan: Plan) -> list[str]:
    """Check that the shards of each file cover its rows, once."""
    by_file: dict[str, list[tuple[int, int, int]]] = {}
    for s in plan.shards:
        by_file.setdefault(s.file.name, []).append((s.row_start, s.num_rows, s.file.num_rows))
    problems = []
    for name, parts in by_file.items():
        parts.sort()
        begins, (start, num_rows, total) = parts[0][0], parts[-1]
        meets = all(before[0] + before[1] == after[0] for before, after in pairwise(parts))
        if begins != 0 or not meets or start + num_rows != total:
            problems.append(f"{identity.PLAN_FOLDER}: the shards of {name} do not cover its rows")
    return problems

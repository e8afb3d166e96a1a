"""How many rows of a dataset may be rejected before its job stops as going wrong.

Judged over the dataset: by the receipts of what is done, and by this run. Must not know workers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import partial

from ldm_batch.config import JobConfig, shard_ranges
from ldm_batch.dataset import RECEIPT_THREADS, map_in_threads
from ldm_batch.drive.settle import Work
from ldm_batch.errors import JobError
from ldm_batch.progress import Tally
from ldm_batch.records import Shard
from ldm_batch.storage import Store
from ldm_batch.write.receipt import read_receipt

MIN_ROWS_TO_JUDGE = 200
"""Rejected rows are a share of at least so many: a few bad rows at the start are no bad input."""


class Budget:
    """The rejected rows that a job may have, `max_rejected_fraction` of its dataset's."""

    def __init__(self, job: JobConfig, store: Store) -> None:
        self._job, self._store = job, store
        self._work: Work | None = None
        self._earlier: tuple[int, Counter[str]] | None = None

    def expect(self, work: Work) -> None:
        """Judge this run by what it is to do and what was done before it."""
        self._work = work

    def check(self, tally: Tally) -> None:
        """Stop a job that rejects too many rows; one of shards that a user names is never stopped.

        What was done before is read only where this run's own rows are over the limit: a receipt
        of each shard.

        Raises:
            JobError: the rejected rows are more than the job allows.
        """
        work = self._work
        if work is None or shard_ranges(self._job.shards):
            return
        if not self._is_over(tally.num_rejected, tally.num_rows, work.todo):
            return
        num_rows, rejected = self._read_earlier(work)
        num_rows, rejected = num_rows + tally.num_rows, rejected + tally.rejected
        if self._is_over(rejected.total(), num_rows, work.plan.shards):
            reasons = ", ".join(f"{n} {reason}" for reason, n in rejected.most_common())
            raise JobError(
                f"stopped: {rejected.total()} of {num_rows} rows rejected ({reasons}), more than "
                f"max_rejected_fraction={self._job.max_rejected_fraction}. What is committed "
                "stays; raise the limit and run the same command again, or mend the input for a "
                "new sink"
            )

    def _is_over(self, num_rejected: int, num_rows: int, shards: Iterable[Shard]) -> bool:
        judged = max(num_rows, min(MIN_ROWS_TO_JUDGE, sum(shard.num_rows for shard in shards)))
        return num_rejected > self._job.max_rejected_fraction * judged

    def _read_earlier(self, work: Work) -> tuple[int, Counter[str]]:
        """Rows, and rejected ones by reason, of the shards that were done before this run."""
        if self._earlier is None:
            before = sorted(work.done - {shard.index for shard in work.todo})
            read = partial(read_receipt, self._store, fingerprint=work.plan.fingerprint)
            num_rows, rejected = 0, Counter[str]()
            for receipt in map_in_threads(read, before, RECEIPT_THREADS):
                num_rows += receipt.num_rows
                rejected.update(receipt.rejected)
            self._earlier = num_rows, rejected
        return self._earlier

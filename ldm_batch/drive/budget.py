"""How many rows of a dataset may be rejected before its job stops as going wrong.

Judged over the dataset: by the receipts of what is done, and by this run. Must not know workers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from threading import Thread
from typing import NamedTuple

import pyarrow as pa

from ldm_batch.columns import ARGUMENTS, NULLABLE
from ldm_batch.config import JobConfig, shard_ranges
from ldm_batch.dataset import RECEIPT_THREADS, map_in_threads, read_rejections
from ldm_batch.drive.settle import Work
from ldm_batch.errors import JobError, LdmBatchError
from ldm_batch.progress import Tally
from ldm_batch.records import Shard
from ldm_batch.storage import Store
from ldm_batch.write.receipt import read_receipt

MIN_ROWS_TO_JUDGE = 200
"""Rejected rows are a share of at least so many: a few bad rows at the start are no bad input."""
WHERE_IN_TEXT = re.compile(r"^line [0-9]+: ")
"""What stands before the message of a row that was read of text."""
READ_AT_ONCE = 1000
"""Receipts that a job waits for before it begins: seconds, where the store is far."""


class Budget:
    """The rejected rows that a job may have, `max_rejected_fraction` of its dataset's."""

    def __init__(self, job: JobConfig, store: Store) -> None:
        self._limit = job.max_rejected_fraction
        self._is_off = self._limit >= 1 or bool(shard_ranges(job.shards))
        self._store = store
        self._work: Work | None = None
        self._before: set[int] = set()
        self._earlier: Future[Earlier] | None = None

    def expect(self, work: Work) -> None:
        """Judge this run by what it is to do and what was done before it.

        The receipts of what was done are read, at once where they are few, else beside the run.
        """
        before = work.done - {shard.index for shard in work.todo}
        if self._is_off or (self._work is not None and before == self._before):
            self._work = work
            return
        self._work, self._before = work, before
        read = partial(_read_earlier, self._store, sorted(before), work.plan.fingerprint)
        self._earlier = Future()
        if len(before) <= READ_AT_ONCE:
            _fulfil(self._earlier, read)
        else:
            Thread(target=_fulfil, args=(self._earlier, read), daemon=True).start()

    def check(self, tally: Tally) -> None:
        """Stop a job that rejects too many rows; one of shards that a user names is never stopped.

        Raises:
            JobError: the rejected rows are more than the job allows.
        """
        if self._is_off or self._work is None or self._earlier is None:
            return
        is_over = self._is_over(tally.num_rejected, tally.num_rows, self._work.todo)
        if not is_over and not self._earlier.done():
            return  # many receipts are on their way, and this run adds to no trouble
        earlier = self._earlier.result()
        num_rows, rejected = earlier.num_rows + tally.num_rows, earlier.rejected + tally.rejected
        if self._is_over(rejected.total(), num_rows, self._work.plan.shards):
            reasons = ", ".join(f"{n} {reason}" for reason, n in rejected.most_common())
            [(commonest, _)] = rejected.most_common(1)
            example = _example(self._store, commonest, earlier.seen_in | tally.seen_in)
            raise JobError(
                f"stopped: {rejected.total()} of {num_rows} rows rejected ({reasons}), more than "
                f"max_rejected_fraction={self._limit}{example}. What is committed stays; raise the "
                "limit and run the same command again, or mend the input for a new sink"
            )

    def _is_over(self, num_rejected: int, num_rows: int, shards: Iterable[Shard]) -> bool:
        judged = max(num_rows, min(MIN_ROWS_TO_JUDGE, sum(shard.num_rows for shard in shards)))
        return num_rejected > self._limit * judged


class Earlier(NamedTuple):
    """What was done before this run: rows, and those of them that were rejected, by reason."""

    num_rows: int
    rejected: Counter[str]
    seen_in: dict[str, int]
    """A shard that rejected a row, by the reason."""


def _read_earlier(store: Store, indices: Sequence[int], fingerprint: str) -> Earlier:
    num_rows, rejected, seen_in = 0, Counter[str](), dict[str, int]()
    read = partial(read_receipt, store, fingerprint=fingerprint)
    for receipt in map_in_threads(read, indices, RECEIPT_THREADS):
        num_rows += receipt.num_rows
        rejected.update(receipt.rejected)
        seen_in |= dict.fromkeys(receipt.rejected, receipt.shard)
    return Earlier(num_rows, rejected, seen_in)


def _example(store: Store, reason: str, seen_in: Mapping[str, int]) -> str:
    """One of the rejected rows and what could be done for all like it; nothing where its record
    cannot be read, which is no reason to hide the rest."""
    try:
        rows = read_rejections(store, f"{seen_in[reason]:05d}")
    except (LdmBatchError, pa.ArrowException, OSError, KeyError):
        return ""
    row = next((row for row in rows if row["reason"] == reason), None)
    if row is None:
        return ""
    told = f"; one of the {reason}: row {row['input_row']} of {row['input_file']}, {row['message']}"
    message = WHERE_IN_TEXT.sub("", str(row["message"]))
    field = message.partition(" ")[0]
    if "source.types" in message:
        return told
    if field in ARGUMENTS or field in NULLABLE:
        return f"{told} (source.columns.{field}=null, in a new sink, leaves such a column unread)"
    return told


def _fulfil(future: Future[Earlier], read: Callable[[], Earlier]) -> None:
    try:
        future.set_result(read())
    except Exception as error:  # whoever asks for the result gets it
        future.set_exception(error)

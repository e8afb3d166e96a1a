"""Which worker makes which shard next: the queue, attempts, retries, and copies of stragglers.

Pure: times are arguments, workers are numbers, nodes are names. Must not know Ray, storage or how
a shard is made; the simulation of large clusters runs this same code.
"""

from __future__ import annotations

import statistics
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from ldm_batch.cluster.attempts import Pending, Trouble, count_attempt
from ldm_batch.config.cluster import ClusterConfig
from ldm_batch.records import Failure, Shard

MAX_PREEMPTIONS = 100
"""A shard that meets more takes longer than its nodes live: from then on they are attempts."""
MAX_LOSSES = 5
"""A shard that meets more may be what takes nodes down: from then on they are attempts."""
COPY_AFTER = 1.5
"""A shard is a straggler when it takes so many times the median of its rows."""
MEASURED_SHARDS = 256
"""How many of the last finished shards the median is taken of."""


class Ending(StrEnum):
    """Why a worker is gone, with all that it had under way."""

    DIED = "died"
    """Its process ended and its node lives: an attempt at what it was making."""
    PREEMPTED = "preempted"
    """Its node was drained or shut down in order: no attempt."""
    LOST = "lost"
    """Its node, or the connection to it, is gone: no attempt, unless it happens again and again."""


@dataclass(slots=True)
class _Run:
    pending: Pending
    started_at: float
    leads_since: float | None = None
    """When it was first seen with no other before it in its worker."""


@dataclass(slots=True)
class _Worker:
    number: int
    node: str
    running: dict[int, _Run] = field(default_factory=dict)
    """By shard, the one being made first."""
    is_retiring: bool = False


class Schedule:
    """The shards of a job, what became of each so far, and who has them.

    A shard is handed out once, again after trouble up to `max_attempts` times, and with
    `copy_stragglers` a second time while it is under way.
    """

    def __init__(self, shards: Sequence[Shard], cluster: ClusterConfig) -> None:
        self._cluster = cluster
        self._shards = shards
        self._fresh = range(len(shards))
        """Places of the shards that were never handed out."""
        self._is_from_end = False
        self._first: deque[Pending] = deque()
        self._again: deque[Pending] = deque()
        self._num_unfinished = len(shards)
        self._workers: dict[int, _Worker] = {}
        self._usable: dict[int, _Worker] = {}
        self._open: dict[int, None] = {}
        """Workers that may take another shard; those without any come first in `hand_out`."""
        self._nodes: Counter[str] = Counter()
        self._seconds_per_row: deque[float] = deque(maxlen=MEASURED_SHARDS)

    @property
    def num_unfinished(self) -> int:
        """Shards that have neither a receipt nor a failure yet."""
        return self._num_unfinished

    @property
    def num_waiting(self) -> int:
        """Shards that no worker has."""
        return len(self._fresh) + len(self._first) + len(self._again)

    def start_with(self, shards: Sequence[Shard]) -> None:
        """Make these shards and no others; before any is handed out."""
        self._shards, self._fresh = shards, range(len(shards))
        self._num_unfinished = len(shards)

    def meet_another(self, *, from_end: bool) -> None:
        """Another job makes shards of this dataset too: go on from that side of the list from which
        it does not come, or both would make every shard at the same time."""
        self._is_from_end = from_end

    def add_worker(self, number: int, node: str) -> None:
        """A worker has loaded its model and may take shards."""
        worker = _Worker(number, node)
        self._workers[number] = self._usable[number] = worker
        self._open[number] = None
        self._nodes[node] += 1

    def retire_worker(self, number: int) -> None:
        """Give a worker nothing more; what it has may finish."""
        worker = self._workers[number]
        if not worker.is_retiring:
            worker.is_retiring = True
            del self._usable[number]
            self._open.pop(number, None)
            self._nodes -= Counter([worker.node])

    def is_idle(self, number: int) -> bool:
        """Tell whether a worker has nothing under way."""
        return not self._workers[number].running

    def hand_out(self, now: float, *, num_coming: int = 0) -> list[tuple[int, Shard]]:
        """Shards to start, each with its worker: one for each idle worker, then one ahead each
        while there are plenty, then copies of stragglers.

        Args:
            now: seconds on a clock that never goes back.
            num_coming: workers that load just now; what was taken ahead would be theirs.
        """
        given: list[tuple[int, Shard]] = []
        for depth in range(self._cluster.shards_in_flight):
            is_plenty = depth == 0 or self.num_waiting >= len(self._usable) + num_coming
            if not self.num_waiting or not is_plenty:
                break
            for number in list(self._open):
                worker = self._workers[number]
                if len(worker.running) == depth and (pending := self._take(worker)) is not None:
                    given.append(self._start(worker, pending, now))
        if self._cluster.copy_stragglers and self._open and not self.num_waiting:
            given += self._copy_stragglers(now)
        return given

    def finish(self, number: int, shard: int, now: float) -> bool:
        """A worker made a shard; False if a copy of it was finished before."""
        run = self._end_run(number, shard)
        if run.pending.is_finished:
            return False
        self._seconds_per_row.append((now - run.started_at) / run.pending.shard.num_rows)
        self._finish(run.pending)
        return True

    def fail(self, number: int, shard: int, trouble: Trouble) -> Failure | None:
        """An attempt came to nothing; the failure to report if it was the shard's last.

        Raises:
            JobError: the trouble is not the shard's but the job's.
        """
        worker = self._workers[number]
        pending = self._end_run(number, shard).pending
        pending.last_worker, pending.last_node = number, worker.node
        return self._count(pending, trouble)

    def find_hung(self, now: float) -> list[tuple[int, Shard]]:
        """Workers that have been at a shard for longer than a job lets them, each with that one.

        What waits in a worker behind another shard is not being made.
        """
        if (limit_s := self._cluster.max_shard_s) is None:
            return []
        found = []
        for worker in self._workers.values():
            for run in list(worker.running.values())[:1]:
                if run.leads_since is None:
                    run.leads_since = now
                if now - run.leads_since >= limit_s:
                    found.append((worker.number, run.pending.shard))
        return found

    def lose_worker(self, number: int, ending: Ending, message: str) -> list[Failure]:
        """A worker is gone; what it had is tried again, or has failed for the last time.

        Args:
            message: why it is gone, for the record of a shard that fails by it.
        """
        self.retire_worker(number)
        worker = self._workers.pop(number)
        runs = list(worker.running.values())
        failures: list[Failure] = []
        for run in runs:
            run.pending.runners.discard(number)
            if run.pending.is_finished:
                continue
            if self._is_excused(run.pending, ending, is_alone=len(runs) == 1):
                self._put_back(run.pending, self._first)
                continue
            run.pending.last_worker, run.pending.last_node = number, worker.node
            if (failure := self._count(run.pending, Trouble(message))) is not None:
                failures.append(failure)
        return failures

    def _take(self, worker: _Worker) -> Pending | None:
        if any(run.pending.is_suspect for run in worker.running.values()):
            return None
        for queue in (self._first, self._again):
            if queue is self._again and self._fresh:
                place = -1 if self._is_from_end else 0
                pending = Pending(self._shards[self._fresh[place]])
                self._fresh = self._fresh[:-1] if self._is_from_end else self._fresh[1:]
                return pending
            for position, pending in enumerate(queue):
                if self._suits(pending, worker):
                    del queue[position]
                    return pending
        return None

    def _suits(self, pending: Pending, worker: _Worker) -> bool:
        """After trouble another node is tried if there is one, else another worker."""
        if pending.is_suspect and worker.running:
            return False
        if len(self._nodes) > 1:
            return pending.last_node != worker.node
        return len(self._usable) == 1 or pending.last_worker != worker.number

    def _start(self, worker: _Worker, pending: Pending, now: float) -> tuple[int, Shard]:
        pending.runners.add(worker.number)
        worker.running[pending.shard.index] = _Run(pending, now)
        if len(worker.running) >= self._cluster.shards_in_flight:
            del self._open[worker.number]
        return worker.number, pending.shard

    def _end_run(self, number: int, shard: int) -> _Run:
        worker = self._workers[number]
        run = worker.running.pop(shard)
        run.pending.runners.discard(number)
        if not worker.is_retiring:
            self._open[number] = None
        return run

    def _finish(self, pending: Pending) -> None:
        pending.is_finished = True
        self._num_unfinished -= 1

    def _count(self, pending: Pending, trouble: Trouble) -> Failure | None:
        if pending.is_finished:
            return None
        failure = count_attempt(pending, trouble, self._cluster.max_attempts)
        if failure is None:
            self._put_back(pending, self._again)
        elif pending.runners:
            return None  # a copy is still under way and decides
        else:
            self._finish(pending)
        return failure

    @staticmethod
    def _put_back(pending: Pending, queue: deque[Pending]) -> None:
        if not pending.runners:
            queue.append(pending)

    @staticmethod
    def _is_excused(pending: Pending, ending: Ending, *, is_alone: bool) -> bool:
        """Tell whether the end of a worker is no attempt at a shard that it had."""
        if ending is Ending.PREEMPTED:
            pending.preemptions += 1
            return pending.preemptions <= MAX_PREEMPTIONS
        if ending is Ending.LOST:
            pending.losses += 1
            return pending.losses <= MAX_LOSSES
        if is_alone:
            return False
        pending.is_suspect = True
        return True

    def _copy_stragglers(self, now: float) -> list[tuple[int, Shard]]:
        idle = [self._workers[n] for n in self._open if not self._workers[n].running]
        if not idle or not self._seconds_per_row:
            return []
        given = []
        for run in sorted(self._stragglers(now), key=lambda run: run.started_at)[: len(idle)]:
            [runner] = run.pending.runners
            node = self._workers[runner].node
            worker = next((worker for worker in idle if worker.node != node), idle[0])
            idle.remove(worker)
            given.append(self._start(worker, run.pending, now))
        return given

    def _stragglers(self, now: float) -> Iterator[_Run]:
        """Runs without a copy that take long, or wait behind another in their worker."""
        patience = COPY_AFTER * statistics.median(self._seconds_per_row)
        for worker in self._workers.values():
            for place, run in enumerate(worker.running.values()):
                is_single = len(run.pending.runners) == 1 and not run.pending.is_finished
                is_slow = now - run.started_at >= patience * run.pending.shard.num_rows
                if is_single and (is_slow or place > 0):
                    yield run

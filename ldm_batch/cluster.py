"""Workers on Ray: shards in, receipts and failures out.

The only user of Ray. Only shard descriptions, receipts and failures travel through it; must not
know plans, rows or pixels.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ldm_batch.attempts import Loader, Task, Trouble, attempt, count_attempt, unwrap
from ldm_batch.config import ClusterConfig
from ldm_batch.errors import JobError
from ldm_batch.records import Failure, Receipt, Shard

MAX_LOAD_DEATHS = 3
MAX_PREEMPTIONS = 100
POLL_S = 1.0
OBJECT_STORE_BYTES = 128 * 1024 * 1024
QUIET_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}


def run_on_ray(
    load: Loader, shards: Sequence[Shard], cluster: ClusterConfig
) -> Iterator[Receipt | Failure]:
    """Make shards on Ray workers and yield what became of each, as it becomes known.

    A shard whose attempt failed is tried again on another worker, up to `max_attempts`; attempts
    that end because a node was preempted are not counted. Closing the iterator stops the workers.

    Raises:
        JobError: Ray does not start, or the model does not load.
    """
    with _ray_session(cluster):
        pool = _Pool(load, shards, cluster)
        try:
            yield from pool.run()
        finally:
            pool.stop()


def call_on_ray(function: Callable[[], Any], cluster: ClusterConfig) -> Any:
    """Call a function once where a worker would run, and return what it returns.

    Raises:
        JobError: Ray does not start, or the function raised.
    """
    with _ray_session(cluster):
        import ray

        options = {"num_cpus": cluster.cpus_per_worker, "num_gpus": _gpus_per_worker(ray, cluster)}
        remote = ray.remote(attempt).options(max_retries=0, **options)
        try:
            result = ray.get(remote.remote(function))
        except ray.exceptions.RayError as error:
            raise JobError(f"a worker died: {_brief(error)}") from error
    return unwrap(result)


class _Actor:
    """Lives in a Ray worker process: loads once, then makes shard after shard."""

    def __init__(self, load: Loader) -> None:
        self._load = load
        self._worker: Any = None

    def load(self) -> Trouble | None:
        """Load the model; what went wrong, if anything."""
        self._worker = attempt(self._load)
        return self._worker if isinstance(self._worker, Trouble) else None

    def make(self, shard: Shard) -> Receipt | Trouble:
        """Make one shard."""
        made: Receipt | Trouble = attempt(self._worker.make_shard, shard)
        return made


@dataclass(slots=True)
class _Member:
    """A worker of the pool and the tasks that it has under way, by reference."""

    number: int
    actor: Any
    running: dict[Any, Task] = field(default_factory=dict)


class _Pool:
    """The workers of a job and the shards that wait for one."""

    def __init__(self, load: Loader, shards: Sequence[Shard], cluster: ClusterConfig) -> None:
        import ray

        self._ray = ray
        self._load = ray.put(load)
        self._cluster = cluster
        self._queue = deque(Task(shard) for shard in shards)
        self._loading: dict[Any, _Member] = {}
        self._ready: dict[int, _Member] = {}
        self._started = 0
        self._load_deaths = 0
        self._make_actor = _actor_factory(ray, cluster)

    def run(self) -> Iterator[Receipt | Failure]:
        for _ in range(min(_num_workers(self._ray, self._cluster), len(self._queue))):
            self._start_worker()
        while self._queue or any(member.running for member in self._ready.values()):
            self._feed()
            references = [*self._loading, *(r for m in self._ready.values() for r in m.running)]
            for reference in self._ray.wait(references, num_returns=1, timeout=POLL_S)[0]:
                if reference in self._loading:
                    self._on_loaded(reference)
                else:
                    yield from self._on_made(reference)

    def stop(self) -> None:
        for member in (*self._loading.values(), *self._ready.values()):
            self._ray.kill(member.actor, no_restart=True)
        self._loading.clear()
        self._ready.clear()

    def _start_worker(self) -> None:
        actor = self._make_actor(self._load)
        self._loading[actor.load.remote()] = _Member(self._started, actor)
        self._started += 1

    def _on_loaded(self, reference: Any) -> None:
        member = self._loading.pop(reference)
        try:
            trouble = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._load_deaths += not _is_preemption(error)
            if self._load_deaths >= MAX_LOAD_DEATHS:
                raise JobError(
                    f"{self._load_deaths} workers died while they loaded the model (out of "
                    f"memory?); last: {_brief(error)}"
                ) from error
            self._start_worker()
            return
        if trouble is not None:
            raise JobError(trouble.message)
        self._load_deaths = 0
        self._ready[member.number] = member

    def _feed(self) -> None:
        """Hand out shards: one to each idle worker, then one ahead while there are plenty."""
        for depth in range(self._cluster.shards_in_flight):
            for member in self._ready.values():
                plenty = depth == 0 or len(self._queue) >= len(self._ready)
                if len(member.running) == depth and plenty:
                    self._hand_out(member)

    def _hand_out(self, member: _Member) -> None:
        if any(task.is_suspect for task in member.running.values()):
            return
        for position, task in enumerate(self._queue):
            is_elsewhere = len(self._ready) > 1 and task.last_worker == member.number
            if is_elsewhere or (task.is_suspect and member.running):
                continue
            del self._queue[position]
            task.last_worker = member.number
            member.running[member.actor.make.remote(task.shard)] = task
            return

    def _on_made(self, reference: Any) -> Iterator[Receipt | Failure]:
        member = next(m for m in self._ready.values() if reference in m.running)
        try:
            made = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            yield from self._on_death(member, error)
            return
        task = member.running.pop(reference)
        if isinstance(made, Receipt):
            yield made
        else:
            yield from self._again(task, made)

    def _on_death(self, member: _Member, error: Exception) -> Iterator[Receipt | Failure]:
        """A worker is gone with all that it had under way; start another in its place."""
        del self._ready[member.number]
        self._ray.kill(member.actor, no_restart=True)
        self._start_worker()
        tasks = list(member.running.values())
        for task in tasks:
            if _is_preemption(error) and task.preemptions < MAX_PREEMPTIONS:
                task.preemptions += 1
                self._queue.append(task)
            elif len(tasks) > 1:
                task.is_suspect = True
                self._queue.append(task)
            else:
                yield from self._again(task, Trouble(f"its worker died: {_brief(error)}"))

    def _again(self, task: Task, trouble: Trouble) -> Iterator[Failure]:
        failure = count_attempt(task, trouble, self._cluster.max_attempts)
        if failure is None:
            self._queue.append(task)
        else:
            yield failure


def _actor_factory(ray: Any, cluster: ClusterConfig) -> Callable[[Any], Any]:
    options: Mapping[str, Any] = {
        "num_cpus": cluster.cpus_per_worker,
        "num_gpus": _gpus_per_worker(ray, cluster),
        "max_concurrency": cluster.shards_in_flight,
        "max_restarts": 0,
        "max_task_retries": 0,
    }
    remote = ray.remote(_Actor).options(**options)
    return lambda load: remote.remote(load)


def _gpus_per_worker(ray: Any, cluster: ClusterConfig) -> float:
    if cluster.gpus_per_worker is not None:
        return cluster.gpus_per_worker
    return 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0


def _num_workers(ray: Any, cluster: ClusterConfig) -> int:
    if cluster.num_workers is not None:
        return cluster.num_workers
    resources, gpus = ray.cluster_resources(), _gpus_per_worker(ray, cluster)
    if gpus:
        return max(1, int(resources.get("GPU", 0) / gpus))
    return max(1, int(resources.get("CPU", 1) / max(cluster.cpus_per_worker, 0.01)))


def _is_preemption(error: Exception) -> bool:
    return bool(getattr(error, "preempted", False))


def _brief(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextmanager
def _ray_session(cluster: ClusterConfig) -> Iterator[None]:
    """Join the named cluster, or start a local one of our own; a session that is there stays."""
    os.environ.update({k: v for k, v in QUIET_RAY.items() if k not in os.environ})
    import ray

    if ray.is_initialized():
        yield
        return
    in_main_thread = threading.current_thread() is threading.main_thread()
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=cluster.address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            **({} if cluster.address else _local_resources(cluster)),
        )
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise JobError(f"cluster.address: Ray does not start: {_brief(error)}") from error
    try:
        if in_main_thread:
            signal.signal(signal.SIGTERM, on_terminate)
        yield
    finally:
        ray.shutdown()


def _local_resources(cluster: ClusterConfig) -> dict[str, Any]:
    """A local Ray has room for every worker that was asked for, however few cores there are."""
    wanted = math.ceil((cluster.num_workers or 0) * cluster.cpus_per_worker)
    return {
        "num_cpus": max(len(os.sched_getaffinity(0)), wanted),
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
    }

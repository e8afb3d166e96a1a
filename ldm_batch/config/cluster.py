"""The part of a job that says where it runs, and its checks; nothing here changes an image.

Knows nothing of where the values come from (Hydra, Python) nor of Ray's own calls.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ldm_batch.config.bounds import one_of, within

Executor = Literal["ray", "in_process"]
Placement = Literal["pack", "spread"]
EXECUTORS: tuple[Executor, ...] = get_args(Executor)
PLACEMENTS: tuple[Placement, ...] = get_args(Placement)
LABEL_SELECTOR = re.compile(r"!?(\w[\w.-]*|in\(\w[\w.-]*(, *\w[\w.-]*)*\))")
RAYS_OWN = {
    "CPU": "cluster.cpus_per_worker",
    "GPU": "cluster.gpus_per_worker",
    "memory": "cluster.memory_per_worker",
    "object_store_memory": "no such field, workers keep nothing there",
}
SMALLEST_AMOUNT = 0.0001
"""Ray counts resources in ten-thousandths."""
LAST_PORT = 65535


@dataclass
class ClusterConfig:
    """Where the job runs; nothing here changes an image."""

    executor: str = "ray"
    """`ray`, or `in_process`: one worker in this process, for debugging."""
    address: str | None = None
    """Ray address `host:port`; null starts a local Ray, `auto` joins the cluster that this machine
    is part of."""
    num_workers: int | None = None
    """Exactly so many workers, one pipeline each; null: between `min_workers` and `max_workers`."""
    min_workers: int = 1
    """Workers asked for at once even where the cluster has no room for them yet: what an
    autoscaler starts nodes for."""
    max_workers: int | None = None
    """Workers at most; null: as many as fit, by their CPUs, GPUs, memory and resources. The pool
    follows the cluster: it grows when nodes join and shrinks when they are drained, or when few
    shards are left."""
    cpus_per_worker: float = 1.0
    """CPUs that Ray keeps for one worker."""
    gpus_per_worker: float | None = None
    """GPUs of one worker, fractions too; null: 1 where the cluster has any, else 0."""
    memory_per_worker: int | None = None
    """Bytes of main memory that Ray keeps for one worker; null: not counted."""
    resources: dict[str, float] = field(default_factory=dict)
    """Custom Ray resources of one worker, e.g. `{spot: 1}`."""
    labels: dict[str, str] = field(default_factory=dict)
    """Only nodes with these Ray labels, e.g. `{ray.io/accelerator-type: H100}`; `!a`,
    `in(a,b)` and `!in(a,b)` are understood; in a shell quotes stand around such a setting."""
    placement: str = "pack"
    """`pack` fills nodes one by one, `spread` puts workers on as many nodes as possible."""
    runtime_env: dict[str, Any] = field(default_factory=dict)
    """Ray runtime environment of the workers; secrets do not belong here."""
    start_timeout_s: float = 600.0
    """Seconds without any worker after which the job gives up: no room, or no node that works."""
    shards_in_flight: int = 2
    """Shards per worker under way at once, so that the device never waits for input or output."""
    max_attempts: int = 3
    """How often a shard is tried before it is recorded as failed; attempts that ended because a
    node was preempted or lost are not counted."""
    max_shard_s: float | None = None
    """Seconds that a worker may take for a shard: one that takes longer hangs, is told of and
    ended, and the shard is tried elsewhere, as after any other attempt. Null: as long as it takes.
    With Ray alone, as nothing else could end it."""
    copy_stragglers: bool = False
    """At the end of a job give idle workers copies of the slowest shards; the first to commit
    wins, so a copy costs device time and nothing else. Not done with `overwrite`, or on a store
    where the first does not win (`sink.allow_unconditional`)."""


def check_cluster(cluster: ClusterConfig) -> Iterator[str]:
    """Problems of the fields of `cluster`, a line each."""
    yield from one_of("cluster.executor", cluster.executor, EXECUTORS)
    yield from one_of("cluster.placement", cluster.placement, PLACEMENTS)
    yield from _check_num_workers(cluster)
    yield from within("cluster.cpus_per_worker", cluster.cpus_per_worker, 0, 1024)
    yield from within("cluster.gpus_per_worker", cluster.gpus_per_worker, 0, 64)
    yield from within("cluster.memory_per_worker", cluster.memory_per_worker, 1, 2**45)
    yield from within("cluster.start_timeout_s", cluster.start_timeout_s, 1, 7 * 24 * 3600)
    yield from within("cluster.shards_in_flight", cluster.shards_in_flight, 1, 16)
    yield from within("cluster.max_attempts", cluster.max_attempts, 1, 100)
    yield from within("cluster.max_shard_s", cluster.max_shard_s, 1, 30 * 24 * 3600)
    if cluster.max_shard_s is not None and cluster.executor == "in_process":
        yield "cluster.max_shard_s: needs cluster.executor=ray; this process cannot end itself"
    for name, amount in cluster.resources.items():
        yield from within(f"cluster.resources.{name}", amount, 0, 1_000_000)
        yield from _ray_amount(f"cluster.resources.{name}", amount)
        if name in RAYS_OWN:
            yield f"cluster.resources.{name}: is Ray's own; use {RAYS_OWN[name]}"
    for name, selector in cluster.labels.items():
        if not LABEL_SELECTOR.fullmatch(selector):
            yield (
                f"cluster.labels.{name}: {selector!r} is not a value, `!value`, `in(a,b)` or "
                "`!in(a,b)`"
            )
    yield from _ray_amount("cluster.gpus_per_worker", cluster.gpus_per_worker or 0)
    yield from _check_address(cluster.address)


def _check_num_workers(cluster: ClusterConfig) -> Iterator[str]:
    yield from within("cluster.num_workers", cluster.num_workers, 1, 100_000)
    yield from within("cluster.min_workers", cluster.min_workers, 1, 100_000)
    yield from within("cluster.max_workers", cluster.max_workers, 1, 100_000)
    if cluster.max_workers is not None and cluster.min_workers > cluster.max_workers:
        yield (
            f"cluster.min_workers: {cluster.min_workers} is more than cluster.max_workers "
            f"({cluster.max_workers})"
        )
    if cluster.num_workers is not None and (
        cluster.max_workers is not None or cluster.min_workers != 1
    ):
        yield "cluster.num_workers: is exact; leave min_workers and max_workers out, or it"


def _check_address(address: str | None) -> Iterator[str]:
    if address is None or address == "auto" or address.startswith(("http://", "https://")):
        return  # of a dashboard's address is said elsewhere what it is
    host, _, port = address.rpartition(":")
    if address == "":
        yield "cluster.address: not set; name the cluster, e.g. cluster.address=10.0.0.1:6379"
    elif address.startswith("ray://"):
        yield (
            f"cluster.address: {address!r} is for Ray's client, which cannot follow a cluster; run "
            "the job on the cluster (jobs/submit.sh) with cluster=auto"
        )
    elif not host or not port.isdecimal():
        yield f"cluster.address: {address!r} is not HOST:PORT, e.g. 10.0.0.1:6379, or auto"
    elif not 0 < int(port) <= LAST_PORT:
        yield f"cluster.address: {address!r}: a port is 1 to {LAST_PORT}, e.g. 6379"


def _ray_amount(path: str, amount: float) -> Iterator[str]:
    if amount > 1 and amount != int(amount):
        yield f"{path}: {amount}; above 1 Ray takes whole numbers only"
    elif 0 < amount < SMALLEST_AMOUNT:
        yield f"{path}: {amount} is less than Ray counts, {SMALLEST_AMOUNT}"

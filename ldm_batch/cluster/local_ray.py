"""A Ray of a job's own, on this machine alone: its room, its folder, its ports.

Must not know how a cluster is joined, nor workers.
"""

from __future__ import annotations

import inspect
import math
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from ldm_batch.config.cluster import ClusterConfig
from ldm_batch.errors import JobError

OBJECT_STORE_BYTES = 128 * 1024 * 1024
"""Of a local Ray, which would keep 30 % of the memory: only shards and receipts travel."""
OWN_RAY = "ldm_batch_own"
"""A resource by which the local Ray of a job is known to other jobs."""
RAYS_FILES_BYTES = 16 * 2**20
"""Logs and sockets of a local Ray; a job of an hour leaves a few MiB."""
AGENT_PORT = "dashboard_agent_listen_port"
RAYS_FOLDER = (
    "it keeps its files below RAY_TMPDIR, else TMPDIR, else /tmp: name a folder there with a short "
    "path, room, and the right to write; cluster=in_process needs no Ray"
)


def check_folder() -> None:
    """Refuse a folder in which a local Ray would wait for what cannot come: one without room, or
    that takes no files, or no sockets.

    Raises:
        JobError: it is unfit, and why.
    """
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    try:
        os.makedirs(folder, exist_ok=True)  # as Ray does
        free_bytes = shutil.disk_usage(folder).free
        with tempfile.TemporaryDirectory(prefix="ray-", dir=folder) as own:
            Path(own, "log").write_bytes(bytes(1))
            with socket.socket(socket.AF_UNIX) as tried:
                tried.bind(f"{own}/s")
    except OSError as error:
        why = error.strerror or error
        raise JobError(
            f"cluster: a local Ray cannot keep its files in {folder} ({why}); {RAYS_FOLDER}"
        ) from error
    if free_bytes < RAYS_FILES_BYTES:
        raise JobError(
            f"cluster: a local Ray needs {RAYS_FILES_BYTES // 2**20} MiB for its files, and "
            f"{folder} has {free_bytes // 2**20}; {RAYS_FOLDER}"
        )


@contextmanager
def own_agent_port(ray: ModuleType) -> Iterator[None]:
    """Let the agent of a local Ray take any port that is free. Ray gives every agent of a machine
    the same one, and a second waits for seconds until it goes on without."""
    # Private: `ray.init` does not hand this parameter on. A Ray without it goes on as it does.
    made = getattr(ray._private.parameter, "RayParams", None)
    if made is None or AGENT_PORT not in inspect.signature(made).parameters:
        yield
        return
    with replaced(ray._private.parameter, "RayParams", partial(made, **{AGENT_PORT: 0})):
        yield


@contextmanager
def replaced(module: ModuleType, name: str, value: object) -> Iterator[None]:
    """Let something else stand for a name of Ray's own; a Ray that has no such name stays as it
    is."""
    if not hasattr(module, name):
        yield
        return
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def local_resources(cluster: ClusterConfig) -> dict[str, Any]:
    """A local Ray has room for every worker that was asked for, however few cores there are."""
    cores, cpus = count_cores(), cluster.cpus_per_worker
    num_workers = cluster.num_workers or max(cluster.min_workers, int(cores / max(cpus, 0.01)))
    wanted = math.ceil((cluster.num_workers or cluster.min_workers) * cpus)
    return {
        "num_cpus": max(cores, wanted),
        "resources": {
            OWN_RAY: 1,
            **{name: num_workers * amount for name, amount in cluster.resources.items()},
        },
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
    }


def count_cores() -> int:
    """Cores that this process may use; macOS does not tell, and has no limit to it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

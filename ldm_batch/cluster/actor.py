"""A worker process on Ray: where it is, its model, and the shards that it makes.

Must not know the pool or other workers.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Collection
from types import ModuleType
from typing import Any

from ldm_batch.cluster.attempts import Loader, ShardMaker, Trouble, catch_trouble
from ldm_batch.config.cluster import ClusterConfig
from ldm_batch.records import Receipt, Shard

NODE_ID = "ray.io/node-id"
"""The label that Ray gives every node."""


class _Actor:
    """Lives in a Ray worker process: loads once, then makes shard after shard."""

    def __init__(self, load: Loader) -> None:
        self._load = load
        self._worker: ShardMaker | None = None

    def place(self) -> tuple[str, str]:
        """Id and host name of the node that it was put on."""
        return own_node()

    def load(self) -> dict[str, str] | Trouble:
        """Load the model; what it runs on, or what went wrong."""
        hide_gpus_not_given()
        loaded = catch_trouble(self._load)
        if isinstance(loaded, Trouble):
            return loaded
        self._worker = loaded
        return loaded.environment()

    def make(self, shard: Shard, terms: Any) -> Receipt | Trouble:
        """Make one shard."""
        assert self._worker is not None
        return catch_trouble(self._worker.make_shard, shard, terms)


def hide_gpus_not_given() -> None:
    """Let this process see no GPU where Ray gave it none: Ray leaves what it sees as it was then,
    and every such worker would take the first."""
    import ray

    if not ray.get_runtime_context().get_accelerator_ids().get("GPU"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def own_node() -> tuple[str, str]:
    """Id and host name of the node on which this process runs."""
    import ray

    return str(ray.get_runtime_context().get_node_id()), platform.node()


def actor_factory(
    ray: ModuleType, load: Loader, cluster: ClusterConfig, options: dict[str, Any]
) -> Callable[[Collection[str]], Any]:
    """How to start a worker that stands on none of some nodes, named by their ids."""
    remote = ray.remote(_Actor)
    stored = ray.put(load)
    selectors = options.get("label_selector", {})

    def start(avoided: Collection[str]) -> Any:
        elsewhere = {NODE_ID: f"!in({','.join(sorted(avoided))})"} if avoided else {}
        return remote.options(
            **{
                **options,
                "label_selector": {**selectors, **elsewhere} or None,
                "max_concurrency": cluster.shards_in_flight + 1,  # one more, to be asked how it is
                "max_restarts": 0,
                "max_task_retries": 0,
            }
        ).remote(stored)

    return start

"""Run a function once where a worker would run, as soon as there is room for one.

Must not know shards, nor what the function does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType

from ldm_batch.cluster.actor import hide_gpus_not_given, own_node
from ldm_batch.cluster.attempts import Out, Trouble, catch_trouble, unwrap
from ldm_batch.cluster.nodes import count_room, describe_wait
from ldm_batch.cluster.session import (
    PATIENCE_S,
    brief,
    ray_session,
    runtime_env_error,
    worker_need,
    worker_options,
)
from ldm_batch.cluster.view import Watch
from ldm_batch.config.cluster import ClusterConfig
from ldm_batch.errors import JobError, TryLaterError

POLL_S = 1.0
"""An answer ends the wait at once; without one, so often is looked whether the head is lost."""


class _Runner:
    """Stands where a worker would, with what a worker takes; an autoscaler makes room for it."""

    def place(self) -> str:
        """Id of the node that it was put on."""
        return own_node()[0]

    def run(self, function: Callable[[], Out]) -> Out | Trouble:
        """What the function returns, or as `Trouble` what it raised."""
        hide_gpus_not_given()
        return catch_trouble(function)


def run_once_on_ray(
    function: Callable[[], Out], cluster: ClusterConfig, tell: Callable[[str], None]
) -> Out:
    """Run a function once where a worker would run, and return what it returns.

    Args:
        tell: is told what is waited for, if there is no room for long.

    Raises:
        JobError: the function raised or killed its process, a local Ray has no room, or the
            runtime environment cannot be set up.
        TryLaterError: Ray does not start, no room for `start_timeout_s`, or the node or the head
            is lost.
    """
    with ray_session(cluster) as ray:
        options = worker_options(ray, cluster)
        watch, node = Watch(ray), ""
        try:
            runner = ray.remote(_Runner).options(**options, max_restarts=0).remote()
            placed = runner.place.remote()
            need = worker_need(options)
            _wait_for_room(partial(_is_answered, ray, placed), watch, cluster, need=need, tell=tell)
            node = ray.get(placed)
            running = runner.run.remote(function)
            while not _is_answered(ray, running):
                watch.view()  # raises if the head is lost
            result: Out | Trouble = ray.get(running)
        except ray.exceptions.RuntimeEnvSetupError as error:
            raise runtime_env_error(error) from error
        except ray.exceptions.RayError as error:
            is_cut_off = isinstance(error, ray.exceptions.ActorUnavailableError)
            if is_cut_off or node not in watch.fresh_view().nodes:
                raise TryLaterError(f"cluster: a node was lost: {brief(error)}") from error
            raise JobError(f"a worker died: {brief(error)}") from error
        finally:
            watch.stop()
    return unwrap(result)


def _is_answered(ray: ModuleType, reference: object) -> bool:
    """Wait a little for an answer; tell whether it is there."""
    return bool(ray.wait([reference], timeout=POLL_S)[0])


def _wait_for_room(
    is_placed: Callable[[], bool],
    watch: Watch,
    cluster: ClusterConfig,
    *,
    need: Mapping[str, float],
    tell: Callable[[str], None],
) -> None:
    is_our_own, started, has_told = cluster.address is None, time.monotonic(), False
    while not is_placed():
        nodes = watch.view().nodes.values()
        waited_s, room = time.monotonic() - started, describe_wait(cluster, nodes, need)
        if is_our_own and not count_room(nodes, need, cluster.labels, when_empty=True):
            raise JobError(f"cluster: no room for a worker: {room}")
        if waited_s >= cluster.start_timeout_s:
            raise TryLaterError(
                f"cluster.start_timeout_s: no room for a worker for {waited_s:.0f} s: {room}"
            )
        if waited_s >= PATIENCE_S and not has_told:
            tell(f"waiting for a worker: {room}")
            has_told = True

"""What Ray tells of the cluster's nodes, in our words, and whether its head still answers.

The only place that asks for Ray's own state, part of which has no public call; must not know
workers or shards.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

from ldm_batch.cluster.nodes import Node
from ldm_batch.cluster.schedule import Ending
from ldm_batch.errors import TryLaterError

LOOK_EVERY_S = 2.0
"""A drained node has about 30 s left, and a look costs the head, which serves all jobs, little."""
FRESH_WITHIN_S = 5.0
"""A head that takes longer for one look does not answer."""
EXPECTED_DEATHS = (1, 3, 4)
"""`NodeDeathInfo`: expected termination, preempted drain, idle drain."""
RECONNECT_VARIABLE, RECONNECT_S = "RAY_gcs_rpc_server_reconnect_timeout_s", 60.0
"""After so long without the head Ray ends this process from C++, with exit code 1."""


@dataclass(frozen=True, slots=True)
class View:
    """The cluster at one moment: nodes that are alive by their ids, and how the others ended."""

    seen_at: float
    """On the monotonic clock, before Ray was asked."""
    nodes: Mapping[str, Node]
    endings: Mapping[str, Ending]


class Watch:
    """Looks at the cluster from a thread of its own: a call to a lost head does not return."""

    def __init__(self, ray: ModuleType) -> None:
        self._ray = ray
        self._view = _read_view(ray)
        self._seen, self._wake = threading.Condition(), threading.Event()
        self._is_stopped = False
        self._patience_s = float(os.environ.get(RECONNECT_VARIABLE, RECONNECT_S)) * 2 / 3
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
        self._thread.start()

    def view(self) -> View:
        """The cluster as it was a few seconds ago.

        Raises:
            TryLaterError: the head has not answered for long, and Ray is about to give up.
        """
        silent_s = time.monotonic() - self._view.seen_at
        if silent_s > self._patience_s:
            raise TryLaterError(
                f"cluster: its head has not answered for {silent_s:.0f} s; what is committed "
                "stays, the same command goes on when the cluster is back, or on another"
            )
        return self._view

    def fresh_view(self) -> View:
        """The cluster as it is now, or the last that was seen of it if the head does not answer."""
        asked_at = time.monotonic()
        self._wake.set()
        with self._seen:
            self._seen.wait_for(lambda: self._view.seen_at >= asked_at, FRESH_WITHIN_S)
        return self._view

    def stop(self) -> None:
        """Look no more."""
        self._is_stopped = True
        self._wake.set()
        self._thread.join(FRESH_WITHIN_S)

    def _look(self) -> None:
        while True:
            self._wake.wait(LOOK_EVERY_S)
            self._wake.clear()
            if self._is_stopped:
                return
            try:
                view = _read_view(self._ray)
            except Exception:  # whatever Ray raises without its head: `view` tells in time
                continue
            with self._seen:
                self._view = view
                self._seen.notify_all()


def _read_view(ray: ModuleType) -> View:
    # Private: Ray has no public call for which nodes are draining, and none for what is free on
    # each that works without its dashboard, which a local Ray of ours does not start.
    from ray._private.state import state

    seen_at = time.monotonic()
    draining, available = state.get_draining_nodes(), state.available_resources_per_node()
    nodes, endings = {}, {}
    for node in ray.nodes():
        node_id = node["NodeID"]
        if node["Alive"]:
            nodes[node_id] = Node(
                id=node_id,
                host=node["NodeManagerHostname"],
                total=node["Resources"],
                available=available.get(node_id, node["Resources"]),
                labels=node["Labels"],
                is_draining=node_id in draining,
            )
        else:
            in_order = node.get("DeathReason") in EXPECTED_DEATHS
            endings[node_id] = Ending.PREEMPTED if in_order else Ending.LOST
    return View(seen_at, nodes, endings)


def quieten(ray: ModuleType) -> None:
    """Keep what raylets report off our output, where Ray prints it whatever `log_to_driver` says;
    notices tell what matters of it."""
    # Private: `log_to_driver` silences workers alone, and Ray hands these lines to this function.
    worker = ray._private.worker
    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda *_arguments, **_options: None

"""What Ray tells of the cluster's nodes, in our words.

The only place that asks Ray's own state, part of which has no public call; must not know workers or
shards.
"""

from __future__ import annotations

from typing import Any

from ldm_batch.nodes import Node
from ldm_batch.schedule import Ending

EXPECTED_DEATHS = (1, 3, 4)
"""`NodeDeathInfo`: expected termination, preempted drain, idle drain."""


def read_nodes(ray: Any) -> list[Node]:
    """The nodes that are alive now."""
    from ray._private.state import state

    draining = state.get_draining_nodes()
    available = state.available_resources_per_node()
    return [
        Node(
            id=node["NodeID"],
            host=node["NodeManagerHostname"],
            total=node["Resources"],
            available=available.get(node["NodeID"], node["Resources"]),
            labels=node["Labels"],
            is_draining=node["NodeID"] in draining,
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def read_ending(ray: Any, node_id: str) -> Ending | None:
    """How a node ended; None while Ray takes it for alive, which may be for some seconds more."""
    for node in ray.nodes():
        if node["NodeID"] == node_id and not node["Alive"]:
            in_order = node.get("DeathReason") in EXPECTED_DEATHS
            return Ending.PREEMPTED if in_order else Ending.LOST
    return None

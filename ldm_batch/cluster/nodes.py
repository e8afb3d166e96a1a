"""The machines of a cluster as the pool sees them: what fits on them, and which to avoid.

Pure: what is known of a node comes in as a value. Must not know Ray's calls, shards or clocks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from ldm_batch.config.cluster import ClusterConfig

MAX_TROUBLES_IN_A_ROW = 3
"""After so many on one node, while others succeed, the node is avoided."""
AVOID_S = 600.0
"""Seconds for which it is: what was wrong may have been mended by then."""
MAX_NODES_LISTED = 5
SELECTOR = re.compile(r"(!?)(?:in\((.*)\)|(.*))")


@dataclass(frozen=True, slots=True)
class Node:
    """One machine of the cluster: resources by Ray's names (`CPU`, `GPU`, `memory`, custom)."""

    id: str
    host: str
    total: Mapping[str, float]
    available: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)
    is_draining: bool = False


def count_room(
    nodes: Iterable[Node], need: Mapping[str, float], labels: Mapping[str, str], *, when_empty: bool
) -> int:
    """How many more workers fit on some nodes.

    Args:
        need: resources of one worker.
        labels: selectors that a node must fulfil.
        when_empty: count as if nothing ran on the nodes.
    """
    return sum(
        _count_on_one(node.total if when_empty else node.available, need)
        for node in nodes
        if not node.is_draining and has_labels(node.labels, labels)
    )


def _count_on_one(free: Mapping[str, float], need: Mapping[str, float]) -> int:
    counts = [
        _fitting(free.get(name, 0.0), amount, name) for name, amount in need.items() if amount
    ]
    return min(counts, default=1)


def _fitting(free: float, amount: float, name: str) -> int:
    if name == "GPU" and amount < 1:  # a worker's share is of one device
        whole = math.floor(free + 1e-6)
        return whole * math.floor(1 / amount + 1e-6) + math.floor((free - whole) / amount + 1e-6)
    return math.floor(free / amount + 1e-6)


def has_labels(labels: Mapping[str, str], selectors: Mapping[str, str]) -> bool:
    """Tell whether a node's labels fulfil Ray's selectors: `a`, `!a`, `in(a,b)`, `!in(a,b)`."""
    for name, selector in selectors.items():
        match = SELECTOR.fullmatch(selector)
        assert match is not None
        negated, listed, single = match.groups()
        values = [single] if listed is None else [value.strip() for value in listed.split(",")]
        if (labels.get(name) in values) == bool(negated):
            return False
    return True


def describe_room(
    nodes: Iterable[Node],
    need: Mapping[str, float],
    labels: Mapping[str, str],
    avoided: Collection[str] = (),
) -> str:
    """What a worker needs and what there is of it, for whoever waits for one."""
    counted = [name for name, amount in need.items() if amount]
    wanted = f"it needs {in_words(need)} on one node"
    fitting = [node for node in nodes if has_labels(node.labels, labels)]
    if labels and not fitting:
        return f"{wanted}, and no node has {', '.join(f'{k}={v}' for k, v in labels.items())}"
    free = [
        f"{node.host}: {in_words(node.available, counted)} of {in_words(node.total, counted)}"
        + (" (draining)" if node.is_draining else "")
        + (" (avoided)" if node.id in avoided else "")
        for node in fitting[:MAX_NODES_LISTED]
    ]
    return f"{wanted}; free are {'; '.join(free) or 'no nodes'}"


def describe_wait(
    cluster: ClusterConfig,
    nodes: Iterable[Node],
    need: Mapping[str, float],
    avoided: Collection[str] = (),
) -> str:
    """What a job without any worker waits for."""
    room = describe_room(nodes, need, cluster.labels, avoided)
    return room + ("; or a node still sets up cluster.runtime_env" if cluster.runtime_env else "")


def count_wanted(
    cluster: ClusterConfig, *, num_placed: int, num_room: int, num_unfinished: int
) -> int:
    """How many workers a job wants now: what fits, within its bounds, and no more than shards."""
    if cluster.num_workers is not None:
        return min(cluster.num_workers, num_unfinished)
    fitting = max(cluster.min_workers, num_placed + num_room)
    largest = fitting if cluster.max_workers is None else min(fitting, cluster.max_workers)
    return min(largest, num_unfinished)


@dataclass(slots=True)
class _Record:
    troubles: int = 0
    successes_before: int = 0


class NodeRecords:
    """How the nodes do, and which of them are avoided.

    Trouble that is everywhere (a store that is down, shards that cannot be made) is no node's
    fault: a node is avoided only when others succeed while it does not.
    """

    def __init__(self) -> None:
        self.avoided: dict[str, float] = {}
        """Nodes, and since when each of them is avoided."""
        self._records: dict[str, _Record] = {}
        self._num_successes = 0

    def succeed(self, node: str) -> None:
        """A worker on the node made a shard."""
        self._num_successes += 1
        self._records.pop(node, None)

    def forgive(self, now: float) -> None:
        """Try nodes again that were avoided for long."""
        for node in [node for node, since in self.avoided.items() if now - since >= AVOID_S]:
            del self.avoided[node]
            self._records.pop(node, None)

    def trouble(self, node: str, now: float, *, is_certain: bool = False) -> bool:
        """A worker or an attempt on the node failed; True if the node is avoided from now on.

        Args:
            now: seconds on a clock that never goes back.
            is_certain: it would happen again, such as a model that is not there.
        """
        record = self._records.setdefault(node, _Record(successes_before=self._num_successes))
        record.troubles += 1
        num_elsewhere = self._num_successes - record.successes_before
        is_its_fault = min(record.troubles, num_elsewhere) >= MAX_TROUBLES_IN_A_ROW
        if node in self.avoided or not (is_certain or is_its_fault):
            return False
        self.avoided[node] = now
        return True


def in_words(resources: Mapping[str, float], only: Collection[str] | None = None) -> str:
    """Resources for a message, e.g. `1 CPU, 0.5 GPU`."""
    kept = {name: amount for name, amount in resources.items() if only is None or name in only}
    parts = [
        f"{amount / 1e9:.1f} GB memory" if name == "memory" else f"{amount:g} {name}"
        for name, amount in sorted(kept.items())
        if amount
    ]
    return ", ".join(parts) or "nothing"

"""Where workers are started, on a cluster that is told what to look like."""

import time
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import pytest

from ldm_batch.cluster import crew as crews
from ldm_batch.cluster.crew import Crew, Member
from ldm_batch.cluster.nodes import Node
from ldm_batch.cluster.schedule import Schedule
from ldm_batch.cluster.view import View
from ldm_batch.config.cluster import ClusterConfig
from ldm_batch.errors import TryLaterError
from ldm_batch.records import InputFile, Shard

FILE = InputFile("p.parquet", "/p.parquet", 1, "1", 400, "00")
SHARDS = [Shard(i, FILE, i * 10, 10) for i in range(40)]


class Cluster:
    """Stands in for Ray: nodes as told, actors that never answer by themselves."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.started: list[set[str]] = []
        """For each actor, the nodes that it must not stand on."""
        self.num_killed = 0

    def view(self) -> View:
        return View(time.monotonic(), self.nodes, {})

    def stop(self) -> None:
        """Nothing runs."""

    def kill(self, actor: Any, *, no_restart: bool) -> None:
        self.num_killed += 1

    def start(self, avoided: Collection[str]) -> Any:
        self.started.append(set(avoided))
        return self

    def __getattr__(self, name: str) -> Any:
        """`actor.place.remote()` and its like: a reference."""
        return self if name in ("place", "load", "make") else object.__getattribute__(self, name)

    def remote(self, *_arguments: Any) -> object:
        return object()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster()
    monkeypatch.setattr(crews, "Watch", lambda ray: cluster)
    monkeypatch.setattr(crews, "actor_factory", lambda *_: cluster.start)
    monkeypatch.setattr(crews, "worker_options", lambda *_: {"num_cpus": 1, "num_gpus": 0})
    monkeypatch.setattr(crews, "SETTLE_S", float("-inf"))
    for name in "ab":
        cluster.nodes[name] = Node(name, name, {"CPU": 1}, {"CPU": 1})
    return cluster


@pytest.fixture
def make(cluster: Cluster) -> Callable[..., Crew]:
    def make_crew(schedule: Schedule | None = None, **settings: Any) -> Crew:
        config = ClusterConfig(address="auto", **settings)
        schedule = schedule or Schedule(SHARDS, config)
        return Crew(cluster, lambda: None, config, schedule)  # type: ignore[arg-type, return-value]

    return make_crew


def place(crew: Crew, *nodes: str) -> list[Member]:
    """Let workers that wait stand on nodes, and load."""
    members = [m for m in crew._members.values() if not m.node][: len(nodes)]
    for member, node in zip(members, nodes, strict=True):
        crew.on_placed(member, node, node)
        if member.number in crew._members:
            crew.on_loaded(member)
    return members


def test_a_pool_is_as_large_as_the_cluster_at_once(cluster: Cluster, make: Any) -> None:
    crew = make()
    assert list(crew.follow(time.monotonic())) == []
    assert len(cluster.started) == 2


def test_workers_are_started_where_a_node_joins(cluster: Cluster, make: Any) -> None:
    crew = make()
    list(crew.follow(time.monotonic()))
    place(crew, "a", "b")
    for name, node in cluster.nodes.items():
        cluster.nodes[name] = replace(node, available={"CPU": 0})
    assert list(crew.follow(time.monotonic())) == []
    cluster.nodes["c"] = Node("c", "c", {"CPU": 2}, {"CPU": 2})
    [notice] = crew.follow(time.monotonic())
    assert notice.message == "2 more workers asked for, 4 in all"


def test_a_waiting_worker_does_not_go_to_a_node_that_is_avoided(
    cluster: Cluster, make: Any
) -> None:
    crew = make(num_workers=3)
    list(crew.follow(time.monotonic()))
    _, bad = place(crew, "a", "b")
    assert cluster.started == [set()] * 3
    assert len(list(crew.on_trouble(bad, "no disk", is_certain=True))) == 1
    assert cluster.started == [set(), set(), set(), {"b"}]
    assert cluster.num_killed == 2  # the idle one on the node, and the one that waited


def test_a_worker_that_comes_to_stand_on_such_a_node_is_ended(cluster: Cluster, make: Any) -> None:
    crew = make(num_workers=3)
    list(crew.follow(time.monotonic()))
    crew.drained.add("b")
    [late] = place(crew, "b")
    assert late.number not in crew._members
    assert not late.is_loaded


def test_nothing_new_for_workers_of_a_drained_node(cluster: Cluster, make: Any) -> None:
    crew = make()
    list(crew.follow(time.monotonic()))
    place(crew, "a", "b")
    cluster.nodes = {
        name: replace(node, available={"CPU": 0}, is_draining=name == "b")
        for name, node in cluster.nodes.items()
    }
    [notice] = crew.follow(time.monotonic())
    assert notice.message == "b is being drained: its workers take nothing new"
    assert [member.node for member in crew._members.values()] == ["a"]


def test_workers_without_work_are_ended_before_the_job_is(cluster: Cluster, make: Any) -> None:
    cluster.nodes = {name: Node(name, name, {"CPU": 1}, {"CPU": 1}) for name in "abcde"}
    schedule = Schedule(SHARDS[:5], ClusterConfig(shards_in_flight=1))
    crew = make(schedule)
    list(crew.follow(time.monotonic()))
    place(crew, "a", "b", "c", "d")  # the fifth still waits for room
    cluster.nodes = {
        name: replace(node, available={"CPU": 0}) for name, node in cluster.nodes.items()
    }
    given = dict(schedule.hand_out(0))
    assert len(given) == 4
    for number in (0, 1):
        schedule.finish(number, given[number].index, 1)
    assert list(crew.follow(time.monotonic())) == []  # three are left, for five workers
    assert dict(schedule.hand_out(1)).keys() == {0}
    schedule.finish(0, 4, 2)
    [notice] = crew.follow(time.monotonic())
    assert notice.message == "more workers than shards are left: those without work are ended"
    assert sorted(crew._members) == [0, 1, 2, 3]  # the one that was never placed is gone
    schedule.finish(2, given[2].index, 3)
    assert list(crew.follow(time.monotonic())) == []
    assert 3 in crew._members
    assert len(crew._members) == 2
    assert cluster.num_killed == 3
    assert not schedule.is_idle(3)


def test_of_idle_workers_those_stay_that_stand_elsewhere(cluster: Cluster, make: Any) -> None:
    for name in "ab":
        cluster.nodes[name] = Node(name, name, {"CPU": 2}, {"CPU": 2})
    schedule = Schedule(SHARDS[:4], ClusterConfig(shards_in_flight=1))
    crew = make(schedule)
    list(crew.follow(time.monotonic()))
    place(crew, "a", "a", "b", "b")
    given = dict(schedule.hand_out(0))
    for number in (0, 1, 2):
        schedule.finish(number, given[number].index, 1)
    assert len(list(crew.follow(time.monotonic()))) == 1
    left = [(m.node, schedule.is_idle(m.number)) for m in crew._members.values()]
    assert sorted(left) == [("a", True), ("b", False)]


def test_workers_that_load_are_counted_and_a_node_that_is_gone_is_missed(
    cluster: Cluster, make: Any
) -> None:
    crew = make()
    list(crew.follow(time.monotonic()))
    assert crew.num_loading() == 0
    first, second = crew._members.values()
    crew.on_placed(first, "a", "a")
    crew.on_placed(second, "b", "b")
    assert crew.num_loading() == 2
    crew.on_loaded(first)
    assert crew.num_loading() == 1
    assert not crew.misses_a_node(cluster.view())
    cluster.nodes = {"a": cluster.nodes["a"]}
    assert crew.misses_a_node(cluster.view())
    list(crew.follow(time.monotonic()))
    assert not crew.misses_a_node(cluster.view())


def test_a_cluster_that_gets_gpus_late_is_told_of(cluster: Cluster, make: Any) -> None:
    crew = make()
    list(crew.follow(time.monotonic()))
    cluster.nodes["g"] = Node("g", "g", {"CPU": 0, "GPU": 8}, {"CPU": 0, "GPU": 8})
    [notice] = crew.follow(time.monotonic())
    assert notice.message.startswith("warning: the cluster has GPUs now")


def test_without_any_worker_for_long_the_job_may_try_later(cluster: Cluster, make: Any) -> None:
    cluster.nodes = {"a": Node("a", "a", {"CPU": 1}, {"CPU": 0})}
    crew = make(start_timeout_s=30)
    now = time.monotonic()
    assert list(crew.follow(now)) == []
    [notice] = crew.follow(now + 11)
    assert notice.message == (
        "waiting for a worker: it needs 1 CPU on one node; free are a: nothing of 1 CPU"
    )
    with pytest.raises(TryLaterError, match=r"cluster\.start_timeout_s: no worker for 31 s: it"):
        list(crew.follow(now + 31))

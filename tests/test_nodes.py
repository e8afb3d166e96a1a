"""What fits on the machines of a cluster, how many workers are wanted, which nodes are avoided."""

import pytest

from ldm_batch.cluster.nodes import (
    AVOID_S,
    Node,
    NodeRecords,
    count_room,
    count_wanted,
    describe_room,
    has_labels,
    in_words,
)
from ldm_batch.config.cluster import ClusterConfig

GPU_BOX = Node("g", "gpu-1", {"CPU": 16, "GPU": 2}, {"CPU": 3, "GPU": 0.5}, {"zone": "a"})
CPU_BOX = Node("c", "cpu-1", {"CPU": 4, "spot": 1}, {"CPU": 4, "spot": 1}, {"zone": "b"})
LEAVING = Node("l", "old", {"CPU": 64, "GPU": 8}, {"CPU": 64, "GPU": 8}, is_draining=True)
NODES = [GPU_BOX, CPU_BOX, LEAVING]


@pytest.mark.parametrize(
    ("need", "when_empty", "room"),
    [
        ({"CPU": 1, "GPU": 0}, False, 7),
        ({"CPU": 1, "GPU": 0}, True, 20),
        ({"CPU": 2, "GPU": 0}, False, 3),
        ({"CPU": 1, "GPU": 1}, False, 0),
        ({"CPU": 1, "GPU": 1}, True, 2),
        ({"CPU": 1, "GPU": 0.25}, False, 2),
        ({"CPU": 0, "GPU": 0.6}, True, 2),  # not three: a share is of one device
        ({"CPU": 0.1, "GPU": 0.1}, True, 20),
        ({"CPU": 1, "GPU": 0, "spot": 1}, False, 1),
        ({"CPU": 1, "GPU": 0, "memory": 1e9}, True, 0),
        ({"CPU": 0, "GPU": 0}, False, 2),  # takes nothing: one for each node
    ],
)
def test_room_is_counted_node_by_node(need: dict[str, float], when_empty: bool, room: int) -> None:
    assert count_room(NODES, need, {}, when_empty=when_empty) == room


def test_room_is_only_on_nodes_with_the_labels() -> None:
    need = {"CPU": 1.0, "GPU": 0.0}
    assert count_room(NODES, need, {"zone": "b"}, when_empty=False) == 4
    assert count_room(NODES, need, {"zone": "!b"}, when_empty=False) == 3


@pytest.mark.parametrize(
    ("selector", "fits"),
    [("a", True), ("b", False), ("!a", False), ("in(b, a)", True), ("!in(b,c)", True)],
)
def test_labels_are_selected_as_ray_does(selector: str, fits: bool) -> None:
    assert has_labels({"zone": "a"}, {"zone": selector}) is fits


@pytest.mark.parametrize(
    ("settings", "placed", "room", "unfinished", "wanted"),
    [
        ({}, 0, 8, 100, 8),
        ({}, 8, 4, 100, 12),
        ({}, 8, 4, 3, 3),
        ({}, 0, 0, 100, 1),
        ({"min_workers": 16}, 4, 0, 100, 16),
        ({"max_workers": 6}, 4, 8, 100, 6),
        ({"num_workers": 5}, 0, 2, 100, 5),
        ({"num_workers": 5}, 5, 20, 100, 5),
        ({"num_workers": 5}, 0, 2, 2, 2),
    ],
)
def test_wanted_workers(
    settings: dict[str, int], placed: int, room: int, unfinished: int, wanted: int
) -> None:
    cluster = ClusterConfig(**settings)  # type: ignore[arg-type]
    found = count_wanted(cluster, num_placed=placed, num_room=room, num_unfinished=unfinished)
    assert found == wanted


def test_a_node_that_fails_in_a_row_while_others_succeed_is_avoided() -> None:
    records = NodeRecords()
    for _ in range(2):
        assert not records.trouble("bad", 0.0)
        records.succeed("good")
    records.succeed("good")
    assert records.trouble("bad", 0.0)
    assert set(records.avoided) == {"bad"}
    assert not records.trouble("bad", 0.0)  # said once


def test_trouble_that_all_nodes_have_is_no_nodes_fault() -> None:
    records = NodeRecords()
    records.succeed("b")
    assert not any(records.trouble(node, 0.0) for node in "abababab")


def test_a_success_between_wipes_a_nodes_troubles_out() -> None:
    records = NodeRecords()
    for _ in range(10):
        records.succeed("good")
        assert not records.trouble("middling", 0.0)
        assert not records.trouble("middling", 0.0)
        records.succeed("middling")


def test_what_is_certain_to_happen_again_is_avoided_at_once() -> None:
    records = NodeRecords()
    assert records.trouble("bad", 0.0, is_certain=True)
    assert not records.trouble("bad", 0.0, is_certain=True)  # said once


def test_room_in_words() -> None:
    need = {"CPU": 1.0, "GPU": 1.0, "memory": 0}
    assert describe_room(NODES, need, {}, ["c"]) == (
        "it needs 1 CPU, 1 GPU on one node; free are gpu-1: 3 CPU, 0.5 GPU of 16 CPU, 2 GPU; "
        "cpu-1: 4 CPU of 4 CPU (avoided); old: 64 CPU, 8 GPU of 64 CPU, 8 GPU (draining)"
    )
    assert describe_room(NODES, need, {"zone": "x"}) == (
        "it needs 1 CPU, 1 GPU on one node, and no node has zone=x"
    )


def test_an_avoided_node_is_tried_again_later() -> None:
    records = NodeRecords()
    assert records.trouble("bad", 5.0, is_certain=True)
    records.forgive(5.0 + AVOID_S - 1)
    assert set(records.avoided) == {"bad"}
    records.forgive(5.0 + AVOID_S)
    assert not records.avoided
    assert records.trouble("bad", 1000.0, is_certain=True)


def test_in_words() -> None:
    need = {"CPU": 1.0, "GPU": 0.5, "memory": 2e9, "spot": 0}
    assert in_words(need) == "1 CPU, 0.5 GPU, 2.0 GB memory"
    assert in_words({"CPU": 3, "node:1.2.3.4": 1}, need) == "3 CPU"
    assert in_words({}) == "nothing"

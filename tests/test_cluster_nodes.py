"""Jobs on a Ray cluster whose nodes come and go: Ray's own test cluster, all on this machine."""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import (
    descendants,
    digests,
    finish,
    is_alive,
    objects,
    run,
    start,
    wait_until,
    write_prompts,
)
from ray._private.authentication_test_utils import reset_auth_token_state
from ray._private.node import Node
from ray.cluster_utils import Cluster

JOB = ("conf=machinery", "source.uri=in", "sink.uri=out", "rows_per_shard=10")
NUM_SHARDS = 60


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without room for workers; it has a token and a folder of its own."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ray") as place:
        patch.setenv("RAY_TMPDIR", place)
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        reset_auth_token_state()
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        yield cluster
        cluster.shutdown()
    reset_auth_token_state()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of the dataset that an undisturbed run makes in one process."""
    folder = tmp_path_factory.mktemp("reference")
    write_prompts(folder)
    ended = run(folder, *JOB, "cluster=in_process")
    assert ended.code == 0, ended
    return digests(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_prompts(tmp_path)
    return tmp_path


def submit(cluster: Cluster, folder: Path) -> subprocess.Popen[str]:
    """Start a job that forgives no attempt."""
    return start(folder, *JOB, f"cluster.address={cluster.address}", "cluster.max_attempts=1")


def actors(node: Node) -> list[int]:
    """Process ids of the job's workers on a node."""
    (raylet,) = node.all_processes["raylet"]
    return [pid for pid, line in descendants(raylet.process.pid).items() if "ray::_Actor" in line]


def has_made(folder: Path, node: Node) -> bool:
    """Tell whether a worker that is on the node now has made some of the dataset."""
    receipts = [path.read_bytes() for path in (folder / "out/.ldm_batch/receipts").glob("0*")]
    pids = {json.loads(receipt)["pid"] for receipt in receipts}
    return not pids.isdisjoint(actors(node))


def pause_in_the_middle(driver: subprocess.Popen[str], folder: Path, *nodes: Node) -> list[int]:
    """Let the workers of some nodes stand still once each has made something and has more to do."""
    still: dict[Node, list[int]] = {}

    def all_stand_still() -> bool:
        for node in nodes:
            if node not in still and has_made(folder, node):
                still[node] = actors(node)
                send(signal.SIGSTOP, still[node])
        return len(still) == len(nodes)

    wait_until(all_stand_still, driver)
    assert len(objects(folder)) < NUM_SHARDS
    return [pid for node in nodes for pid in still[node]]


def send(number: signal.Signals, pids: list[int]) -> None:
    """Send a signal to those of the processes that are still there."""
    for pid in filter(is_alive, pids):
        os.kill(pid, number)


def drain(cluster: Cluster, node: Node) -> None:
    """Announce that a node will be taken away, as a cloud does of a spot machine."""
    command = (sys.executable, "-m", "ray.scripts.scripts", "drain-node")
    which = (f"--address={cluster.address}", f"--node-id={node.node_id}")
    why = ("--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot")
    deadline = "--deadline-remaining-seconds=60"
    subprocess.run([*command, *which, *why, deadline], check=True, capture_output=True)


@pytest.mark.long
def test_one_node_is_removed_and_another_added(
    cluster: Cluster, folder: Path, reference: dict[str, str]
) -> None:
    stays, goes = cluster.add_node(), cluster.add_node()
    driver = submit(cluster, folder)
    paused = pause_in_the_middle(driver, folder, stays, goes)
    cluster.remove_node(goes, allow_graceful=False)
    comes = cluster.add_node()
    wait_until(lambda: has_made(folder, comes), driver)
    send(signal.SIGCONT, paused)
    ended = finish(driver)
    assert ended.code == 0, ended
    assert digests(folder) == reference
    cluster.remove_node(comes)
    cluster.remove_node(stays)


@pytest.mark.parametrize("is_taken_at_once", [pytest.param(True, marks=pytest.mark.long), False])
def test_preemption_costs_no_attempts(
    cluster: Cluster, folder: Path, reference: dict[str, str], is_taken_at_once: bool
) -> None:
    stays, goes = cluster.add_node(), cluster.add_node()
    driver = submit(cluster, folder)
    paused = pause_in_the_middle(driver, folder, stays, goes)
    drain(cluster, goes)
    if is_taken_at_once:
        cluster.remove_node(goes, allow_graceful=False)
    else:
        send(signal.SIGCONT, actors(goes))
        wait_until(lambda: not actors(goes), driver)
        cluster.remove_node(goes)
    send(signal.SIGCONT, paused)
    ended = finish(driver)
    assert ended.code == 0, ended
    assert digests(folder) == reference
    cluster.remove_node(stays)

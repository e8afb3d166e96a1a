"""The pool on a Ray of two nodes: bad nodes, stragglers, labels, room that is missing or comes."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from leftovers import of_all_tests
from ray.cluster_utils import Cluster

from ldm_batch.cluster import run_on_ray
from ldm_batch.config.cluster import ClusterConfig
from ldm_batch.errors import JobError, NoRoomError, ShardError, TryLaterError
from ldm_batch.records import Failure, InputFile, Notice, Outcome, Receipt, Shard
from ldm_batch.versions import versions

FILE = InputFile("p.parquet", "/p.parquet", 1, "1", 400, "00")
SHARDS = [Shard(i, FILE, i * 10, 10) for i in range(30)]
EVERY = [shard.index for shard in SHARDS]
NODE = {"num_cpus": 1, "object_store_memory": 80 * 1024 * 1024}
DEADLINE_S = 120


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A head that takes no work and two nodes with a CPU each; `run_on_ray` joins by the session
    that is there."""
    head = {**NODE, "num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    environment = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}
    ray.init(cluster.address, log_to_driver=False, runtime_env=environment)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def settings(nodes: Cluster) -> ClusterConfig:
    """Settings of a job that joins the cluster."""
    return ClusterConfig(address=nodes.address, shards_in_flight=1)


@pytest.fixture(scope="module")
def bad(nodes: Cluster) -> str:
    """Id of the node on which things go wrong: the same one in all tests."""
    return str(min(node.node_id for node in nodes.worker_nodes))


class Scripted:
    """A worker that notes its tries in a folder; on the bad node it does what its script says.

    `good` makes four shards for each that `bad` tries, up to the third; then both go on freely.
    """

    def __init__(self, notes: Path, bad: str, script: str) -> None:
        self._notes, self._script = notes, script
        (notes / f"worker-{os.getpid()}-{os.environ.get('CUDA_VISIBLE_DEVICES')}").touch()
        is_bad = ray.get_runtime_context().get_node_id() == bad
        self._kind, self._other = ("bad", "good") if is_bad else ("good", "bad")
        if script == "no model" and is_bad:
            (notes / "bad-load").touch()
            wait_for(lambda: self._num_tries("good") > 0)
            raise JobError("model.path: no such folder")

    def environment(self) -> dict[str, str]:
        return versions()

    def make_shard(self, shard: Shard, _terms: object) -> Receipt:
        place = self._num_tries(self._kind)
        (self._notes / f"{self._kind}-{place}-{shard.index}").touch()
        if self._kind == "bad":
            self._fail(place)
        elif self._script == "two share":
            wait_for(lambda: self._num_tries("worker") == 2)
        elif self._script == "no model":
            wait_for(lambda: (self._notes / "bad-load").exists())
        elif self._script:
            wait_for(lambda: self._num_tries("bad") > min(place // 4, self._num_awaited()))
        return Receipt(shard.index, Outcome.COMMITTED, 10, 10, 10, {}, 100, "00")

    def _num_tries(self, kind: str) -> int:
        return len(list(self._notes.glob(f"{kind}-*")))

    def _num_awaited(self) -> int:
        return 2 if self._script in ("fail", "die") else 0

    def _fail(self, place: int) -> None:
        if self._script == "hang":
            threading.Event().wait()
        if self._script:
            wait_for(lambda: self._num_tries("good") > (8 if place == 2 else 0))
        if self._script == "fail":
            raise ShardError("the disk is full")
        if self._script == "full":
            raise NoRoomError("/tmp: no room", is_of_node=True)
        if self._script == "die":
            os._exit(1)


def load_scripted(notes: Path, bad: str, script: str) -> Scripted:
    return Scripted(notes, bad, script)


def wait_for(is_true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline, "the condition never came"
        time.sleep(0.01)


def tries(notes: Path, kind: str) -> list[int]:
    """Shards that were tried on the good or the bad node."""
    return [int(path.name.split("-")[-1]) for path in notes.glob(f"{kind}-*-*")]


def run(
    load: Callable[[], Scripted], cluster: ClusterConfig
) -> tuple[list[int], list[Failure], list[str]]:
    """Shards with a receipt, failures, and notices of a run."""
    events = list(run_on_ray(load, SHARDS, cluster))
    return (
        sorted(event.shard for event in events if isinstance(event, Receipt)),
        [event for event in events if isinstance(event, Failure)],
        [event.message for event in events if isinstance(event, Notice)],
    )


def test_every_node_gets_a_worker(settings: ClusterConfig, bad: str, tmp_path: Path) -> None:
    load = partial(load_scripted, tmp_path, bad, "")
    starts = [event for event in run_on_ray(load, SHARDS, settings) if isinstance(event, Receipt)]
    assert sorted(receipt.shard for receipt in starts) == EVERY


@pytest.mark.parametrize(
    ("script", "num_workers"),
    [("fail", None), ("die", None), ("fail", 3)],  # three: one waits for room all the while
)
def test_a_node_on_which_shards_fail_is_avoided(
    settings: ClusterConfig, bad: str, tmp_path: Path, script: str, num_workers: int | None
) -> None:
    settings.num_workers = num_workers
    made, failures, notices = run(partial(load_scripted, tmp_path, bad, script), settings)
    assert (made, failures) == (EVERY, [])
    assert [notice for notice in notices if "is avoided, it fails while others do not" in notice]
    assert len(tries(tmp_path, "bad")) == 3


def test_a_node_on_which_the_model_does_not_load_is_avoided(
    settings: ClusterConfig, bad: str, tmp_path: Path
) -> None:
    made, failures, notices = run(partial(load_scripted, tmp_path, bad, "no model"), settings)
    assert (made, failures) == (EVERY, [])
    assert tries(tmp_path, "bad") == []
    avoided = "is avoided, it fails while others do not: model.path: no such folder"
    assert [notice for notice in notices if notice.endswith(avoided)]


def test_a_model_that_loads_nowhere_stops_the_job(
    settings: ClusterConfig, bad: str, tmp_path: Path
) -> None:
    settings.labels = {"ray.io/node-id": bad}
    (tmp_path / "good-0-0").touch()
    with pytest.raises(JobError, match=r"^model\.path: no such folder \(on "):
        run(partial(load_scripted, tmp_path, bad, "no model"), settings)


def test_an_idle_worker_makes_a_copy_of_a_shard_that_hangs(
    settings: ClusterConfig, bad: str, tmp_path: Path
) -> None:
    settings.copy_stragglers = True
    made, failures, _ = run(partial(load_scripted, tmp_path, bad, "hang"), settings)
    assert (made, failures) == (EVERY, [])
    [hung] = tries(tmp_path, "bad")
    assert hung in tries(tmp_path, "good")


def test_a_worker_that_hangs_is_told_of_and_its_shard_made_elsewhere(
    settings: ClusterConfig, bad: str, tmp_path: Path
) -> None:
    settings.max_shard_s, settings.num_workers = 2, 2
    made, failures, notices = run(partial(load_scripted, tmp_path, bad, "hang"), settings)
    assert (made, failures) == (EVERY, [])
    hung = tries(tmp_path, "bad")
    assert set(hung) <= set(tries(tmp_path, "good"))
    told = [notice for notice in notices if "not made in 2 s (cluster.max_shard_s) on " in notice]
    assert len([notice for notice in told if notice.endswith("its worker is ended")]) == len(hung)


def test_a_node_with_a_full_disk_is_avoided_at_once(
    settings: ClusterConfig, bad: str, tmp_path: Path
) -> None:
    made, failures, notices = run(partial(load_scripted, tmp_path, bad, "full"), settings)
    assert (made, failures) == (EVERY, [])
    assert len(tries(tmp_path, "bad")) == 1
    assert [notice for notice in notices if notice.endswith("others do not: /tmp: no room")]


def test_a_full_disk_that_all_share_stops_the_job(
    settings: ClusterConfig, bad: str, tmp_path: Path
) -> None:
    settings.labels = {"ray.io/node-id": bad}
    (tmp_path / "good-0-0").touch()
    with pytest.raises(TryLaterError, match=r"^stopped: /tmp: no room\. What is committed stays"):
        run(partial(load_scripted, tmp_path, bad, "full"), settings)
    assert len(tries(tmp_path, "bad")) == 1


def test_without_room_the_job_says_what_it_waits_for_and_gives_up(
    settings: ClusterConfig, bad: str, tmp_path: Path
) -> None:
    settings.resources, settings.start_timeout_s = {"spot": 1}, 1
    with pytest.raises(JobError, match=r"no worker for .*: it needs 1 CPU, 1 spot on one node"):
        run(partial(load_scripted, tmp_path, bad, ""), settings)


def test_workers_stand_only_on_nodes_with_the_labels(
    settings: ClusterConfig, bad: str, tmp_path: Path
) -> None:
    settings.labels = {"ray.io/node-id": f"!{bad}"}
    made, failures, _ = run(partial(load_scripted, tmp_path, bad, ""), settings)
    assert (made, failures) == (EVERY, [])
    assert tries(tmp_path, "bad") == []


def test_the_job_says_what_it_waits_for_until_a_node_joins(
    nodes: Cluster, settings: ClusterConfig, bad: str, tmp_path: Path
) -> None:
    settings.resources = {"late": 1}
    events = run_on_ray(partial(load_scripted, tmp_path, bad, ""), SHARDS, settings)
    waiting = next(events)
    assert isinstance(waiting, Notice)
    assert waiting.message.startswith("waiting for a worker: it needs 1 CPU, 1 late on one node")
    with of_all_tests():
        nodes.add_node(**NODE, resources={"late": 1})
    assert sorted(event.shard for event in events if isinstance(event, Receipt)) == EVERY


def test_two_workers_share_a_gpu(
    nodes: Cluster, settings: ClusterConfig, bad: str, tmp_path: Path
) -> None:
    box = nodes.add_node(**NODE, num_gpus=1)
    settings.gpus_per_worker = settings.cpus_per_worker = 0.5
    made, failures, _ = run(partial(load_scripted, tmp_path, bad, "two share"), settings)
    assert (made, failures) == (EVERY, [])
    assert [path.name.split("-")[-1] for path in tmp_path.glob("worker-*")] == ["0", "0"]
    nodes.remove_node(box)

"""Workers on a real local Ray, and the twin in this process, with small workers passed in."""

import io
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import ray

from ldm_batch.cluster import run_on_ray
from ldm_batch.cluster.attempts import run_in_process
from ldm_batch.config.cluster import ClusterConfig
from ldm_batch.drive.report import print_report
from ldm_batch.errors import FinalShardError, JobError, ShardError
from ldm_batch.progress import Tally
from ldm_batch.records import Failure, InputFile, Notice, Outcome, Receipt, Shard
from ldm_batch.storage import Store
from ldm_batch.versions import versions

FILE = InputFile("p.parquet", "/p.parquet", 1, "1", 80, "00")
SHARDS = [Shard(i, FILE, i * 10, 10) for i in range(8)]
CLUSTER = ClusterConfig(num_workers=2)


@pytest.fixture(scope="module", autouse=True)
def _session() -> Iterator[None]:
    """One Ray for all tests of this file: `run_on_ray` uses a session that is there."""
    environment = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env=environment,
    )
    yield
    ray.shutdown()


class Scripted:
    """A worker that does to each shard what its script says, and notes each attempt in a folder."""

    def __init__(self, notes: Path, script: dict[int, str]) -> None:
        self._notes, self._script = notes, script
        (notes / f"worker-{os.getpid()}").touch()

    def environment(self) -> dict[str, str]:
        return versions()

    def make_shard(self, shard: Shard, _terms: object) -> Receipt:
        attempt = len(list(self._notes.glob(f"shard-{shard.index}-*")))
        (self._notes / f"shard-{shard.index}-{attempt}-{os.getpid()}").touch()
        match self._script.get(shard.index):
            case "raise":
                raise ShardError(f"shard {shard.id} is cursed")
            case "raise for good":
                raise FinalShardError("too large")
            case "bug":
                raise ZeroDivisionError("a bug")
            case "raise once" if attempt == 0:
                raise ShardError("once")
            case "job error":
                raise JobError("the model changed")
            case "die":
                os._exit(1)
            case "die once" if attempt == 0:
                os._exit(1)
            case "raise once, together" if attempt == 0:
                self._wait_for_other_worker()
                raise ShardError("once")
            case "together":
                self._wait_for_other_worker()
            case "hang":
                time.sleep(3600)
        return self._receipt(shard)

    def _wait_for_other_worker(self) -> None:
        deadline = time.monotonic() + 120
        while len({path.name.split("-")[-1] for path in self._notes.glob("shard-*")}) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    @staticmethod
    def _receipt(shard: Shard) -> Receipt:
        return Receipt(shard.index, Outcome.COMMITTED, 10, 10, 10, {}, 100, "00")


def load_scripted(notes: Path, script: dict[int, str]) -> Scripted:
    return Scripted(notes, script)


def load_broken() -> Scripted:
    raise JobError("model.path: no such folder")


def load_dying() -> Scripted:
    os._exit(1)


def attempts(notes: Path, index: int) -> int:
    return len(list(notes.glob(f"shard-{index}-*")))


Runner = Callable[..., Iterator[Receipt | Failure | Notice]]
both = pytest.mark.parametrize("runner", [run_in_process, run_on_ray])


def made(events: Iterator[Receipt | Failure | Notice]) -> list[Receipt | Failure]:
    """What became of each shard; on a busy machine it is also told that a worker is waited for."""
    return [event for event in events if not isinstance(event, Notice)]


@both
def test_every_shard_gives_one_receipt(runner: Runner, tmp_path: Path) -> None:
    events = made(runner(partial(load_scripted, tmp_path, {}), SHARDS, CLUSTER))
    assert sorted(event.shard for event in events) == list(range(8))
    assert all(isinstance(event, Receipt) for event in events)


@both
def test_a_shard_that_raises_fails_alone_after_its_attempts(runner: Runner, tmp_path: Path) -> None:
    load = partial(load_scripted, tmp_path, {3: "raise", 5: "raise once", 6: "bug"})
    events = {event.shard: event for event in made(runner(load, SHARDS, CLUSTER))}
    assert events[3] == Failure(3, 3, "shard 00003 is cursed")
    assert isinstance(events[6], Failure)
    assert events[6].message == "ZeroDivisionError: a bug"
    assert "make_shard" in events[6].traceback
    assert (attempts(tmp_path, 3), attempts(tmp_path, 5)) == (3, 2)
    assert sum(isinstance(event, Receipt) for event in events.values()) == 6


def test_what_would_fail_again_is_not_tried_again(tmp_path: Path) -> None:
    load = partial(load_scripted, tmp_path, {3: "raise for good", 5: "raise"})
    tally, out = Tally(), io.StringIO()
    for event in run_in_process(load, SHARDS, CLUSTER):
        tally.add(event)
    assert tally.failures[0] == Failure(3, 1, "too large", is_final=True)
    assert (attempts(tmp_path, 3), attempts(tmp_path, 5)) == (1, 3)
    print_report(tally, Store(str(tmp_path / "out")), "again", out)
    told = "2 shards failed, 1 of them for good unless the job is changed as said; to make them:"
    assert told in out.getvalue()


@both
def test_a_job_error_in_a_worker_stops_the_job(runner: Runner, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="the model changed"):
        list(runner(partial(load_scripted, tmp_path, {2: "job error"}), SHARDS, CLUSTER))


@both
def test_a_model_that_does_not_load_stops_the_job(runner: Runner) -> None:
    with pytest.raises(JobError, match="no such folder"):
        list(runner(load_broken, SHARDS, CLUSTER))


def test_workers_that_die_while_loading_stop_the_job() -> None:
    with pytest.raises(JobError, match="died while they loaded"):
        list(run_on_ray(load_dying, SHARDS, CLUSTER))


def test_a_shard_that_kills_its_worker_fails_and_its_neighbours_do_not(tmp_path: Path) -> None:
    load = partial(load_scripted, tmp_path, {2: "die", 4: "die once"})
    run = run_on_ray(load, SHARDS, CLUSTER)
    events = {event.shard: event for event in run if not isinstance(event, Notice)}
    assert [i for i, event in events.items() if isinstance(event, Failure)] == [2]
    assert "its worker died" in events[2].message
    assert len(events) == 8


def test_a_failed_shard_is_tried_on_another_worker(tmp_path: Path) -> None:
    script = {0: "raise once, together", **dict.fromkeys(range(1, 8), "together")}
    load = partial(load_scripted, tmp_path, script)
    list(run_on_ray(load, SHARDS, CLUSTER))
    assert len({path.name.split("-")[-1] for path in tmp_path.glob("shard-0-*")}) == 2


def test_closing_the_iterator_ends_the_workers(tmp_path: Path) -> None:
    events = run_on_ray(partial(load_scripted, tmp_path, {7: "hang"}), SHARDS, CLUSTER)
    next(events)
    events.close()
    pids = [int(path.name.split("-")[1]) for path in tmp_path.glob("worker-*")]
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)

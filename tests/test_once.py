"""One function run where a worker would: in its environment, with its room, and told of waiting."""

import os
import signal
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import ray

from ldm_batch.cluster import once, run_once_on_ray
from ldm_batch.config.cluster import ClusterConfig
from ldm_batch.errors import JobError, TryLaterError

JOINED = ClusterConfig(address="auto")
"""The Ray of the test: a session that is there is used."""


@pytest.fixture
def holder() -> Iterator[Any]:
    """An actor that has the only CPU of a Ray."""
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    holder = ray.remote(once._Runner).options(num_cpus=1).remote()
    ray.get(holder.place.remote())
    yield holder
    ray.shutdown()


def test_a_function_is_called_where_a_worker_would_run_in_its_environment() -> None:
    cluster = ClusterConfig(
        runtime_env={"env_vars": {"LDM_BATCH_TEST": "seen"}}, resources={"spot": 1}
    )
    told: list[str] = []
    assert run_once_on_ray(partial(os.getenv, "LDM_BATCH_TEST"), cluster, told.append) == "seen"
    assert all(line.startswith("waiting for a worker") for line in told)  # on a slow machine
    assert not ray.is_initialized()


def test_who_waits_for_room_is_told_once(holder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(once, "PATIENCE_S", 0)
    monkeypatch.setattr(once, "POLL_S", 0.1)
    told: list[str] = []

    def tell(message: str) -> None:
        told.append(message)
        ray.kill(holder)

    assert run_once_on_ray(os.getpid, JOINED, tell) != os.getpid()
    assert len(told) == 1
    assert told[0].startswith("waiting for a worker: it needs 1 CPU on one node; free are ")


def test_without_room_for_long_it_may_be_tried_later(holder: Any) -> None:
    cluster = ClusterConfig(address="auto", start_timeout_s=1)
    with pytest.raises(TryLaterError, match=r"cluster\.start_timeout_s: no room for a worker for"):
        run_once_on_ray(os.getpid, cluster, print)


def test_a_function_that_fails_is_the_jobs_error() -> None:
    cluster = ClusterConfig(cpus_per_worker=0.5)
    with pytest.raises(JobError, match="ZeroDivisionError"):
        run_once_on_ray(partial(divmod, 1, 0), cluster, print)
    with pytest.raises(JobError, match="a worker died: The actor is dead because"):
        run_once_on_ray(partial(signal.raise_signal, signal.SIGKILL), cluster, print)

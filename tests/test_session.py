"""Joining a Ray, and what one worker is to it."""

import os
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from ldm_batch.cluster import call_on_ray, session
from ldm_batch.cluster.session import ray_session, worker_need, worker_options
from ldm_batch.cluster.view import View
from ldm_batch.cluster_config import ClusterConfig
from ldm_batch.errors import JobError
from ldm_batch.nodes import Node


def test_a_function_is_called_where_a_worker_would_run_in_its_environment() -> None:
    cluster = ClusterConfig(
        runtime_env={"env_vars": {"LDM_BATCH_TEST": "seen"}}, resources={"spot": 1}
    )
    told: list[str] = []
    assert call_on_ray(partial(os.getenv, "LDM_BATCH_TEST"), cluster, told.append) == "seen"
    assert told == []
    assert not ray.is_initialized()


def test_who_waits_for_room_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    full, free = ({"a": Node("a", "a", {"CPU": 1}, {"CPU": cpus})} for cpus in (0, 1))
    views = iter([View(0, nodes, {}) for nodes in (full, full, full, free)])
    watch: Any = SimpleNamespace(view=lambda: next(views))
    monkeypatch.setattr(session, "PATIENCE_S", 0)
    monkeypatch.setattr(session, "POLL_S", 0)
    told: list[str] = []
    session._wait_for_room(watch, ClusterConfig(address="auto"), {"CPU": 1}, told.append)
    assert told == [
        "waiting for a worker: it needs 1 CPU on one node; free are a: nothing of 1 CPU"
    ]
    assert next(views, None) is None


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        (
            ClusterConfig(address="127.0.0.1:1"),
            r"cluster\.address: nothing answers at 127\.0\.0\.1:1 \(.*Connection refused\); it is",
        ),
        (ClusterConfig(address="127.0.0.1:99999"), r"cluster\.address: nothing answers at "),
        (ClusterConfig(address="head"), r"cluster\.address: cannot join head: "),
        (
            ClusterConfig(runtime_env={"working_dir": "/nowhere"}),
            r"cluster\.runtime_env: .*/nowhere must be an existing directory",
        ),
        (
            ClusterConfig(runtime_env={"env_vras": {}}),
            r"cluster\.runtime_env\.env_vras: no such field; did you mean 'env_vars'\?",
        ),
    ],
)
def test_what_cannot_be_joined_is_one_message(cluster: ClusterConfig, message: str) -> None:
    with pytest.raises(JobError, match=message) as caught, ray_session(cluster):
        pass
    assert "\n" not in str(caught.value)
    assert not ray.is_initialized()


def test_a_port_that_is_not_rays_is_told_at_once() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"127.0.0.1:{server.server_port}"
    with (
        pytest.raises(JobError, match=f"what answers at {address} is no Ray; it is"),
        ray_session(ClusterConfig(address=address)),
    ):
        pass
    server.shutdown()
    server.server_close()


def test_an_address_in_the_environment_that_is_a_dashboards_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    with (
        pytest.raises(JobError, match=r"^RAY_ADDRESS, .*http://head:8265 is a dashboard"),
        ray_session(ClusterConfig(address="auto")),
    ):
        pass


def test_a_worker_by_rays_names() -> None:
    cluster = ClusterConfig(
        cpus_per_worker=2,
        gpus_per_worker=0.5,
        memory_per_worker=10**9,
        resources={"spot": 1},
        labels={"zone": "a"},
        placement="spread",
    )
    options = worker_options(ray, cluster)
    assert options == {
        "num_cpus": 2,
        "num_gpus": 0.5,
        "memory": 10**9,
        "resources": {"spot": 1},
        "label_selector": {"zone": "a"},
        "scheduling_strategy": "SPREAD",
    }
    assert worker_need(options) == {"CPU": 2, "GPU": 0.5, "memory": 10**9, "spot": 1}

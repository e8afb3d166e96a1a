"""Joining a Ray, and what one worker is to it."""

import json
import shutil
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from commands import MACHINERY, write_prompts

from ldm_batch.cluster.local_ray import own_agent_port
from ldm_batch.cluster.session import (
    _own_sigterm,
    _refuse_anothers_own,
    _why_not_joined,
    brief,
    ray_session,
    runtime_env_error,
    worker_need,
    worker_options,
)
from ldm_batch.config.cluster import ClusterConfig
from ldm_batch.errors import JobError, TryLaterError

RAYS_AGENT_PORT = 52365


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        (
            ClusterConfig(address="127.0.0.1:1"),
            r"cluster\.address: nothing answers at 127\.0\.0\.1:1 \(.*Connection refused\); it is",
        ),
        (ClusterConfig(address="127.0.0.1:99999"), r"127.0.0.1:99999 has no port, which is 1 to"),
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


@pytest.mark.parametrize("kind", ["gone", "long", "full", "file", "below a file"])
def test_a_folder_where_no_local_ray_can_start(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path("/proc") if kind == "gone" else tmp_path / ("long" * 30)
    if kind == "full":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    elif kind == "long":
        folder.mkdir()
    elif "file" in kind:
        (tmp_path / "file").touch()
        folder = tmp_path / ("file" if kind == "file" else "file/below")
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    with (
        pytest.raises(JobError, match=r"below RAY_TMPDIR, else TMPDIR, else /tmp") as caught,
        ray_session(ClusterConfig(num_workers=1)),
    ):
        pass
    assert not isinstance(caught.value, TryLaterError)
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


def test_the_local_ray_of_another_job_is_no_cluster() -> None:
    with ray_session(ClusterConfig(num_workers=1)) as own:
        assert own._private.worker._global_node.dashboard_agent_listen_port != RAYS_AGENT_PORT
        with pytest.raises(TryLaterError, match="only the Ray of another job with cluster=local"):
            _refuse_anothers_own(own, ClusterConfig(address="auto"))
        _refuse_anothers_own(own, ClusterConfig())


def test_a_ray_without_a_private_name_is_left_as_it_is() -> None:
    bare = SimpleNamespace(
        _private=SimpleNamespace(utils=SimpleNamespace(), parameter=SimpleNamespace())
    )
    before = signal.getsignal(signal.SIGTERM)
    with _own_sigterm(bare), own_agent_port(bare):  # type: ignore[arg-type]
        assert vars(bare._private.utils) == vars(bare._private.parameter) == {}
    assert signal.getsignal(signal.SIGTERM) is before
    bare._private.parameter.RayParams = Path.touch  # takes nothing of the kind
    with own_agent_port(bare):  # type: ignore[arg-type]
        assert bare._private.parameter.RayParams is Path.touch


OF_LINUX = (
    *("sched_getaffinity", "sched_setaffinity", "posix_fadvise", "posix_fallocate"),
    *("memfd_create", "eventfd", "pipe2", "getrandom", "splice", "copy_file_range", "prlimit"),
)
"""What Python's `os` and `resource` do not have on macOS."""
AS_ON_MACOS = f"""
import os, resource, sys
for name in {OF_LINUX!r}:
    for module in (os, resource):
        if hasattr(module, name):
            delattr(module, name)
def refused(kind, limits, set_limit=resource.setrlimit):
    if kind == resource.RLIMIT_AS:
        raise ValueError("current limit exceeds maximum limit")
    set_limit(kind, limits)
resource.setrlimit = refused
"""


def as_on_macos(folder: Path, code: str, *arguments: str, given: str = "") -> str:
    """What a child prints that has none of what only Linux has."""
    command = [sys.executable, "-c", AS_ON_MACOS + code, *arguments]
    options = {"capture_output": True, "text": True, "check": True, "cwd": folder}
    ended = subprocess.run(command, input=given, timeout=120, **options)  # type: ignore[call-overload]
    return str(ended.stdout)


def test_a_machine_without_what_only_linux_has(tmp_path: Path) -> None:
    code = """
from ldm_batch.cluster.local_ray import count_cores
from ldm_batch.__main__ import main
assert count_cores() == os.cpu_count()
main()
"""
    write_prompts(tmp_path, num_files=1, rows_per_file=20)
    out = as_on_macos(tmp_path, code, "run", *MACHINERY, "cluster.executor=in_process")
    assert "20 images from 20 rows" in out


def test_a_template_where_memory_has_no_limit(tmp_path: Path) -> None:
    given = json.dumps({"template": "a {{ messages[0].content }}", "variables": {}, "texts": ["b"]})
    code = "from ldm_batch.diffusion.family.render_template import main\nmain()"
    assert json.loads(as_on_macos(tmp_path, code, given=given)) == ["a b"]


def test_a_token_that_is_missing_is_a_mistake_and_a_silent_cluster_is_not() -> None:
    cluster = ClusterConfig(address="head:6379")
    error = _why_not_joined(ray, cluster, ray.exceptions.AuthenticationError("no token"))
    assert not isinstance(error, TryLaterError)
    assert str(error).startswith("cluster.address: cannot join head:6379: no token")
    error = _why_not_joined(ray, cluster, ConnectionError("silence"))
    assert isinstance(error, TryLaterError)
    assert str(error).startswith("cluster.address: cannot join head:6379: silence (where a cluster")
    refused = ConnectionError("Failed to connect")
    refused.__cause__ = RuntimeError("RPC error: InvalidAuthToken: token is missing or incorrect")
    assert not isinstance(_why_not_joined(ray, cluster, refused), TryLaterError)
    error = _why_not_joined(ray, ClusterConfig(address="auto"), ConnectionError("silence"))
    assert "cannot join the cluster that cluster=auto finds: silence" in str(error)


def test_what_the_installer_said_last_is_told_of_an_environment() -> None:
    output = "Failed to set up.\nTraceback\n  ERROR: No matching distribution found for cats\n\n"
    error = runtime_env_error(ray.exceptions.RuntimeEnvSetupError(output))
    assert str(error) == (
        "cluster.runtime_env: cannot be set up: ERROR: No matching distribution found for cats"
    )


def test_a_long_message_of_rays_ends_with_a_sentence() -> None:
    long = "The node is gone. " + "It may have been preempted, or the network is slow. " * 20
    assert brief(Exception(long)).endswith("the network is slow.")
    assert brief(Exception("x" * 1000)) == "x" * 400
    assert brief(Exception("")) == "Exception"

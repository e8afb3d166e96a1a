"""A connection to Ray: a local one of our own, or the cluster that the job names.

Knows how to join, what one worker takes of a node, and what Ray's errors say; must not know shards.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any

from ldm_batch.cluster.local_ray import (
    OWN_RAY,
    RAYS_FOLDER,
    check_folder,
    local_resources,
    own_agent_port,
    replaced,
)
from ldm_batch.cluster.view import quieten
from ldm_batch.config.bounds import suggest
from ldm_batch.config.cluster import LAST_PORT, ClusterConfig
from ldm_batch.errors import JobError, TryLaterError

QUIET_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}
"""No usage reports; no warning of how a worker without GPUs will be treated one day; no lines that
are held back as repeated."""
MAX_MESSAGE_CHARS = 400
"""Ray's errors may hold a whole traceback, or all that an installer printed."""
ANSI_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
INVALID_TOKEN = "InvalidAuthToken"
CONNECT_S = 10.0
"""A head that lives answers within a round trip; Ray itself tries a dead one for minutes."""
PATIENCE_S = 10.0
"""Without any worker for so long, say why; an idle machine has made a first shard after 3 s."""
HTTP2_SETTINGS = b"\x04"
HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + HTTP2_SETTINGS + bytes(5)
"""What a client of gRPC, which Ray speaks, says first: the preface and an empty SETTINGS frame (RFC
9113, 3.4 and 6.5). The server answers with a frame of that type; its fourth byte says so."""
RAY_STRATEGIES = {"pack": "DEFAULT", "spread": "SPREAD"}


@contextmanager
def ray_session(cluster: ClusterConfig) -> Iterator[ModuleType]:
    """Join the named cluster, or start a local one of our own; a session that is there stays.

    Raises:
        JobError: what the job says of the cluster is wrong, a token is missing, or a local Ray has
            no folder for its files.
        TryLaterError: Ray does not start, or the cluster does not answer or is another job's own.
    """
    os.environ.update({k: v for k, v in QUIET_RAY.items() if k not in os.environ})
    import ray

    if ray.is_initialized():
        yield ray
        return
    _check_runtime_env(ray, cluster.runtime_env)
    _check_answers(cluster)
    if cluster.address is None:
        check_folder()
    try:
        with _own_sigterm(ray), own_agent_port(ray) if cluster.address is None else nullcontext():
            _join(ray, cluster)
        quieten(ray)
        _refuse_anothers_own(ray, cluster)
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _own_sigterm(ray: ModuleType) -> Iterator[None]:
    """What SIGTERM does stays as it was, while Ray starts too: Ray would make `sys.exit(15)` of it,
    even of one that comes as its handler is replaced again."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Private: `ray.init` takes no option that leaves the signal alone, and setting it back
    # afterwards is too late for one that comes meanwhile.
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        with replaced(ray._private.utils, "set_sigterm_handler", lambda _handler: None):
            yield
    finally:
        signal.signal(signal.SIGTERM, on_terminate)


def _join(ray: ModuleType, cluster: ClusterConfig) -> None:
    try:
        ray.init(
            address=cluster.address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env=_as_ray_wants(cluster.runtime_env) or None,
            **({} if cluster.address else local_resources(cluster)),
        )
    except Exception as error:  # Ray raises many unrelated kinds
        raise _why_not_joined(ray, cluster, error) from error


def _check_runtime_env(ray: ModuleType, runtime_env: Mapping[str, Any]) -> None:
    """Refuse fields that Ray would drop with a warning."""
    known = sorted(name for name in ray.runtime_env.RuntimeEnv.known_fields if name[0] != "_")
    for name in runtime_env:
        if name not in known:
            raise JobError(f"cluster.runtime_env.{name}: no such field{suggest(name, known)}")


def _as_ray_wants(runtime_env: Mapping[str, Any]) -> dict[str, Any]:
    """A runtime environment whose variables are text, whatever a command line made of them."""
    variables = runtime_env.get("env_vars")
    if not isinstance(variables, Mapping):
        return dict(runtime_env)
    return {**runtime_env, "env_vars": {name: str(value) for name, value in variables.items()}}


def _why_not_joined(ray: ModuleType, cluster: ClusterConfig, error: Exception) -> JobError:
    reason, address = brief(error), cluster.address
    if cluster.runtime_env and isinstance(error, (ValueError, TypeError)):
        return JobError(f"cluster.runtime_env: {reason}")
    if address is None:
        message = f"cluster: a local Ray does not start: {reason}"
        return (
            JobError(f"{message}; {RAYS_FOLDER}") if _is_folders(error) else TryLaterError(message)
        )
    named = "the cluster that cluster=auto finds" if address == "auto" else address
    message = (
        f"cluster.address: cannot join {named}: {reason} (where a cluster asks for a token: "
        "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token)"
    )
    return JobError(message) if _is_unauthorized(ray, error) else TryLaterError(message)


def _is_folders(error: Exception) -> bool:
    """Tell whether it is the folder where a local Ray keeps its files that cannot be used."""
    return isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError)


def _is_unauthorized(ray: ModuleType, error: BaseException | None) -> bool:
    """Tell whether a token is missing or wrong, however deep Ray hides it."""
    while error is not None:
        if isinstance(error, ray.exceptions.AuthenticationError) or INVALID_TOKEN in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _refuse_anothers_own(ray: ModuleType, cluster: ClusterConfig) -> None:
    """Do not work on a Ray that another job started for itself and ends with itself: without
    RAY_ADDRESS Ray's `auto` takes any that runs on this machine."""
    if cluster.address == "auto" and OWN_RAY in ray.cluster_resources():
        raise TryLaterError(
            "cluster.address: no cluster here, only the Ray of another job with cluster=local, "
            "which ends with that job; set RAY_ADDRESS=HOST:6379 to name the cluster"
        )


def _check_answers(cluster: ClusterConfig) -> None:
    """See at once whether anything answers: Ray itself tries a dead address for minutes."""
    address, field = cluster.address, "cluster.address"
    if address == "auto":
        address, field = os.environ.get("RAY_ADDRESS"), "RAY_ADDRESS, which cluster=auto follows"
    if address and address.startswith("http"):
        raise JobError(
            f"{field}: {address} is a dashboard, for jobs/submit.sh; here name the head's host and "
            "its port for Ray, e.g. 10.0.0.1:6379, or unset it"
        )
    host, _, port = (address or "").rpartition(":")
    if not host or not port.isdecimal():
        return
    wanted = "it is the head's host and its port for Ray (6379 if not set), not the dashboard's"
    if not 0 < int(port) <= LAST_PORT:
        raise JobError(f"{field}: {address} has no port, which is 1 to {LAST_PORT}; {wanted}")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_S) as connection:
            connection.sendall(HTTP2_HELLO)
            answer = connection.recv(9)
    except OSError as error:
        raise TryLaterError(f"{field}: nothing answers at {address} ({error}); {wanted}") from error
    if answer[3:4] != HTTP2_SETTINGS and os.environ.get("RAY_USE_TLS", "0") == "0":
        raise JobError(f"{field}: what answers at {address} is no Ray; {wanted}")


def worker_options(ray: ModuleType, cluster: ClusterConfig) -> dict[str, Any]:
    """What one worker is to Ray: its resources and where it may stand."""
    options: dict[str, Any] = {
        "num_cpus": cluster.cpus_per_worker,
        "num_gpus": _gpus_per_worker(ray, cluster),
        "scheduling_strategy": RAY_STRATEGIES[cluster.placement],
    }
    if cluster.memory_per_worker is not None:
        options["memory"] = cluster.memory_per_worker
    if cluster.resources:
        options["resources"] = dict(cluster.resources)
    if cluster.labels:
        options["label_selector"] = dict(cluster.labels)
    return options


def worker_need(options: Mapping[str, Any]) -> dict[str, float]:
    """Resources of one worker by the names that nodes use."""
    custom: Mapping[str, float] = options.get("resources", {})
    memory = options.get("memory", 0)
    return {"CPU": options["num_cpus"], "GPU": options["num_gpus"], "memory": memory, **custom}


def _gpus_per_worker(ray: ModuleType, cluster: ClusterConfig) -> float:
    if cluster.gpus_per_worker is not None:
        return cluster.gpus_per_worker
    return 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0


def runtime_env_error(error: Exception) -> JobError:
    """What to tell of a runtime environment that a node cannot set up: what its installer said
    last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return JobError(f"cluster.runtime_env: cannot be set up: {lines[-1][:MAX_MESSAGE_CHARS]}")


def brief(error: Exception) -> str:
    """One line of what an error of Ray says: the reason where there is one."""
    text = ANSI_COLOUR.sub("", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    reasons = [line for line in lines if line.startswith("The actor is dead because")]
    if getattr(error, "actor_init_failed", False):
        reasons = lines[-1:]
    line = [*reasons, *lines, type(error).__name__][0]
    if len(line) <= MAX_MESSAGE_CHARS:
        return line
    sentences = line[:MAX_MESSAGE_CHARS].rpartition(". ")[0]
    return f"{sentences}." if sentences else line[:MAX_MESSAGE_CHARS]

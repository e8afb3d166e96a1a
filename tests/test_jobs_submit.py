"""`ray job submit` and the Slurm script for real: clusters as users start them, on this machine."""

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from commands import (
    DEADLINE_S,
    descendants,
    digests,
    is_alive,
    kill,
    objects,
    wait_until,
    write_prompts,
)
from test_jobs import BIN, JOBS, ROOT, SBATCH, environment

from ldm_batch.commands.init import make_folder

MACHINERY = ("conf=machinery", "rows_per_shard=20")
WAIT_S = 2 * DEADLINE_S


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster with a dashboard that asks for a token, and how to reach it."""

    process: subprocess.Popen[bytes]
    variables: dict[str, str]


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def answers(cluster: Cluster) -> bool:
    token = Path(cluster.variables["RAY_AUTH_TOKEN_PATH"]).read_text()
    request = urllib.request.Request(
        f"{cluster.variables['RAY_ADDRESS']}/api/jobs/",
        headers={"Authorization": f"Bearer {token}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def end(process: subprocess.Popen[bytes]) -> None:
    """End a Ray that was started here, by the ids of its own processes."""
    pids = [process.pid, *descendants(process.pid)]
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pid in pids[1:]:
        kill(pid)


@pytest.fixture(scope="module")
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for the names of Ray's Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="ldm", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def cluster(short_folder: Path) -> Iterator[Cluster]:
    port, dashboard, client = free_ports(3)
    token = short_folder / "token"
    token.write_text(secrets.token_hex(32))
    variables = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "HOME": str(short_folder),
    }
    options = (
        "--head --block --include-dashboard=true --disable-usage-stats --num-cpus=2 --num-gpus=0 "
        f"--port={port} --dashboard-port={dashboard} --ray-client-server-port={client} "
        "--min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0 "
        f"--object-store-memory=100000000 --temp-dir={short_folder}/ray"
    )
    with (short_folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(BIN / "ray"), "start", *options.split()],
            env={k: v for k, v in environment(**variables).items() if k != "RAY_ADDRESS"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    cluster = Cluster(process, variables)
    try:
        wait_until(lambda: answers(cluster) or process.poll() is not None)
        assert process.poll() is None, (short_folder / "log").read_text()
        yield cluster
    finally:
        end(process)


def submit(
    folder: Path, cluster: Cluster, *arguments: str, jobs: Path = JOBS
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(jobs / "submit.sh"), *arguments],
        cwd=folder,
        env=environment(**cluster.variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def places(folder: Path, sink: str = "out") -> list[str]:
    return [f"source.uri={folder}/in", f"sink.uri={folder}/{sink}"]


def test_a_submitted_job_ends_with_its_own_exit_code(tmp_path: Path, cluster: Cluster) -> None:
    """Made, submitted again, and refused for a mistake; every word of it by the real command."""
    write_prompts(tmp_path, num_files=1, rows_per_file=60)
    job = [*MACHINERY, *places(tmp_path), "cluster.num_workers=1"]
    made = submit(tmp_path, cluster, *job)
    out, _ = made.communicate(timeout=WAIT_S)
    assert made.returncode == 0, out
    assert re.search(r"^job out-\d{8}-[0-9a-f]{8}$", out, re.M)
    assert sum(pq.read_metadata(path).num_rows for path in objects(tmp_path)) == 60
    before = digests(tmp_path)

    again = submit(tmp_path, cluster, *job)
    mistaken = submit(tmp_path, cluster, "--submission-id", "mistaken", *job, "seed=5")
    told, _ = mistaken.communicate(timeout=WAIT_S)
    assert mistaken.returncode == 2, told
    assert "seed: planned 0, now 5" in told
    out, _ = again.communicate(timeout=WAIT_S)
    assert again.returncode == 0, out
    assert "0 to do" in out
    assert re.search(r"^job out-\d{8}-[0-9a-f]{8}-2$", out, re.M)
    assert digests(tmp_path) == before


@pytest.mark.long
def test_a_folder_that_init_made_submits_its_own_job(tmp_path: Path, cluster: Cluster) -> None:
    """The code that is installed and the folder's own conf/ travel."""
    mine = tmp_path / "mine"
    make_folder(mine, "ldm-batch")
    uris = (f"source.uri={mine}/prompts.parquet", f"sink.uri={mine}/out")
    options = ("dry_run=true", "--config-dir", "conf")
    process = submit(tmp_path, cluster, "conf=my_job", *uris, *options, jobs=mine / "jobs")
    out, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, out
    assert "plan: 1 files, 4 rows" in out


@pytest.mark.long
def test_only_the_same_job_is_followed(tmp_path: Path, cluster: Cluster) -> None:
    """While one waits for room: the same again, and two that differ in sink or argument."""
    write_prompts(tmp_path, num_files=1, rows_per_file=20)
    waiting = [*MACHINERY, *places(tmp_path, "a/out"), "cluster.cpus_per_worker=64"]
    others = [
        [*MACHINERY, *places(tmp_path, "b/out"), "cluster.num_workers=1"],
        [*MACHINERY, *places(tmp_path, "a/out"), "dry_run=true"],
    ]
    ids = []
    for job in (waiting, waiting, *others):
        wait = ["--no-wait"] if job is waiting else []
        process = submit(tmp_path, cluster, *wait, *job)
        out, _ = process.communicate(timeout=WAIT_S)
        assert process.returncode == 0, out
        ids += re.findall(r"^job (\S+)$", out, re.M)
        assert ("following it" in out) == (len(ids) == 2)
    assert len(ids) == 4
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3
    assert len(list((tmp_path / "b" / "out" / "data").glob("*"))) == 1
    stop = [str(BIN / "ray"), "job", "stop", ids[0]]
    subprocess.run(stop, env=environment(**cluster.variables), capture_output=True, check=True)


def test_a_job_that_finds_no_room_ends_with_75(tmp_path: Path, cluster: Cluster) -> None:
    """The job command's own word for it, passed on by the cluster and the script."""
    write_prompts(tmp_path, num_files=1, rows_per_file=20)
    room = ["cluster.num_workers=1", "cluster.cpus_per_worker=64", "cluster.start_timeout_s=1"]
    process = submit(tmp_path, cluster, *MACHINERY, *places(tmp_path), *room)
    out, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 75, out
    assert not objects(tmp_path)


@pytest.mark.long
def test_a_job_submitted_twice_is_followed_not_started_twice(
    tmp_path: Path, cluster: Cluster
) -> None:
    """The job waits for a worker that has no room, so it is surely still there."""
    write_prompts(tmp_path, num_files=1, rows_per_file=20)
    job = [*MACHINERY, *places(tmp_path), "cluster.num_workers=1", "cluster.cpus_per_worker=64"]
    first = submit(tmp_path, cluster, "--no-wait", "--submission-id=twice", *job)
    out, _ = first.communicate(timeout=WAIT_S)
    assert first.returncode == 0, out
    second, third = (submit(tmp_path, cluster, "--submission-id", "twice", *job) for _ in range(2))
    for follower in (second, third):
        assert follower.stdout is not None
        assert follower.stdout.readline() == "job twice is running already; following it\n"
        assert follower.stdout.readline() == "job twice\n"
    third.terminate()
    out, _ = third.communicate(timeout=WAIT_S)
    assert third.returncode == 143
    assert "job twice goes on" in out
    stop = [str(BIN / "ray"), "job", "stop", "twice"]
    subprocess.run(stop, env=environment(**cluster.variables), capture_output=True, check=True)
    out, _ = second.communicate(timeout=WAIT_S)
    assert second.returncode == 143, out
    assert not objects(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["conf=demo"], {}, "RAY_ADDRESS is not set"),
        (["conf=demo"], {"RAY_ADDRESS": "head:6379"}, "is not a job server"),
        ([], {}, "no arguments for the job"),
        (["--nowait", "conf=demo"], {}, "unknown option --nowait"),
        (["sink.uri=out"], {"RAY_ADDRESS": "http://head:8265"}, "sink.uri=out is relative"),
    ],
)
def test_a_mistake_is_told_before_anything_is_submitted(
    arguments: list[str], variables: dict[str, str], message: str, tmp_path: Path
) -> None:
    ended = subprocess.run(
        [str(JOBS / "submit.sh"), *arguments],
        cwd=tmp_path,
        env=environment(**variables),
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert message in ended.stderr


def test_without_its_token_a_cluster_is_not_asked_again(tmp_path: Path, cluster: Cluster) -> None:
    stranger = {"RAY_AUTH_TOKEN": "another", "RAY_AUTH_TOKEN_PATH": ""}
    refused = submit(tmp_path, Cluster(cluster.process, cluster.variables | stranger), "conf=demo")
    out, _ = refused.communicate(timeout=WAIT_S)
    assert refused.returncode == 2
    assert "RAY_AUTH_TOKEN_PATH to the cluster's token" in out


def test_a_cluster_that_does_not_answer_is_worth_another_try(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    ended = subprocess.run(
        [str(JOBS / "submit.sh"), "conf=demo"],
        cwd=tmp_path,
        env=environment(RAY_ADDRESS=f"http://127.0.0.1:{port}"),
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 75
    assert f"RAY_ADDRESS=http://127.0.0.1:{port}" in ended.stderr


# Slurm

SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
echo "$$ ${*//$'\n'/ }" >>"$STUBS/steps"
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then printf '%s\\n' node1 node2; else echo "$*" >>"$STUBS/requeued"; fi
"""


def slurm(folder: Path, stubs: Path, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
    """Run the batch script as Slurm would, with an srun that starts every step on this machine."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (stubs / name).write_text(text)
        (stubs / name).chmod(0o755)
    allocation = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_CPUS_PER_TASK": "1",
        "STUBS": str(stubs),
        "TMPDIR": str(stubs),
        **variables,
    }
    inherited = environment()
    allocation["PATH"] = f"{stubs}:{inherited['PATH']}"
    with (folder / "slurm.log").open("ab") as log:
        return subprocess.Popen(
            ["bash", str(SBATCH), *arguments],
            cwd=folder,
            env={**inherited, **allocation},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def ray_steps(stubs: Path) -> list[int]:
    """Process ids of the steps that ran Ray: on each node the shell that removes its folder."""
    lines = (stubs / "steps").read_text().splitlines()
    return [int(line.split()[0]) for line in lines if " run_ray /" in line]


def ray_folder(stubs: Path) -> Path:
    """Where Ray puts its files, below TMPDIR; the nodes of these tests share it."""
    return stubs / f"ray-{os.getpid()}"


@pytest.mark.long
def test_a_slurm_job_is_requeued_when_time_runs_out_and_then_finishes(
    tmp_path: Path, short_folder: Path
) -> None:
    write_prompts(tmp_path, num_files=1, rows_per_file=1000)
    stubs = short_folder / "s"
    stubs.mkdir()
    job = ["conf=machinery", "rows_per_shard=5", *places(tmp_path)]
    batch = slurm(tmp_path, stubs, *job)
    log = tmp_path / "slurm.log"
    try:
        wait_until(lambda: len(objects(tmp_path)) > 0 or batch.poll() is not None)
        started = [*descendants(batch.pid)]
        assert ray_folder(stubs).is_dir()
        batch.send_signal(signal.SIGUSR1)
        assert batch.wait(timeout=WAIT_S) == 143, log.read_text()
        assert (stubs / "requeued").read_text() == f"requeue {os.getpid()}\n"
        assert len(ray_steps(stubs)) == 2  # the head and the other node
        assert 0 < len(objects(tmp_path)) < 200
        wait_until(lambda: not any(is_alive(pid) for pid in started))
        assert not ray_folder(stubs).exists()

        batch = slurm(tmp_path, stubs, *job)
        assert batch.wait(timeout=WAIT_S) == 0, log.read_text()
        assert len(objects(tmp_path)) == 200
        assert len((stubs / "requeued").read_text().splitlines()) == 1
        assert not any(is_alive(pid) for pid in ray_steps(stubs))
        assert not ray_folder(stubs).exists()
    finally:
        end(batch)


@pytest.mark.parametrize(
    ("code", "restarts", "is_requeued"),
    [(0, 0, False), (1, 0, False), (2, 0, False), (75, 0, True), (75, 4, True), (75, 5, False)],
)
def test_a_slurm_job_ends_with_the_exit_code_of_the_job(
    code: int, restarts: int, is_requeued: bool, tmp_path: Path
) -> None:
    """With stand-ins for Ray and the job: only the want of a cluster puts it back, five times."""
    stubs = tmp_path / "stubs"
    (tmp_path / "checkout" / "ldm_batch").mkdir(parents=True)
    for name in ("__init__.py", "__main__.py"):
        (tmp_path / "checkout" / "ldm_batch" / name).touch()
    (tmp_path / "checkout" / "ldm_batch" / "run.py").write_text(f"raise SystemExit({code})\n")
    stubs.mkdir()
    (stubs / "ray").write_text('#!/bin/sh\n[ "$1" = start ] && exec sleep 1000\nexit 0\n')
    (stubs / "ray").chmod(0o755)
    variables = {
        "LDM_BATCH_HOME": str(tmp_path / "checkout"),
        "SLURM_RESTART_COUNT": str(restarts),
    }
    batch = slurm(tmp_path, stubs, "conf=demo", **variables)
    assert batch.wait(timeout=DEADLINE_S) == code
    assert (stubs / "requeued").exists() == is_requeued
    assert not any(is_alive(pid) for pid in ray_steps(stubs))


def test_this_python_is_the_one_that_the_scripts_find() -> None:
    """Or the tests above would have tested another installation."""
    found = subprocess.run(
        ["bash", "-c", "command -v python"], env=environment(), capture_output=True, text=True
    )
    assert Path(found.stdout.strip()).resolve() == Path(sys.executable).resolve()

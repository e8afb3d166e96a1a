"""Kills within a real command on Ray: a worker, the driver, or Ray's own processes."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

from commands import descendants, finish, is_alive, kill, start

from ldm_batch.config import JobConfig

VICTIMS = {"worker": "ray::_Actor", "raylet": "/raylet ", "gcs": "/gcs_server", "driver": ""}
LONGEST_WAIT_S, SEEN_S = 1.0, 90.0


def run_and_kill(folder: Path, job: JobConfig, victim: str, dice: random.Random) -> int | None:
    """Run a job by its command on two Ray workers and kill one of its processes.

    Returns:
        The command's exit code; None where it ended before its victim was seen.
    """
    driver = start(folder, *_arguments(job))
    try:
        pid = _find(driver, VICTIMS[victim])
        if pid is None:
            return None
        everyone = descendants(driver.pid)
        time.sleep(dice.uniform(0, LONGEST_WAIT_S))
        kill(pid)
        _wait_or_kill(driver)
        for orphan, line in everyone.items():
            _wait_for_end(orphan, line)
    finally:
        kill(driver.pid)
    return finish(driver).code


def _arguments(job: JobConfig) -> tuple[str, ...]:
    return (
        "conf=machinery",
        f"source.uri={job.source.uri}",
        "sink=s3",
        f"sink.uri={job.sink.uri}",
        f"sink.s3.endpoint={job.sink.s3.endpoint}",
        f"rows_per_shard={job.rows_per_shard}",
        "cluster.num_workers=2",
    )


def _find(driver: subprocess.Popen[str], command: str) -> int | None:
    """The process to kill: the driver itself, or the first below it with such a command line.

    Waits until a worker is there, so that something is under way.
    """
    deadline = time.monotonic() + SEEN_S
    while driver.poll() is None and time.monotonic() < deadline:
        lines = descendants(driver.pid)
        if any(VICTIMS["worker"] in line for line in lines.values()):
            if not command:
                return driver.pid
            return next((pid for pid, line in lines.items() if command in line), None)
        time.sleep(0.02)
    return None


def _wait_or_kill(driver: subprocess.Popen[str]) -> None:
    """Give a driver a minute to end by itself: without its raylet it may not."""
    deadline = time.monotonic() + 60
    while is_alive(driver.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    kill(driver.pid)


def _wait_for_end(pid: int, line: str) -> None:
    """Wait for an orphan of this driver's, then end it."""
    deadline = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    if is_alive(pid) and _command_line(pid) == line:
        os.kill(pid, signal.SIGKILL)


def _command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")

"""Run the real command in its own process, as a user does, and look at what it left."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

DEADLINE_S = 180.0
MACHINERY = ("conf=machinery", "source.uri=in", "sink.uri=out", "rows_per_shard=20")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def start(
    folder: Path, *arguments: str, module: str = "ldm_batch.run", out: IO[str] | int = PIPE
) -> subprocess.Popen[str]:
    """Start `python -m module arguments` in a folder, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        stdout=out,
        stderr=PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> Ended:
    """Wait for a command to end."""
    out, err = process.communicate(timeout=DEADLINE_S)
    return Ended(process.returncode, out, err)


def run(folder: Path, *arguments: str, module: str = "ldm_batch.run") -> Ended:
    """Run a command to its end."""
    return finish(start(folder, *arguments, module=module))


def wait_until(is_true: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    """Wait for a condition; fail when it does not come, or when the process ends before it."""
    deadline = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline, "the condition never came"
        assert process is None or process.poll() is None, finish(process)
        time.sleep(0.005)


def write_prompts(folder: Path, num_files: int = 2, rows_per_file: int = 300) -> None:
    """Write files of distinct prompts to `folder/in`."""
    (folder / "in").mkdir(exist_ok=True)
    for number in range(num_files):
        prompts = [f"file {number} row {row}" for row in range(rows_per_file)]
        pq.write_table(pa.table({"prompt": prompts}), folder / "in" / f"{number}.parquet")


def objects(folder: Path) -> list[Path]:
    """Committed objects of the dataset in `folder/out`."""
    return sorted((folder / "out" / "data").glob("*"))


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in `folder/out/data`, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in objects(folder)}


def descendants(pid: int) -> dict[int, str]:
    """Command lines of all processes below one, by process id."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found: dict[int, str] = {}
    frontier = {pid}
    while frontier:
        frontier = {child for child, parent in parents.items() if parent in frontier}
        for child in frontier:
            try:
                found[child] = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
    return found


def worker_pids(driver: subprocess.Popen[str]) -> list[int]:
    """Process ids of the Ray workers that hold a pipeline."""
    return sorted(pid for pid, line in descendants(driver.pid).items() if "ray::_Actor" in line)


def is_alive(pid: int) -> bool:
    """Tell whether a process is there and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill(pid: int) -> None:
    """Kill one process by its id, if it is still there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return

"""What a job of many rows costs, phase by phase, and beside Ray Data.

    python tests/bench/scale.py --rows 10000 100000 1000000 [--rounds 3]
    python tests/bench/scale.py --ray-data [--rows 100000] [--rounds 3]
    python tests/bench/scale.py --shards 2000 20000 200000

Random 8x8 pixels stand in for a model, so that what is measured is everything around one. Every
input file has 1,000 rows and is one shard. Each phase is the real command in a process of its own:
a dry run plans; the job runs on a local Ray with two workers; the same command again resumes, and
finds nothing to do; `verify`; `status`.

Prints what each command took as it ends, then Markdown, the medians of all rounds (of more than
100,000 rows there is one): wall seconds; CPU seconds of the driver and the workers, and of Ray's
own processes (raylet, gcs, agents, spare workers); CPU per row of all of them, and of driver and
workers without the fixed cost, which is what the phase takes for 20 rows in 20 files (so that both
workers have made some); peak resident memory of the driver and of the largest Ray worker.

`--ray-data` runs this job and `ray_data_rows.py` in turns, and takes the fixed cost of each from a
run of it on those 20 rows.

`--shards` takes the rows away as well: a plan of so many shards in 200 files is stored, loaded and
selected from, its receipts are counted, and its shards are handed to Ray workers that answer at
once, without images.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from statistics import median

import pyarrow as pa
import pyarrow.parquet as pq

from ldm_batch.cluster import run_on_ray
from ldm_batch.config.cluster import ClusterConfig
from ldm_batch.identity import NEWEST_FORM
from ldm_batch.plan.cut import cut_file
from ldm_batch.plan.make import select_shards
from ldm_batch.plan.stored import Plan, load_plan, plan_document, save_plan
from ldm_batch.progress import Tally
from ldm_batch.records import InputFile, Outcome, Receipt, Shard
from ldm_batch.storage import Store
from ldm_batch.versions import versions
from ldm_batch.write.commit import committed_shards

ROWS_PER_FILE = 1000
NUM_LARGE_FILES = 200
NUM_WORKERS = 2
FEW_ROWS = 20
ROUNDS, MAX_ROWS_REPEATED = 3, 100_000
SAMPLE_EVERY_S = 0.05
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
JOB = (
    "-m",
    "ldm_batch.run",
    "conf=machinery",
    "source.uri=in",
    "sink.uri=out",
    f"rows_per_shard={ROWS_PER_FILE}",
    f"cluster.num_workers={NUM_WORKERS}",
)
PHASES = {
    "plan (dry run)": (*JOB, "dry_run=true"),
    "run": JOB,
    "resume, all is done": JOB,
    "verify": ("-m", "ldm_batch", "verify", "out"),
    "status": ("-m", "ldm_batch", "status", "out"),
}
RAY_DATA = Path(__file__).with_name("ray_data_rows.py")
SIDES = {
    "ldm_batch": JOB,
    "Ray Data": (str(RAY_DATA), "in", "out", f"--workers={NUM_WORKERS}"),
}


@dataclass(frozen=True)
class Cost:
    """What one command took: seconds, and megabytes of peak resident memory."""

    wall_s: float
    work_s: float
    """CPU seconds of the driver, what it waited for, and Ray's workers."""
    ray_s: float
    """CPU seconds of Ray's own processes."""
    driver_mb: float
    worker_mb: float

    @property
    def cpu_s(self) -> float:
        return self.work_s + self.ray_s


class Tree:
    """A process and all below it, sampled: the CPU seconds and the peak memory of each."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.cpu_s: dict[int, float] = {}
        self.workers: set[int] = set()
        self.driver_mb = self.worker_mb = 0.0

    def sample(self) -> None:
        for pid, cpu_s in self._below().items():
            self.cpu_s[pid] = cpu_s
            if pid == self.pid:
                self.driver_mb = max(self.driver_mb, _peak_mb(pid))
            elif is_worker(_read(pid, "cmdline").decode(errors="replace")):
                self.workers.add(pid)
                self.worker_mb = max(self.worker_mb, _peak_mb(pid))

    def work_s(self) -> float:
        return sum(self.cpu_s[pid] for pid in self.workers | {self.pid} if pid in self.cpu_s)

    def _below(self) -> dict[int, float]:
        """CPU seconds of the process and of all below it, by process id."""
        parents, cpu_s = {}, {}
        for name in filter(str.isdigit, os.listdir("/proc")):
            if stat := _read(int(name), "stat"):
                fields = stat.rpartition(b")")[2].split()
                parents[int(name)] = int(fields[1])
                cpu_s[int(name)] = (int(fields[11]) + int(fields[12])) / TICKS_PER_S
        below, frontier = {self.pid}, {self.pid}
        while frontier:
            frontier = {pid for pid, parent in parents.items() if parent in frontier}
            below |= frontier
        return {pid: cpu_s[pid] for pid in below if pid in cpu_s}


def is_worker(command: str) -> bool:
    """Tell whether a process does a job's work, an actor's or a task's, and is none of Ray's."""
    return command.startswith("ray::") and not command.startswith(
        ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
    )


def _peak_mb(pid: int) -> float:
    for line in _read(pid, "status").splitlines():
        if line.startswith(b"VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def measure(folder: Path, arguments: Sequence[str]) -> Cost:
    """Run Python with some arguments in a folder, to its end.

    What `/proc` last said of a process is its CPU time, at most a sample short. A command that
    starts no Ray took what the kernel adds up when a process is waited for, to the microsecond.
    """
    started = time.monotonic()
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, stdout=told, stderr=subprocess.STDOUT
        )
        tree = Tree(process.pid)
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            tree.sample()
            time.sleep(SAMPLE_EVERY_S)
        process.returncode = os.waitstatus_to_exitcode(ended[1])
        if process.returncode:
            told.seek(0)
            sys.exit(f"{' '.join(arguments)} failed:\n{told.read().decode()}")
    wall_s, work_s = time.monotonic() - started, ended[2].ru_utime + ended[2].ru_stime
    ray_s = 0.0
    if tree.workers:
        work_s = tree.work_s()
        ray_s = sum(tree.cpu_s.values()) - work_s
    return Cost(wall_s, work_s, ray_s, tree.driver_mb, tree.worker_mb)


def middle(costs: Sequence[Cost]) -> Cost:
    return Cost(*map(median, zip(*map(astuple, costs), strict=True)))


def write_input(folder: Path, *, num_files: int, rows_per_file: int) -> Path:
    (folder / "in").mkdir(parents=True)
    for number in range(num_files):
        rows = range(number * rows_per_file, (number + 1) * rows_per_file)
        columns = {"id": [f"r{row}" for row in rows], "prompt": [f"photograph {r}" for r in rows]}
        pq.write_table(pa.table(columns), folder / "in" / f"{number:05d}.parquet")
    return folder


def print_phases(all_rows: Sequence[int], num_rounds: int, scratch: Path) -> None:
    """Run all sizes in turns, so that what else the machine does meets them alike."""
    folders = {FEW_ROWS: write_input(scratch / "fixed", num_files=FEW_ROWS, rows_per_file=1)}
    folders |= {num_rows: write_rows(scratch, num_rows) for num_rows in all_rows}
    costs: dict[str, dict[int, list[Cost]]] = {phase: {n: [] for n in folders} for phase in PHASES}
    for number in range(num_rounds):
        for num_rows, folder in folders.items():
            if number == 0 or num_rows <= MAX_ROWS_REPEATED:
                shutil.rmtree(folder / "out", ignore_errors=True)
                for phase, arguments in PHASES.items():
                    costs[phase][num_rows].append(measure(folder, arguments))
                    print(phase, num_rows, costs[phase][num_rows][-1], file=sys.stderr, flush=True)
    print_header("phase")
    for phase, by_rows in costs.items():
        fixed = middle(by_rows[FEW_ROWS])
        print(line_of(phase, FEW_ROWS, fixed))
        for num_rows in all_rows:
            print(line_of(phase, num_rows, middle(by_rows[num_rows]), fixed.work_s))


def write_rows(scratch: Path, num_rows: int) -> Path:
    num_files = num_rows // ROWS_PER_FILE
    return write_input(scratch / str(num_rows), num_files=num_files, rows_per_file=ROWS_PER_FILE)


def print_header(first: str) -> None:
    print(
        f"| {first} | rows | wall s | CPU s: driver, workers | Ray's own | CPU µs per row: all "
        "| without the fixed cost | driver MB | largest worker MB |\n| ---" + " | ---:" * 8 + " |"
    )


def line_of(name: str, num_rows: int, cost: Cost, fixed_s: float | None = None) -> str:
    gross = net = ""
    if fixed_s is not None:
        gross = f"{cost.cpu_s / num_rows * 1e6:,.1f}"
        net = f"{(cost.work_s - fixed_s) / num_rows * 1e6:,.1f}"
    ray_s = f"{cost.ray_s:.1f}" if cost.ray_s else ""
    worker_mb = f"{cost.worker_mb:.0f}" if cost.worker_mb else ""
    return (
        f"| {name} | {num_rows:,} | {cost.wall_s:.1f} | {cost.work_s:.2f} | {ray_s} "
        f"| {gross} | {net} | {cost.driver_mb:.0f} | {worker_mb} |"
    )


def run_sides(folder: Path, num_rounds: int) -> dict[str, Cost]:
    """Run both sides in turns, and see that each made every row."""
    num_rows = sum(pq.read_metadata(path).num_rows for path in (folder / "in").iterdir())
    costs: dict[str, list[Cost]] = {side: [] for side in SIDES}
    for _ in range(num_rounds):
        for side, arguments in SIDES.items():
            shutil.rmtree(folder / "out", ignore_errors=True)
            costs[side].append(measure(folder, arguments))
            print(side, num_rows, costs[side][-1], file=sys.stderr, flush=True)
            made = [*(folder / "out").glob("*.parquet"), *(folder / "out/data").glob("*.parquet")]
            num_made = sum(pq.read_metadata(path).num_rows for path in made)
            assert num_made == num_rows, f"{side} made {num_made} of {num_rows} rows"
    return {side: middle(taken) for side, taken in costs.items()}


def print_sides(num_rows: int, num_rounds: int, scratch: Path) -> None:
    small = write_input(scratch / "fixed", num_files=FEW_ROWS, rows_per_file=1)
    fixed = run_sides(small, num_rounds)
    costs = run_sides(write_rows(scratch, num_rows), num_rounds)
    print_header("side")
    for side, cost in costs.items():
        print(line_of(side, FEW_ROWS, fixed[side]))
        print(line_of(side, num_rows, cost, fixed[side].work_s))
    ours, theirs = costs.values()
    print(
        f"\nRay Data to ldm_batch: wall {theirs.wall_s / ours.wall_s:.2f}, "
        f"all CPU {theirs.cpu_s / ours.cpu_s:.2f}, "
        f"driver memory {theirs.driver_mb / ours.driver_mb:.2f}, "
        f"memory of the largest worker {theirs.worker_mb / ours.worker_mb:.2f}",
        flush=True,
    )


class Idle:
    """A worker that makes nothing and says that it did."""

    def environment(self) -> dict[str, str]:
        return versions()

    def make_shard(self, shard: Shard, _terms: object) -> Receipt:
        return make_receipt(shard.index, shard.num_rows)


def make_receipt(index: int, num_rows: int) -> Receipt:
    laps = {"read_s": 1.0, "wait_s": 1.0, "generate_s": 100.0, "write_s": 1.0}
    pipeline = {f"setting_{number}": "of a pipeline" for number in range(20)}
    return Receipt(
        index,
        Outcome.COMMITTED,
        num_rows,
        num_rows,
        num_rows,
        {},
        10**8,
        "0" * 64,
        laps=laps,
        pipeline=pipeline,
    )


def store_shards(num_shards: int) -> None:
    """Store a plan of so many shards of 1,000 rows in 200 files."""
    num_rows = num_shards // NUM_LARGE_FILES * ROWS_PER_FILE
    shards: list[Shard] = []
    for number in range(NUM_LARGE_FILES):
        name = f"part-{number:05d}.parquet"
        file = InputFile(name, f"/prompts/{name}", 10**8, "1764099999.123456", num_rows, "0" * 64)
        shards += cut_file(file, [num_rows], ROWS_PER_FILE)
    shards = [dataclasses.replace(shard, index=index) for index, shard in enumerate(shards)]
    images = {"seed": 0, "num_images_per_prompt": 1, "batch_size": 1}
    document = plan_document(
        images, NEWEST_FORM, columns=[], models={}, config={}, environment={"command": ""}
    )
    assert save_plan(Store("out"), Plan(document, tuple(shards), 0, new_shards=tuple(shards)))


def select_all(num_shards: int) -> None:
    """Load the plan and select what is not done: nothing, or all of it."""
    store = Store("out")
    plan = load_plan(store)
    assert plan is not None
    done = committed_shards(store)
    assert len(select_shards(plan, done, named=[], overwrite=False)) == num_shards - len(done)


def hand_out(num_shards: int) -> None:
    """Hand the planned shards to two Ray workers and count their receipts."""
    plan = load_plan(Store("out"))
    assert plan is not None
    tally = Tally()
    for event in run_on_ray(Idle, plan.shards, ClusterConfig(num_workers=NUM_WORKERS)):
        if isinstance(event, Receipt):
            tally.add(event)
    assert tally.num_shards == num_shards


STEPS = {"store": store_shards, "select": select_all, "hand out": hand_out}


def print_shards(all_shards: Sequence[int], scratch: Path) -> None:
    print("| step | shards | wall s | CPU s | driver MB |\n| --- | ---: | ---: | ---: | ---: |")
    for num_shards in all_shards:
        folder = scratch / str(num_shards)
        folder.mkdir()
        print_step("store the plan", num_shards, folder, step_of("store", num_shards))
        print_step("load, select all", num_shards, folder, step_of("select", num_shards))
        print_step("hand out on Ray", num_shards, folder, step_of("hand out", num_shards))
        pretend_done(folder / "out", num_shards)
        print_step("load, select none", num_shards, folder, step_of("select", num_shards))
        print_step("status", num_shards, folder, PHASES["status"])


def step_of(name: str, num_shards: int) -> Sequence[str]:
    return (__file__, "--step", name, "--shards", str(num_shards))


def print_step(name: str, num_shards: int, folder: Path, arguments: Sequence[str]) -> None:
    cost = measure(folder, arguments)
    numbers = f"{cost.wall_s:.1f} | {cost.cpu_s:.1f} | {cost.driver_mb:.0f}"
    print(f"| {name} | {num_shards:,} | {numbers} |", flush=True)


def pretend_done(sink: Path, num_shards: int) -> None:
    """Put an empty object and a receipt where those of each shard would stand."""
    data, receipts = sink / "data", sink / ".ldm_batch/receipts"
    data.mkdir()
    receipts.mkdir()
    raw = json.dumps(asdict(make_receipt(0, ROWS_PER_FILE)))
    for index in range(num_shards):
        (data / f"{index:05d}.parquet").touch()
        (receipts / f"{index:05d}.json").write_text(raw)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+")
    parser.add_argument("--ray-data", action="store_true")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--shards", type=int, nargs="+")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        STEPS[options.step](options.shards[0])
        return
    with tempfile.TemporaryDirectory() as scratch:
        if options.shards:
            print_shards(options.shards, Path(scratch))
        elif options.ray_data:
            for num_rows in options.rows or [100_000]:
                print_sides(num_rows, options.rounds, Path(scratch))
        else:
            print_phases(options.rows or [10_000, 100_000], options.rounds, Path(scratch))


if __name__ == "__main__":
    main()

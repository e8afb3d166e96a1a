"""What shard size, attempts and copies waste least: a job simulated on up to 1,000 accelerators.

    python tests/bench/simulate_cluster.py            # Markdown, about ten minutes on two cores
    python tests/bench/simulate_cluster.py --quick    # smaller jobs, seconds
    python tests/bench/simulate_cluster.py --measure  # the costs below, on this machine

The policy that is simulated is the real one, `ldm_batch.cluster.schedule`; see
`cluster_simulation.py`.
Waste is the share of the accelerator-seconds between the start of a job and its end that made no
image that was kept; all accelerators are held until the end. Medians over seeds, save of the
largest job, which is played once.

Costs measured by `--measure` on two shared cores (an in-process `conf=machinery` job of 256 px at
16, 64, 250 and 1,000 rows per shard, medians of the receipts' laps; then Ray jobs of one-row
shards): reading 0.01 s + 5e-5 s per row; Parquet object, fsync and receipt 0.05 s + 3e-3 s per
image of 197 kB, half of that for the 96 KiB of a real one; 1.15 ms of the driver per shard; the
demo model in 26 to 63 s, libraries included.

Assumed: an object store adds 0.1 s per request (two to read, two to write) and takes 80 MB/s; a
model of 1.45 B parameters is ready in 90 s; 0.05 s per image (256 px, 50 DDIM steps with guidance
in half precision on an H100 or A100 lie between 0.08 and 0.25 s, 20 steps of DPM-Solver++ between
0.035 and 0.1 s), so 0.01 to 1 s are tried; machines as in `cluster_simulation.Weather`: 2 % of
nodes at half speed, nodes preempted every 12 h on average, one attempt in 10,000 fails and one in
a million hangs for half an hour, one shard in 100,000 can never be made.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import linear_regression, median
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
from cluster_simulation import Costs, Outcome, Scenario, Weather, simulate

from ldm_batch.cluster import schedule
from ldm_batch.plan.cut import auto_rows_per_shard

SEEDS = 3
MANY_SEEDS = 7
SIZES = (16, 64, 256, 1024, 4096)
MAX_SHARDS = 130_000
"""Of one simulation in the table of sizes; the largest job alone has more."""
ROUGH = Weather(transient=1e-3, poison=1e-4, num_bad_nodes=1)
DRIVER = """
import resource, runpy
try:
    runpy.run_module("ldm_batch.run", run_name="__main__")
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(used.ru_utime + used.ru_stime)
"""
Case = tuple[Scenario, int, float]
"""Scenario, seed, and after how many medians a shard is copied."""


def play(case: Case) -> Outcome:
    scenario, seed, copy_after = case
    with patch.object(schedule, "COPY_AFTER", copy_after):
        return simulate(scenario, seed)


def play_all(
    pool: ProcessPoolExecutor, scenarios: Iterable[Scenario], seeds: int, copy_after: float = 1.5
) -> list[list[Outcome]]:
    """Outcomes of each scenario, one for each seed."""
    cases = [(scenario, seed, copy_after) for scenario in scenarios for seed in range(seeds)]
    outcomes = list(pool.map(play, cases))
    return [outcomes[i : i + seeds] for i in range(0, len(outcomes), seeds)]


def percent(outcomes: Sequence[Outcome], value: Callable[[Outcome], float]) -> str:
    return f"{100 * median(value(outcome) for outcome in outcomes):.1f}"


def share(name: str) -> Callable[[Outcome], float]:
    return lambda outcome: getattr(outcome, name) / outcome.held_s


def print_table(head: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    print(f"| {' | '.join(head)} |\n|{' ---: |' * len(head)}")
    for line in lines:
        print(f"| {' | '.join(map(str, line))} |", flush=True)
    print()


def grid(*, is_quick: bool) -> list[Scenario]:
    """Jobs from a trial to the largest, their shard size still open."""
    jobs = [
        (256, 2, 0.1),
        (256, 8, 0.1),
        (10_000, 2, 0.1),
        (10_000, 8, 0.01),
        (10_000, 8, 1.0),
        (100_000, 64, 0.05),
        (1_000_000, 8, 0.05),
        (1_000_000, 64, 0.05),
        (1_000_000, 1000, 0.01),
        (1_000_000, 1000, 0.05),
        (1_000_000, 1000, 1.0),
        (10_000_000, 1000, 0.01),
        (10_000_000, 1000, 0.05),
        (10_000_000, 1000, 1.0),
        (100_000_000, 1000, 0.05),
    ]
    return [
        Scenario(num_rows, num_workers, 1, costs=Costs(image_s=image_s))
        for num_rows, num_workers, image_s in jobs
        if not is_quick or num_rows < 1_000_000
    ]


def print_sizes(pool: ProcessPoolExecutor, *, is_quick: bool) -> None:
    print("### Waste in % by rows per shard, loading aside; one image per row, batches of 16\n")
    lines, gaps = [], []
    for job in grid(is_quick=is_quick):
        known = auto_rows_per_shard(job.num_rows, job.num_workers, batch_size=job.batch_size)
        unknown = auto_rows_per_shard(job.num_rows, None, batch_size=job.batch_size)
        sizes = [size for size in SIZES if size_fits(job, size)]
        tried = sorted({*sizes, known, unknown})
        scenarios = [replace(job, rows_per_shard=size) for size in tried]
        played = dict(zip(tried, play_all(pool, scenarios, SEEDS), strict=True))
        whole = {size: median(o.waste for o in played[size]) for size in tried}
        gaps.append([100 * (whole[size] - min(whole.values())) for size in (known, unknown)])
        cells = {size: percent(played[size], lambda o: o.waste_loaded) for size in tried}
        lines.append(
            [
                f"{job.num_rows:,}",
                job.num_workers,
                job.costs.image_s,
                percent(played[min(tried)], share("loading_s")),
                *(cells[size] if size in sizes else "" for size in SIZES),
                f"{cells[known]} ({known})",
                f"{cells[unknown]} ({unknown})",
                *(f"{gap:.1f}" for gap in gaps[-1]),
            ]
        )
    heads = ("rows", "workers", "s/image", "loading", *map(str, SIZES))
    autos = ("auto (rows)", "auto, workers unknown (rows)")
    print_table((*heads, *autos, "auto - best, loading counted", "same, unknown"), lines)
    for name, gap in zip(("known", "unknown"), zip(*gaps, strict=True), strict=True):
        print(f"auto, workers {name}: at most {max(gap):.1f} points of waste above the best\n")


def size_fits(job: Scenario, size: int) -> bool:
    return job.num_rows // MAX_SHARDS <= size <= max(job.num_rows, SIZES[0])


def print_parts(pool: ProcessPoolExecutor, *, is_quick: bool) -> None:
    num_rows, num_workers = (1_000_000, 100) if is_quick else (1_000_000_000, 1000)
    print(f"### {num_rows:,} rows on {num_workers:,} accelerators: where the time goes, in %\n")
    sizes = (1000, 1024, 4096, 16384)
    scenarios = [Scenario(num_rows, num_workers, size) for size in sizes]
    names = ("loading", "padding", "fixed", "lost", "failed", "copies", "hung", "idle")
    lines = [
        (
            size,
            f"{median(o.end_s for o in outcomes) / 3600:.2f}",
            percent(outcomes, lambda o: o.waste),
            *(percent(outcomes, share(f"{name}_s")) for name in names),
        )
        for size, outcomes in zip(sizes, play_all(pool, scenarios, 1), strict=True)
    ]
    print_table(("rows per shard", "hours", "waste", *names), lines)


def print_attempts(pool: ProcessPoolExecutor, *, is_quick: bool) -> None:
    num_rows, num_workers = (100_000, 64) if is_quick else (10_000_000, 1000)
    print(
        f"### Attempts: {num_rows:,} rows on {num_workers:,} accelerators, 256 per shard; in rough "
        "weather ten times the failures, and a node on which nothing works\n"
    )
    lines = []
    for name, weather in (("usual", Weather()), ("rough", ROUGH)):
        tries = (1, 2, 3, 5)
        base = Scenario(num_rows, num_workers, 256, weather=weather)
        scenarios = [replace(base, max_attempts=tried) for tried in tries]
        for tried, outcomes in zip(tries, play_all(pool, scenarios, SEEDS), strict=True):
            lost = median(outcome.num_failed_good for outcome in outcomes)
            never = median(len(o.failed) - o.num_failed_good for o in outcomes)
            end = median(o.end_s for o in outcomes)
            waste = percent(outcomes, lambda o: o.waste_loaded)
            failed = f"{100 * median(o.failed_s / o.held_s for o in outcomes):.2f}"
            lines.append((name, tried, waste, failed, f"{end:.0f}", lost, never))
    head = ("weather", "max_attempts", "waste, loading aside", "in failed attempts", "end, s")
    print_table((*head, "left, though possible", "left, impossible"), lines)


def print_copies(pool: ProcessPoolExecutor, *, is_quick: bool) -> None:
    num_rows, num_workers = (20_000, 16) if is_quick else (1_000_000, 256)
    print(
        f"### Copies of stragglers: {num_rows:,} rows on {num_workers} accelerators, 192 per "
        "shard, 0.25 s per image\n"
    )
    lines = []
    base = Scenario(num_rows, num_workers, 192, costs=Costs(image_s=0.25))
    for name, weather in (
        ("usual", Weather()),
        ("uneven (sigma 0.3)", Weather(noise=0.3)),
        ("1 attempt in 5,000 hangs", Weather(hung=2e-4)),
    ):
        for copy_after in (None, 1.0, 1.5, 2.0, 3.0):
            scenario = replace(base, weather=weather, copy_stragglers=copy_after is not None)
            [outcomes] = play_all(pool, [scenario], MANY_SEEDS, copy_after or 1.5)
            ends = [outcome.end_s for outcome in outcomes]
            shares = [percent(outcomes, share(f"{part}_s")) for part in ("idle", "copies")]
            waste = percent(outcomes, lambda o: o.waste_loaded)
            lines.append(
                (
                    name,
                    copy_after or "off",
                    waste,
                    *shares,
                    f"{median(ends):.0f}",
                    f"{max(ends):.0f}",
                )
            )
    head = ("weather", "copied after x medians", "waste, loading aside", "idle", "copies")
    print_table((*head, "end, s", "latest end, s"), lines)


def measure() -> None:
    """Run small jobs here and print what a shard and an image of it cost."""
    laps: dict[str, list[tuple[int, float]]] = {"read_s": [], "write_s": []}
    for rows, num_shards in ((16, 30), (64, 30), (250, 20), (1000, 8)):
        with tempfile.TemporaryDirectory() as folder:
            size = ("call.height=256", "call.width=256", "cluster.executor=in_process")
            run_machinery(Path(folder), rows * num_shards, f"rows_per_shard={rows}", *size)
            receipts = sorted(Path(folder, "out/.ldm_batch/receipts").glob("*.json"))[1:]
            found = [json.loads(path.read_text())["laps"] for path in receipts]
        for name, points in laps.items():
            points.append((rows, median(lap[name] for lap in found)))
    for name, points in laps.items():
        slope, fixed = linear_regression(*zip(*points, strict=True))
        print(f"{name}: {points}; {max(fixed, 0):.3f} s + {slope:.1e} s per row")
    spent = []
    for num_rows in (100, 3100):
        with tempfile.TemporaryDirectory() as folder:
            one_row = ("rows_per_shard=1", "cluster.num_workers=2")
            spent.append(run_machinery(Path(folder), num_rows, *one_row))
    print(f"driver: {(spent[1] - spent[0]) / 3000 * 1e3:.2f} ms CPU per shard")


def run_machinery(folder: Path, num_rows: int, *overrides: str) -> float:
    """Run a job of random pixels, and return the CPU seconds of its driver."""
    (folder / "in").mkdir()
    prompts = pa.table({"prompt": [f"photograph {row}" for row in range(num_rows)]})
    pq.write_table(prompts, folder / "in/rows.parquet", row_group_size=1000)
    job = ("conf=machinery", f"source.uri={folder}/in", f"sink.uri={folder}/out", *overrides)
    command = [sys.executable, "-c", DRIVER, *job]
    ended = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(ended.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller jobs")
    parser.add_argument("--measure", action="store_true", help="measure the costs instead")
    arguments = parser.parse_args()
    if arguments.measure:
        measure()
        return
    with ProcessPoolExecutor() as pool:
        for print_one in (print_sizes, print_attempts, print_copies, print_parts):
            print_one(pool, is_quick=arguments.quick)


if __name__ == "__main__":
    main()

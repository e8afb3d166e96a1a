"""Memory of driver and workers while a job of many rows runs on a local Ray.

    python tests/bench/memory.py [--rows 100000] [--workers 2]

Random 8x8 pixels stand in for a model, so that what is measured is everything around one. Prints
resident memory (MB) of the driver and of the largest worker at every tenth of the rows.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))
from commands import start, worker_pids

NUM_FILES, ROWS_PER_SHARD = 10, 1000


def write_input(folder: Path, num_rows: int) -> None:
    (folder / "in").mkdir()
    rows_per_file = num_rows // NUM_FILES
    for number in range(NUM_FILES):
        prompts = [f"a photograph number {row} of file {number}" for row in range(rows_per_file)]
        pq.write_table(pa.table({"prompt": prompts}), folder / "in" / f"{number:03d}.parquet")


def resident_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


def watch(driver: subprocess.Popen[str], data: Path, num_shards: int) -> None:
    next_tenth, started = 0, time.monotonic()
    while driver.poll() is None:
        done = len(list(data.glob("*"))) if data.is_dir() else 0
        if done * 10 >= next_tenth * num_shards and done:
            worker_mb = max((resident_mb(pid) for pid in worker_pids(driver)), default=0.0)
            elapsed_s, driver_mb = time.monotonic() - started, resident_mb(driver.pid)
            print(
                f"{done * ROWS_PER_SHARD:9,} rows  {elapsed_s:6.1f} s  "
                f"driver {driver_mb:6.1f} MB  largest worker {worker_mb:6.1f} MB",
                flush=True,
            )
            next_tenth = done * 10 // num_shards + 1
        time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_input(folder, options.rows)
        job = (
            "conf=machinery",
            "source.uri=in",
            "sink.uri=out",
            f"rows_per_shard={ROWS_PER_SHARD}",
        )
        started = time.monotonic()
        driver = start(folder, *job, f"cluster.num_workers={options.workers}")
        watch(driver, folder / "out" / "data", options.rows // ROWS_PER_SHARD)
        out, err = driver.communicate()
        print(
            out, err, f"{options.rows / (time.monotonic() - started):.0f} rows/s, start-up included"
        )
        sys.exit(driver.returncode)


if __name__ == "__main__":
    main()

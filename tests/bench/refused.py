"""How long a refused command keeps somebody waiting: CPU and wall time to its message.

    python tests/bench/refused.py [--rounds 5]

Each command is a process of its own, in a folder with a small table of prompts; beside them a
Python that does nothing. Prints the median and the largest of the rounds, in seconds, and which of
torch, diffusers and ray it imported.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

JOB = ("run", "source.uri=in", "sink.uri=out")
COMMANDS = (
    ("stats", "out"),
    ("run", "--batch-size", "4"),
    (*JOB, "conf=machinery", "batch_size=four"),
    (*JOB, "conf=machinery", "max_object_bytes=100GB"),
    (*JOB, "conf=machinery", "source.columns.prompt=captoin"),
    (*JOB, "conf=machinery", "sink.uri=in/a.parquet"),
    (*JOB, "model=local", "model.path=nowhere"),
    (*JOB, "model=demo", "scheduler.name=nosuch"),
    ("status", "nowhere"),
    ("verify", "nowhere"),
    ("sheet", "nowhere"),
    ("sweep", "nowhere"),
    ("tradeoff", "in", "--steps", "0"),
    ("import", "nowhere.ckpt", "out"),
    ("init", "in"),
)
LARGE = ("torch", "diffusers", "ray")
EXIT_USAGE = 2
CODE = (
    "import atexit, sys\n"
    f"atexit.register(lambda: print(*[n for n in {LARGE!r} if n in sys.modules]))\n"
    "from ldm_batch.__main__ import main\n"
    "main()"
)


def measure(folder: Path, *arguments: str, code: int) -> tuple[float, float, str]:
    """CPU and wall seconds of one process, and the last line that it printed."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    ended = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - began
    if ended.returncode != code:
        raise SystemExit(f"{arguments}: exit {ended.returncode}\n{ended.stderr}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, wall, (ended.stdout.splitlines() or [""])[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    print(f"{'':64}{'CPU':>8}{'most':>8}{'wall':>8}{'most':>8}  imported")
    with tempfile.TemporaryDirectory() as above:
        folder = Path(above)
        (folder / "in").mkdir()
        pq.write_table(pa.table({"prompt": ["a", "b"]}), folder / "in" / "a.parquet")
        for name, arguments, code in [
            ("python -c pass", ("-c", "pass"), 0),
            *((" ".join(words), ("-c", CODE, *words), EXIT_USAGE) for words in COMMANDS),
        ]:
            seen = [measure(folder, *arguments, code=code) for _ in range(rounds)]
            cpu, wall, imported = zip(*seen, strict=True)
            told = (statistics.median(cpu), max(cpu), statistics.median(wall), max(wall))
            numbers = "".join(f"{seconds:8.3f}" for seconds in told)
            print(f"{name:64}{numbers}  {imported[-1]}")


if __name__ == "__main__":
    main()

"""How long a press of TAB waits: CPU and wall time of the answer that completes a command line.

    python tests/bench/completion.py [--rounds 15]

Each line is answered by a process of its own, as a shell asks for it; beside them a Python that
does nothing. Prints the median and the largest of the rounds, in seconds.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time

LINES = (
    "ldm-batch sta",
    "ldm-batch run conf=txt2",
    "ldm-batch run upscale.model.",
    "ldm-batch run source.uri=",
)
ANSWER = ("-m", "ldm_batch", "completion", "answer", "bash")


def measure(*arguments: str) -> tuple[float, float]:
    """CPU and wall seconds of one process."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    print(f"{'':34}{'CPU':>8}{'most':>8}{'wall':>8}{'most':>8}")
    for name, arguments in [
        ("python -c pass", ("-c", "pass")),
        *((line, (*ANSWER, line, " =:")) for line in LINES),
    ]:
        cpu, wall = zip(*(measure(*arguments) for _ in range(rounds)), strict=True)
        told = (statistics.median(cpu), max(cpu), statistics.median(wall), max(wall))
        print(f"{name:34}" + "".join(f"{seconds:8.3f}" for seconds in told))


if __name__ == "__main__":
    main()

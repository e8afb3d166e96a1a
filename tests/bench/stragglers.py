"""What copies of stragglers save at the end of a job: real Ray workers, one of them slow.

    python tests/bench/stragglers.py [--rounds 3] [--slowness 10]

Four workers on a local Ray share 41 shards of half a second each; the one that loads first is ten
times as slow. Both sides are run in turn; prints seconds per job, loading left out, as medians.
"""

import argparse
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import ray

from ldm_batch.versions import versions

sys.path.insert(0, str(Path(__file__).parent))

from ldm_batch.cluster import run_on_ray
from ldm_batch.config.cluster import ClusterConfig
from ldm_batch.records import InputFile, Outcome, Receipt, Shard

NUM_WORKERS, NUM_SHARDS, SHARD_S = 4, 41, 0.5
FILE = InputFile("p.parquet", "/p.parquet", 1, "1", 10 * NUM_SHARDS, "00")
SHARDS = [Shard(index, FILE, 10 * index, 10) for index in range(NUM_SHARDS)]


class Sleeper:
    """A worker that takes its time; the first to claim a file in `folder` is the slow one."""

    def __init__(self, folder: Path, slowness: float) -> None:
        self._folder = folder
        try:
            (folder / "slow").touch(exist_ok=False)
            self._shard_s = SHARD_S * slowness
        except FileExistsError:
            self._shard_s = SHARD_S
        (folder / f"loaded-{time.monotonic_ns()}").touch()
        while len(list(folder.glob("loaded-*"))) < NUM_WORKERS:
            time.sleep(0.01)

    def environment(self) -> dict[str, str]:
        return versions()

    def make_shard(self, shard: Shard, _terms: object) -> Receipt:
        time.sleep(self._shard_s)
        return Receipt(shard.index, Outcome.COMMITTED, 10, 10, 10, {}, 100, "00")


def load(folder: Path, slowness: float) -> Sleeper:
    return Sleeper(folder, slowness)


def run_s(slowness: float, *, copies: bool) -> float:
    """Seconds from when all workers have loaded to the last receipt."""
    cluster = ClusterConfig(num_workers=NUM_WORKERS, shards_in_flight=1, copy_stragglers=copies)
    with tempfile.TemporaryDirectory() as name:
        events = list(run_on_ray(partial(load, Path(name), slowness), SHARDS, cluster))
        ended = time.monotonic_ns()
        loaded = max(int(path.name.split("-")[1]) for path in Path(name).glob("loaded-*"))
    made = sorted(event.shard for event in events if isinstance(event, Receipt))
    assert made == list(range(NUM_SHARDS)), events
    return (ended - loaded) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slowness", type=float, default=10)
    options = parser.parse_args()
    environment = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}
    ray.init(
        address="local",
        num_cpus=NUM_WORKERS,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env=environment,
    )
    import stragglers  # under its own name, so that workers can import it

    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(options.rounds):
        for copies in (False, True):
            seconds[copies].append(stragglers.run_s(options.slowness, copies=copies))
            print(f"copies {'on' if copies else 'off'}: {seconds[copies][-1]:.2f} s", flush=True)
    off, on = (statistics.median(seconds[copies]) for copies in (False, True))
    fast_s = NUM_SHARDS * SHARD_S / (NUM_WORKERS - 1 + 1 / options.slowness)
    print(f"median: off {off:.2f} s, on {on:.2f} s ({on / off:.2f}x); at best {fast_s:.2f} s")
    ray.shutdown()


if __name__ == "__main__":
    main()

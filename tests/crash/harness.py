"""Kill drivers and the S3 server, again and again, and look at what is left after every kill.

After a kill every object that can be seen must be whole and right; when a driver has ended by
itself the dataset must be, byte for byte, what an uninterrupted run makes.
"""

import hashlib
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from crash.clouds import Azure, Google
from crash.drivers import POINTS, fork_driver, wait_for
from crash.on_ray import VICTIMS, run_and_kill
from crash.weed import LASTING, Weed
from ldm_batch.commands.verify.verification import verify
from ldm_batch.config import (
    ClusterConfig,
    JobConfig,
    ModelConfig,
    SinkConfig,
    SourceConfig,
)
from ldm_batch.storage import Store, open_sink

NUM_FILES, ROWS_PER_FILE, ROWS_PER_SHARD = 2, 240, 40
NUM_SHARDS = NUM_FILES * ROWS_PER_FILE // ROWS_PER_SHARD
LONGEST_RUN_S = 1.5
KILLS_PER_DATASET = 12
KINDS = ("point", "point", "point", "random", "random", "two drivers", "server")
Server = Weed | Google | Azure


@dataclass
class Kills:
    """What was killed so far, and what came of it."""

    by_kind: Counter[str] = field(default_factory=Counter)
    num_datasets: int = 0

    @property
    def total(self) -> int:
        return sum(self.by_kind.values())


class Crashes:
    """Datasets that are made under kills, one after the other, on one server."""

    def __init__(self, folder: Path, server: Server, seed: int) -> None:
        os.environ.pop("AWS_SESSION_TOKEN", None)
        os.environ.update(LASTING)
        self.kills, self._dice, self._seed = Kills(), random.Random(seed), seed
        self.server = server
        self.server.wait_ready()
        self._write_input(folder / "in")
        job = _job(folder, SinkConfig(uri=str(folder / "undisturbed")))
        assert wait_for(fork_driver(job)) == 0
        data = folder / "undisturbed/data"
        self.expected = {path.name: _digest(path.read_bytes()) for path in data.iterdir()}
        assert len(self.expected) == NUM_SHARDS
        self._folder = folder

    def make_dataset(self, max_kills: int) -> None:
        """Make one dataset, killing until it is complete or `max_kills` have been."""
        number, first = self.kills.num_datasets, self.kills.total
        job = _job(self._folder, self.server.sink(f"{self._seed}-{number}"))
        store = open_sink(job.sink)
        num_done, is_complete = 0, False
        while self.kills.total - first < max_kills and not is_complete:
            is_complete = self._kill_one(job)
            seen = self._check_objects(store)
            assert seen >= num_done, "a committed object has vanished"
            num_done = seen
        self._complete(job, store)

    def _kill_one(self, job: JobConfig) -> bool:
        """Start a driver and kill; whether the dataset is complete nevertheless."""
        kind = self._dice.choice(KINDS if self.server.is_lasting else KINDS[:-1])
        ways: dict[str, Callable[[JobConfig], list[int]]] = {
            "point": self._at_a_point,
            "random": self._at_random,
            "two drivers": self._one_of_two,
            "server": self._the_server,
        }
        codes = ways[kind](job)
        assert set(codes) <= {0, -signal.SIGKILL}, (kind, codes)
        return 0 in codes

    def _at_a_point(self, job: JobConfig) -> list[int]:
        point = self._dice.choice(sorted(POINTS))
        code = wait_for(fork_driver(job, point, self._dice.randrange(1, 5)))
        self.kills.by_kind[point] += code == -signal.SIGKILL
        return [code]

    def _at_random(self, job: JobConfig) -> list[int]:
        pid = fork_driver(job)
        time.sleep(self._dice.uniform(0, LONGEST_RUN_S))
        os.kill(pid, signal.SIGKILL)
        code = wait_for(pid)
        self.kills.by_kind["driver, at random"] += code == -signal.SIGKILL
        return [code]

    def _one_of_two(self, job: JobConfig) -> list[int]:
        victim, other = fork_driver(job), fork_driver(job)
        time.sleep(self._dice.uniform(0, LONGEST_RUN_S))
        os.kill(victim, signal.SIGKILL)
        codes = [wait_for(victim), wait_for(other)]
        self.kills.by_kind["one of two drivers"] += codes[0] == -signal.SIGKILL
        return codes

    def _the_server(self, job: JobConfig) -> list[int]:
        pid = fork_driver(job)
        time.sleep(self._dice.uniform(0, LONGEST_RUN_S))
        self.server.kill()
        self.kills.by_kind["S3 server"] += 1
        time.sleep(self._dice.uniform(0, 1))
        self.server.start()
        self.server.wait_ready()
        return [wait_for(pid)]

    def make_dataset_on_ray(self, victim: str) -> None:
        """Make one dataset by the real command on Ray, in which one process is killed."""
        job = _job(self._folder, self.server.sink(f"{self._seed}-ray-{self.kills.num_datasets}"))
        store = open_sink(job.sink)
        code = run_and_kill(self._folder, job, victim, self._dice)
        self.kills.by_kind[f"Ray: {victim}"] += code is not None
        self._check_objects(store)
        assert victim != "worker" or code in (None, 0), "a killed worker is replaced"
        self._complete(job, store)

    def _complete(self, job: JobConfig, store: Store) -> None:
        """Resume without a disturbance, and compare what is there then."""
        codes = [wait_for(fork_driver(job))]
        assert codes == [0], codes
        assert self._check_objects(store) == NUM_SHARDS
        found = verify(store)
        assert (found.exit_code, found.problems) == (0, []), found
        assert len(store.names(".ldm_batch/receipts")) == NUM_SHARDS
        self.kills.num_datasets += 1

    def _check_objects(self, store: Store) -> int:
        """Check that all that can be seen is whole and right; how many objects that is."""
        names = store.names("data")
        assert names <= self.expected.keys(), names - self.expected.keys()
        for name in names:
            assert _digest(store.read(f"data/{name}") or b"") == self.expected[name], name
        return len(names)

    @staticmethod
    def _write_input(folder: Path) -> None:
        folder.mkdir()
        for number in range(NUM_FILES):
            prompts = [f"file {number} row {row}" for row in range(ROWS_PER_FILE)]
            prompts[5] = ""
            pq.write_table(pa.table({"prompt": prompts}), folder / f"{number}.parquet")


def _job(folder: Path, sink: SinkConfig) -> JobConfig:
    return JobConfig(
        model=ModelConfig(engine="random_pixels"),
        source=SourceConfig(uri=str(folder / "in")),
        sink=sink,
        cluster=ClusterConfig(executor="in_process"),
        rows_per_shard=ROWS_PER_SHARD,
    )


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def run_crashes(num_kills: int, *, seed: int, num_on_ray: int = 0, store: str = "s3") -> Kills:
    """Kill so often, and so often within real commands on Ray; what was killed."""
    assert threading.active_count() == 1, "drivers are forked"
    with tempfile.TemporaryDirectory(prefix="ldm_batch-crash-") as name:
        server: Server = {"gs": Google, "az": Azure}.get(store, lambda: Weed(Path(name, "weed")))()
        server.start()
        try:
            crashes = Crashes(Path(name), server, seed)
            while crashes.kills.total < num_kills:
                left = num_kills - crashes.kills.total
                crashes.make_dataset(min(left, KILLS_PER_DATASET))
            for number in range(num_on_ray):
                crashes.make_dataset_on_ray(list(VICTIMS)[number % len(VICTIMS)])
        finally:
            server.kill()
    return crashes.kills

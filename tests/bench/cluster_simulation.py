"""Discrete events of a job on a large cluster, driven through the real scheduling policy.

A simulated worker is what the real one is: one shard at a time generates on the device, the rows
of the next are read meanwhile, and the one before is committed. Nothing here generates an image,
reads a clock or draws from a global generator: the same scenario and seed are the same outcome.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

from ldm_batch.cluster.attempts import Trouble
from ldm_batch.cluster.nodes import NodeRecords
from ldm_batch.cluster.schedule import Ending, Schedule
from ldm_batch.config.cluster import ClusterConfig
from ldm_batch.records import Failure, InputFile, Shard

HOUR_S = 3600.0
POLL_S = 1.0
"""How often the schedule is asked when nothing happens."""
NODE_WORKERS = 8
MASK = 2**64 - 1
NORMAL = NormalDist()


@dataclass(frozen=True)
class Costs:
    """Seconds of the parts of a job; where they come from stands in `simulate_cluster.py`."""

    image_s: float = 0.05
    """Device, per image of a batch, padding included."""
    read_s: float = 0.2
    read_row_s: float = 5e-5
    write_s: float = 0.25
    """Parquet, object, receipt and the way of both to the store, per shard."""
    write_image_s: float = 2.7e-3
    load_s: float = 90.0
    """A worker's start: process, libraries, weights."""
    driver_s: float = 1.15e-3
    """The driver's own time per finished shard; it does one at a time."""


@dataclass(frozen=True)
class Weather:
    """What goes wrong, how often; the default is a cluster of spot machines."""

    slow_nodes: float = 0.02
    """Share of nodes that run at half speed."""
    noise: float = 0.05
    """Sigma of the lognormal factor on a shard's device time."""
    hung: float = 1e-6
    """Share of attempts that stand still for `hang_s`."""
    hang_s: float = 1800.0
    node_life_s: float = 12 * HOUR_S
    """Mean life of a node until it is preempted."""
    warned: float = 0.5
    """Share of preemptions announced `grace_s` before."""
    grace_s: float = 30.0
    replace_s: float = 300.0
    """From the loss of a node to another in its place."""
    crash_s: float = 1000 * HOUR_S
    """Mean life of a worker until it crashes by itself."""
    transient: float = 1e-4
    """Share of attempts that fail when they commit (a store that is away for long)."""
    poison: float = 1e-5
    """Share of shards that fail at every attempt; every other one of them kills its worker."""
    num_bad_nodes: int = 0
    """Nodes on which every attempt fails as soon as it starts."""


CALM = Weather(0, 0, 0, node_life_s=math.inf, crash_s=math.inf, transient=0, poison=0)


@dataclass(frozen=True)
class Scenario:
    """One job."""

    num_rows: int
    num_workers: int
    rows_per_shard: int
    batch_size: int = 16
    num_images_per_prompt: int = 1
    costs: Costs = field(default_factory=Costs)
    weather: Weather = field(default_factory=Weather)
    max_attempts: int = 3
    copy_stragglers: bool = True


@dataclass
class Outcome:
    """What became of the shards, and of the accelerator-seconds that the job held."""

    end_s: float = 0.0
    held_s: float = 0.0
    useful_s: float = 0.0
    """Device time of the images that were kept."""
    loading_s: float = 0.0
    padding_s: float = 0.0
    fixed_s: float = 0.0
    """The device waits for the rows of its next shard or the commit of its last."""
    lost_s: float = 0.0
    """Device time of shards that went down with a worker or node."""
    failed_s: float = 0.0
    copies_s: float = 0.0
    """Device time of the second of two copies."""
    hung_s: float = 0.0
    num_done: int = 0
    failed: list[int] = field(default_factory=list)
    num_failed_good: int = 0
    """Failed shards that another attempt would have made."""
    num_losses: Counter[str] = field(default_factory=Counter)

    @property
    def idle_s(self) -> float:
        """Accelerators without a shard: almost all of it at the end."""
        used = self.useful_s + self.loading_s + self.padding_s + self.fixed_s
        return self.held_s - used - self.lost_s - self.failed_s - self.copies_s - self.hung_s

    @property
    def waste(self) -> float:
        """Share of the accelerator-seconds that made no image."""
        return 1 - self.useful_s / self.held_s

    @property
    def waste_loaded(self) -> float:
        """The same without the time in which workers load, which no shard size changes."""
        return 1 - self.useful_s / (self.held_s - self.loading_s)


@dataclass(frozen=True)
class Shards(Sequence[Shard]):
    """The shards of one long table, made when they are asked for."""

    num_rows: int
    rows_per_shard: int
    file: InputFile

    def __len__(self) -> int:
        return -(-self.num_rows // self.rows_per_shard)

    def __getitem__(self, index: Any) -> Any:
        if index >= len(self):
            raise IndexError(index)
        start = index * self.rows_per_shard
        return Shard(index, self.file, start, min(self.rows_per_shard, self.num_rows - start))


@dataclass(slots=True)
class _Node:
    name: str
    slowness: float
    is_bad: bool
    workers: list[int]
    is_open: bool = True
    """New workers may start there."""


@dataclass(slots=True)
class _Run:
    starts_at: float
    """When the device turns to it."""
    device_s: float
    padding_s: float
    hung_s: float
    ends_at: float
    """When the driver could hear of it."""
    trouble: str = ""

    def spent(self, now: float) -> float:
        """Device seconds until now."""
        return min(max(now - self.starts_at, 0.0), self.device_s + self.hung_s)


@dataclass(slots=True)
class _Worker:
    node: _Node
    held_since: float
    free_at: float = 0.0
    """When the device has made all that was handed to it."""
    idle_since: float = 0.0
    """When the last shard was committed."""
    is_ready: bool = False
    runs: dict[int, _Run] = field(default_factory=dict)


def simulate(scenario: Scenario, seed: int) -> Outcome:
    """Play one job from its start to its last shard."""
    return _Simulation(scenario, seed).play()


class _Simulation:
    def __init__(self, scenario: Scenario, seed: int) -> None:
        self._job, self._costs, self._weather = scenario, scenario.costs, scenario.weather
        self._seed, self._random = seed, random.Random(seed)
        file = InputFile("rows.parquet", "rows.parquet", 0, "", scenario.num_rows, "")
        self._schedule = Schedule(
            Shards(scenario.num_rows, scenario.rows_per_shard, file),
            ClusterConfig(
                max_attempts=scenario.max_attempts, copy_stragglers=scenario.copy_stragglers
            ),
        )
        self._records = NodeRecords()
        self._out = Outcome()
        self._events: list[tuple[float, int, Any, tuple[Any, ...]]] = []
        self._num_events = self._num_nodes = self._num_workers = 0
        self._workers: dict[int, _Worker] = {}
        self._nodes: dict[str, _Node] = {}
        self._restarts: Counter[int] = Counter()
        self._driver_free_at = 0.0

    def play(self) -> Outcome:
        for first in range(0, self._job.num_workers, NODE_WORKERS):
            self._join(0.0, min(NODE_WORKERS, self._job.num_workers - first))
        self._at(POLL_S, self._tick)
        now = 0.0
        while self._schedule.num_unfinished:
            time, _, happen, arguments = heapq.heappop(self._events)
            now = max(time, now)
            happen(now, *arguments)
        for number in list(self._workers):
            self._take_away(now, number, "copies_s")
        self._out.end_s = now
        return self._out

    def _at(self, time: float, happen: Any, *arguments: Any) -> None:
        self._num_events += 1
        heapq.heappush(self._events, (time, self._num_events, happen, arguments))

    # Nodes and workers come and go

    def _join(self, now: float, num_workers: int) -> None:
        number = self._num_nodes = self._num_nodes + 1
        is_slow = self._random.random() < self._weather.slow_nodes
        is_bad = number <= self._weather.num_bad_nodes
        node = _Node(f"node-{number}", 2.0 if is_slow else 1.0, is_bad, [])
        self._nodes[node.name] = node
        for _ in range(num_workers):
            self._start_worker(now, node)
        if self._weather.node_life_s < math.inf:
            ends_at = now + self._random.expovariate(1 / self._weather.node_life_s)
            is_warned = self._random.random() < self._weather.warned
            self._at(ends_at, self._drain if is_warned else self._leave, node)

    def _start_worker(self, now: float, node: _Node) -> None:
        number = self._num_workers = self._num_workers + 1
        self._workers[number] = _Worker(node, now)
        node.workers.append(number)
        self._at(now + self._costs.load_s * self._random.uniform(0.9, 1.2), self._load, number)

    def _load(self, now: float, number: int) -> None:
        worker = self._workers.get(number)
        if worker is None or not worker.node.is_open:
            return
        worker.is_ready, worker.free_at, worker.idle_since = True, now, now
        self._out.loading_s += now - worker.held_since
        self._schedule.add_worker(number, worker.node.name)
        if self._weather.crash_s < math.inf:
            crash_s = self._random.expovariate(1 / self._weather.crash_s)
            self._at(now + crash_s, self._crash, number)
        self._hand_out(now)

    def _drain(self, now: float, node: _Node) -> None:
        node.is_open = False
        for number in node.workers:
            if self._workers[number].is_ready:
                self._schedule.retire_worker(number)
        self._at(now + self._weather.grace_s, self._leave, node, Ending.PREEMPTED)

    def _leave(self, now: float, node: _Node, ending: Ending = Ending.LOST) -> None:
        node.is_open, num_workers = False, len(node.workers)
        for number in list(node.workers):
            self._lose(now, number, ending)
        self._at(now + self._weather.replace_s, self._join, num_workers)
        self._hand_out(now)

    def _crash(self, now: float, number: int) -> None:
        worker = self._workers.get(number)
        if worker is None:
            return
        self._trouble(now, worker.node)
        self._lose(now, number, Ending.DIED)
        self._start_worker(now, worker.node)
        self._hand_out(now)

    def _lose(self, now: float, number: int, ending: Ending) -> None:
        self._out.num_losses[ending] += 1
        worker = self._take_away(now, number, "lost_s")
        self._restarts.update(list(worker.runs))
        if worker.is_ready:
            for failure in self._schedule.lose_worker(number, ending, "gone"):
                self._fail(failure)

    def _take_away(self, now: float, number: int, account: str) -> _Worker:
        worker = self._workers.pop(number)
        worker.node.workers.remove(number)
        self._out.held_s += now - worker.held_since
        if not worker.is_ready:
            self._out.loading_s += now - worker.held_since
        spent_s = sum(run.spent(now) for run in worker.runs.values())
        setattr(self._out, account, getattr(self._out, account) + spent_s)
        return worker

    # Shards are made

    def _hand_out(self, now: float) -> None:
        for number, shard in self._schedule.hand_out(now):
            self._start(now, number, shard)

    def _tick(self, now: float) -> None:
        self._hand_out(now)
        shard_s = self._job.rows_per_shard * self._costs.image_s
        is_end = self._schedule.num_waiting == 0
        self._at(now + max(POLL_S, shard_s / (50 if is_end else 1)), self._tick)

    def _start(self, now: float, number: int, shard: Shard) -> None:
        worker, costs, job = self._workers[number], self._costs, self._job
        num_images = shard.num_rows * job.num_images_per_prompt
        num_made = -(-num_images // job.batch_size) * job.batch_size
        luck = self._draw(shard.index, number)
        noise = math.exp(self._weather.noise * NORMAL.inv_cdf(self._draw(number, shard.index)))
        trouble, hung_s = "", 0.0
        device_s = num_made * costs.image_s * worker.node.slowness * noise
        if worker.node.is_bad:
            trouble, device_s = "error", 0.0
        elif self._draw(shard.index, -1) < self._weather.poison:
            trouble = "death" if shard.index % 2 else "error"
        elif luck < self._weather.transient:
            trouble = "error"
        elif luck < self._weather.transient + self._weather.hung:
            hung_s = self._weather.hang_s
        was_free_at = worker.free_at
        read_at = now + costs.read_s + costs.read_row_s * shard.num_rows
        starts_at = max(read_at, was_free_at)
        idle_s = max(0.0, now - max(was_free_at, worker.idle_since))
        self._out.fixed_s += starts_at - was_free_at - idle_s
        worker.free_at = starts_at + device_s + hung_s
        ends_at = worker.free_at + costs.write_s + costs.write_image_s * num_images
        padding_s = device_s * (1 - num_images / num_made)
        run = _Run(starts_at, device_s, padding_s, hung_s, ends_at, trouble)
        worker.runs[shard.index] = run
        if trouble == "death":
            self._at(worker.free_at, self._crash, number)
        else:
            self._at(ends_at, self._end, number, shard.index)

    def _draw(self, first: int, second: int) -> float:
        """A number above 0 and below 1 that depends on the seed, the two, and earlier attempts."""
        again = self._restarts[first] if self._restarts and second >= 0 else 0
        x = self._seed * 0x9E3779B97F4A7C15 + first * 0xD1B54A32D192ED03
        x = (x + second * 0x8CB92BA72F3D8DD7 + again * 0xAEF17502108EF2D9) & MASK
        x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & MASK
        x = ((x ^ x >> 27) * 0x94D049BB133111EB) & MASK
        return ((x ^ x >> 31) + 0.5) / 2**64

    def _end(self, now: float, number: int, shard: int) -> None:
        """The driver hears of the end of an attempt, after what it heard of before."""
        worker = self._workers.get(number)
        if worker is None or shard not in worker.runs:
            return
        now = max(now, self._driver_free_at)
        self._driver_free_at = now + self._costs.driver_s
        run = worker.runs.pop(shard)
        worker.idle_since = now
        if run.trouble:
            self._out.failed_s += run.device_s
            self._restarts[shard] += 1
            self._trouble(now, worker.node)
            failure = self._schedule.fail(number, shard, Trouble(run.trouble))
            if failure is not None:
                self._fail(failure)
        else:
            self._records.succeed(worker.node.name)
            self._out.hung_s += run.hung_s
            self._keep(run, is_first=self._schedule.finish(number, shard, now))
        self._hand_out(now)

    def _keep(self, run: _Run, *, is_first: bool) -> None:
        if is_first:
            self._out.num_done += 1
            self._out.useful_s += run.device_s - run.padding_s
            self._out.padding_s += run.padding_s
        else:
            self._out.copies_s += run.device_s

    def _fail(self, failure: Failure) -> None:
        self._out.failed.append(failure.shard)
        is_poison = self._draw(failure.shard, -1) < self._weather.poison
        self._out.num_failed_good += not is_poison

    def _trouble(self, now: float, node: _Node) -> None:
        if self._records.trouble(node.name, now):
            node.is_open = False
            for number in node.workers:
                if self._workers[number].is_ready:
                    self._schedule.retire_worker(number)

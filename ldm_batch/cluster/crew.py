"""The workers that a job has: how many, on which nodes, and what each was asked.

Follows the cluster: starts workers where there is room, retires those of nodes that leave, avoids
nodes that fail while others do not. Must not know what becomes of a shard.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from ldm_batch.cluster.actor import actor_factory
from ldm_batch.cluster.attempts import Loader
from ldm_batch.cluster.nodes import Node, NodeRecords, count_room, count_wanted, describe_wait
from ldm_batch.cluster.schedule import Ending, Schedule
from ldm_batch.cluster.session import PATIENCE_S, worker_need, worker_options
from ldm_batch.cluster.view import View, Watch
from ldm_batch.config.cluster import ClusterConfig
from ldm_batch.errors import JobError, TryLaterError
from ldm_batch.records import Notice, Shard

SETTLE_S = 1.5
"""Ray's own view of what is free lags behind the start or end of a worker by about so much."""
MAX_LOAD_DEATHS = 3
"""Workers that die while they load: one may be its node's fault, so many are the model's."""
WORKERS_PER_SHARD_LEFT = 2
"""At the end of a job: one makes the shard, one may be needed for another attempt or a copy."""


Question = Literal["place", "load", "probe"]
"""Where it stands; to load its model; whether it still answers."""


@dataclass(slots=True)
class Member:
    """A worker: it is placed on a node, then loads, then makes shards."""

    number: int
    actor: Any
    node: str = ""
    host: str = ""
    is_loaded: bool = False
    is_retiring: bool = False


class Crew:
    """All workers of a job, and what they were asked and have not answered."""

    def __init__(
        self, ray: ModuleType, load: Loader, cluster: ClusterConfig, schedule: Schedule
    ) -> None:
        self._ray, self._cluster, self._schedule = ray, cluster, schedule
        self.watch = Watch(ray)
        options = worker_options(ray, cluster)
        self._need, self._labels = worker_need(options), cluster.labels
        self._start_actor = actor_factory(ray, load, cluster, options)
        self._records = NodeRecords()
        self._members: dict[int, Member] = {}
        self.asked: dict[object, tuple[Member, Question | Shard]] = {}
        """Ray's reference -> who was asked, and what; a shard: to make it."""
        self.terms: object = None
        """On what terms shards are made, or Ray's reference to them."""
        self.drained: set[str] = set()
        """Nodes that were ever seen draining."""
        self.num_load_deaths = 0
        """Workers that died while loading, since one loaded or the cluster changed."""
        self._nodes: Mapping[str, Node] = {}
        self._num_started = 0
        self._changed_at = self._looked_at = float("-inf")
        self._had_worker_at = time.monotonic()
        self._said: set[str] = set()

    def hand(self, number: int, shard: Shard) -> None:
        """Ask a worker for a shard."""
        member = self._members[number]
        self.asked[member.actor.make.remote(shard, self.terms)] = (member, shard)

    def member(self, number: int) -> Member:
        """The worker of a number."""
        return self._members[number]

    def start(self) -> None:
        """Start one more worker, wherever there is room, now or later."""
        member = Member(self._num_started, self._start_actor(self._records.avoided))
        self._members[member.number] = member
        self.asked[member.actor.place.remote()] = (member, "place")
        self._num_started += 1
        self._changed_at = time.monotonic()

    def probe(self, member: Member) -> None:
        """Ask a worker that cannot be reached for a sign of life, and give it nothing until then.

        Ray does not know yet whether it is dead, or its node, or the network only slow.
        """
        if member.is_loaded:
            self._schedule.retire_worker(member.number)
        if (member, "probe") not in self.asked.values():
            self.asked[member.actor.place.remote()] = (member, "probe")

    def on_placed(self, member: Member, node: str, host: str) -> None:
        """A worker stands on a node: let it load, unless the node is to be left alone by now."""
        member.node, member.host = node, host
        self._changed_at = time.monotonic()
        if node in self.drained or node in self._records.avoided:
            self.end(member)
            return
        self.asked[member.actor.load.remote()] = (member, "load")

    def on_loaded(self, member: Member) -> None:
        """A worker has its model: let it take shards."""
        member.is_loaded = True
        self.num_load_deaths = 0
        self._schedule.add_worker(member.number, member.node)

    def on_success(self, member: Member) -> None:
        """A worker made a shard."""
        self._records.succeed(member.node)

    def on_trouble(
        self, member: Member, message: str, *, is_certain: bool = False
    ) -> Iterator[Notice]:
        """Avoid the node of a worker that failed, if it is the node's fault."""
        if not self.has_loaded_elsewhere(member):
            return
        if self._records.trouble(member.node, time.monotonic(), is_certain=is_certain):
            for other in list(self._members.values()):
                if other.node == member.node:
                    self.retire(other)
                elif not other.node:  # it would go where a worker just left
                    self.end(other)
                    self.start()
            yield Notice(f"{member.host} is avoided, it fails while others do not: {message}")

    def retire(self, member: Member) -> None:
        """Let a worker finish what it has, and no more."""
        member.is_retiring = True
        if member.is_loaded:
            self._schedule.retire_worker(member.number)
        self.end_if_done(member)

    def end_if_done(self, member: Member) -> None:
        """End a worker that is to take nothing more, and has nothing."""
        has_work = member.is_loaded and not self._schedule.is_idle(member.number)
        if member.is_retiring and not has_work:
            self.end(member)

    def end(self, member: Member) -> None:
        """End a worker; what it was asked is forgotten, what it had goes back to the schedule."""
        if self._members.pop(member.number, None) is None:
            return
        for reference in [r for r, (asked, _) in self.asked.items() if asked is member]:
            del self.asked[reference]
        if member.is_loaded:
            self._schedule.lose_worker(member.number, Ending.PREEMPTED, "")
            member.is_loaded = False
        self._ray.kill(member.actor, no_restart=True)
        self._changed_at = time.monotonic()

    def end_all(self) -> None:
        """End all workers and look no more."""
        self.watch.stop()
        for member in list(self._members.values()):
            self.end(member)

    def has_loaded(self) -> bool:
        """Tell whether any worker has its model."""
        return any(member.is_loaded for member in self._members.values())

    def num_loading(self) -> int:
        """Workers that stand on a node and have no model yet."""
        return sum(bool(m.node) and not m.is_loaded for m in self._members.values())

    def misses_a_node(self, view: View) -> bool:
        """Tell whether a node is gone since the pool last followed the cluster."""
        return bool(self._nodes.keys() - view.nodes.keys())

    def has_loaded_elsewhere(self, member: Member) -> bool:
        """Tell whether a worker on another node than this one's has its model."""
        return any(m.is_loaded and m.node != member.node for m in self._members.values())

    def say_once(self, message: str, *, about: str = "") -> Iterator[Notice]:
        """A notice, unless it was given before."""
        if (about or message) not in self._said:
            self._said.add(about or message)
            yield Notice(message)

    def follow(self, now: float) -> Iterator[Notice]:
        """Be as many as the cluster has room for, whenever it was looked at again.

        Raises:
            JobError: there was no worker for `start_timeout_s`, a local Ray has no room, or the
                cluster's head is lost.
        """
        view = self.watch.view()
        if view.seen_at == self._looked_at:
            return
        is_first, self._looked_at = not self._nodes, view.seen_at
        if self._nodes.keys() != view.nodes.keys():
            self.num_load_deaths = 0
        self._nodes = view.nodes
        self._records.forgive(now)
        self.drained |= {node.id for node in self._nodes.values() if node.is_draining}
        yield from self._retire_leaving()
        yield from self._tell_of_gpus()
        if is_first or view.seen_at - self._changed_at >= SETTLE_S:
            yield from self._grow(is_first=is_first)
        yield from self._shrink()
        if any(member.node for member in self._members.values()):
            self._had_worker_at = now
        elif now - self._had_worker_at >= min(PATIENCE_S, self._cluster.start_timeout_s):
            yield from self._complain_of_no_room(now - self._had_worker_at)

    def _retire_leaving(self) -> Iterator[Notice]:
        for member in list(self._members.values()):
            if member.node in self.drained and not member.is_retiring:
                self.retire(member)
                yield from self.say_once(
                    f"{member.host} is being drained: its workers take nothing new",
                    about=member.node,
                )

    def _tell_of_gpus(self) -> Iterator[Notice]:
        """Workers without a GPU beside GPUs are a mistake where nobody asked for it."""
        has_gpus = any(node.total.get("GPU", 0) for node in self._nodes.values())
        if has_gpus and not self._need["GPU"] and self._cluster.gpus_per_worker is None:
            yield from self.say_once(
                "warning: the cluster has GPUs now, but had none when the job started, so its "
                "workers use CPUs; start it again, with cluster.gpus_per_worker=1"
            )

    def _grow(self, *, is_first: bool) -> Iterator[Notice]:
        usable = [node for node in self._nodes.values() if node.id not in self._records.avoided]
        staying = [member for member in self._members.values() if not member.is_retiring]
        is_our_own = not self._cluster.address
        when_empty = is_first and is_our_own  # what is free is not known yet, but nothing runs
        room = count_room(usable, self._need, self._labels, when_empty=when_empty)
        wanted = count_wanted(
            self._cluster,
            num_placed=sum(bool(member.node) for member in staying),
            num_room=room,
            num_unfinished=self._schedule.num_unfinished,
        )
        if when_empty and not room:
            raise JobError(f"cluster: no room for a worker: {self._no_room()}")
        num_new = wanted - len(staying)
        if num_new <= 0 or (self.num_load_deaths >= MAX_LOAD_DEATHS and self.has_loaded()):
            return
        for _ in range(num_new):
            self.start()
        if not is_first:
            more = "worker" if num_new == 1 else "workers"
            yield Notice(f"{num_new} more {more} asked for, {wanted} in all")

    def _shrink(self) -> Iterator[Notice]:
        """End workers that the shards left cannot employ: what they hold may go to other jobs, and
        an autoscaler starts no more nodes for them.

        First go those that make nothing yet, then those beside a worker that is at work: another
        attempt or a copy is for another node.
        """
        staying = [member for member in self._members.values() if not member.is_retiring]
        num_over = len(staying) - WORKERS_PER_SHARD_LEFT * self._schedule.num_unfinished
        idle = [m for m in staying if not m.is_loaded or self._schedule.is_idle(m.number)]
        if num_over <= 0 or not idle:
            return
        busy = {member.node for member in staying if member not in idle}
        idle.sort(key=lambda m: (m.is_loaded, bool(m.node), m.node not in busy))
        for member in idle[:num_over]:
            self.retire(member)
        yield from self.say_once("more workers than shards are left: those without work are ended")

    def _complain_of_no_room(self, waited_s: float) -> Iterator[Notice]:
        if waited_s >= self._cluster.start_timeout_s:
            raise TryLaterError(
                f"cluster.start_timeout_s: no worker for {waited_s:.0f} s: {self._no_room()}"
            )
        yield from self.say_once(f"waiting for a worker: {self._no_room()}", about="room")

    def _no_room(self) -> str:
        return describe_wait(self._cluster, self._nodes.values(), self._need, self._records.avoided)

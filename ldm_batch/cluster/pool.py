"""Shards to workers and answers back, until every shard has ended.

Which shard goes where is `schedule.py`'s to decide, which workers there are `crew.py`'s; must not
know what a shard is made of.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import ModuleType

from ldm_batch.cluster.attempts import Begin, Loader, Trouble, job_error
from ldm_batch.cluster.crew import MAX_LOAD_DEATHS, Crew, Member
from ldm_batch.cluster.schedule import Ending, Schedule
from ldm_batch.cluster.session import brief, ray_session, runtime_env_error
from ldm_batch.cluster.view import View
from ldm_batch.config.cluster import ClusterConfig
from ldm_batch.errors import JobError
from ldm_batch.records import Failure, Notice, Outcome, Receipt, Shard
from ldm_batch.versions import differing_versions, versions

POLL_S = 1.0
"""An answer ends the wait at once; without one, so often is looked at the cluster."""

LOST_COMMITS = (Outcome.LOST_TO_SAME, Outcome.LOST_TO_OTHER)

Event = Receipt | Failure | Notice


def run_on_ray(
    load: Loader, shards: Sequence[Shard], cluster: ClusterConfig, begin: Begin | None = None
) -> Iterator[Event]:
    """Make shards on Ray workers and yield what became of each, as it becomes known.

    A shard whose attempt failed is tried again elsewhere, up to `max_attempts`; attempts that end
    because a node was preempted or lost are not counted. Closing the iterator stops the workers.

    Args:
        shards: what there is to make, by which the number of workers is chosen.
        begin: says, when a worker has loaded, which shards are made; without it, all of them.

    Raises:
        JobError: the model does not load, or a local Ray has no room for a worker.
        TryLaterError: Ray does not start, no worker for `start_timeout_s`, the head is lost, or a
            disk is full.
    """
    with ray_session(cluster) as ray:
        pool = _Pool(ray, load, shards, cluster, begin)
        try:
            yield from pool.run()
        finally:
            pool.stop()


class _Pool:
    """A job's schedule and crew, and what to do with each answer."""

    def __init__(
        self,
        ray: ModuleType,
        load: Loader,
        shards: Sequence[Shard],
        cluster: ClusterConfig,
        begin: Begin | None,
    ) -> None:
        self._ray, self._begin, self._cluster = ray, begin, cluster
        self._schedule = Schedule(shards, cluster)
        self._crew = Crew(ray, load, cluster, self._schedule)
        self._environment = versions()
        """What all workers should run on: our versions, the device of the first."""
        self._has_begun = False
        self._view: View | None = None
        """The cluster as it was seen since answers were last gathered."""

    def run(self) -> Iterator[Event]:
        """Make all shards."""
        while self._schedule.num_unfinished:
            self._view = None
            yield from self._crew.follow(time.monotonic())
            num_coming = self._crew.num_loading()
            for number, shard in self._schedule.hand_out(time.monotonic(), num_coming=num_coming):
                self._crew.hand(number, shard)
            for reference in self._answered():
                if reference in self._crew.asked:  # else its worker is gone by now
                    yield from self._on_answer(reference)
            yield from self._end_hung()

    def stop(self) -> None:
        """End all workers."""
        self._crew.end_all()

    def _answered(self) -> list[object]:
        """References with an answer; waits a little for the first."""
        references = list(self._crew.asked)
        if not references:
            time.sleep(POLL_S)
            return []
        if not self._ray.wait(references, num_returns=1, timeout=POLL_S)[0]:
            return []
        ready: list[object] = self._ray.wait(references, num_returns=len(references), timeout=0)[0]
        return ready

    def _on_answer(self, reference: object) -> Iterator[Event]:
        member, asked = self._crew.asked.pop(reference)
        exceptions = self._ray.exceptions
        try:
            answer = self._ray.get(reference)
        except exceptions.RuntimeEnvSetupError as error:
            raise runtime_env_error(error) from error
        except exceptions.ActorUnavailableError:
            self._crew.probe(member)
        except exceptions.RayError as error:
            if getattr(error, "actor_init_failed", False) and not self._crew.has_loaded():
                raise JobError(
                    f"a worker cannot be started on its node (is ldm_batch installed there, in "
                    f"this version?): {brief(error)}"
                ) from error
            yield from self._on_lost(member, self._find_ending(member, error), brief(error))
        else:
            if asked == "place":
                self._crew.on_placed(member, *answer)
            elif asked == "load":
                yield from self._on_loaded(member, answer)
            elif asked == "probe":
                yield from self._on_lost(member, Ending.LOST, "its connection broke")
            elif isinstance(asked, Shard):
                yield from self._on_made(member, asked, answer)

    def _on_loaded(self, member: Member, answer: dict[str, str] | Trouble) -> Iterator[Event]:
        if isinstance(answer, Trouble):
            if not self._crew.has_loaded_elsewhere(member):
                raise job_error(answer, f" (on {member.host})")
            yield from self._crew.on_trouble(member, answer.message, is_certain=True)
            self._crew.end(member)
            return
        if not self._has_begun:
            self._has_begun = True
            self._environment = {**answer, **self._environment}
            if self._begin is not None:
                shards, terms = self._begin(answer)
                self._schedule.start_with(shards)
                self._crew.terms = self._ray.put(terms)
        self._crew.on_loaded(member)
        differing = differing_versions(self._environment, answer)
        if differing:
            yield from self._crew.say_once(
                f"warning: {member.host} runs on other versions or another device, so its images "
                f"may differ in their last bits: {', '.join(differing)}"
            )

    def _on_made(self, member: Member, shard: Shard, answer: Receipt | Trouble) -> Iterator[Event]:
        if isinstance(answer, Trouble):
            is_full = answer.no_room == "node"
            if is_full and self._crew.has_loaded_elsewhere(member):
                answer = replace(answer, no_room=None)  # other machines have disks of their own
            failure = self._schedule.fail(member.number, shard.index, answer)
            if failure is not None:
                yield failure
            yield from self._crew.on_trouble(member, answer.message, is_certain=is_full)
        else:
            self._crew.on_success(member)
            if answer.outcome is Outcome.FOUND:  # the other was here first
                self._schedule.meet_another(from_end=True)
            elif answer.outcome in LOST_COMMITS:  # the other is in step with us: leave it to chance
                self._schedule.meet_another(from_end=random.random() < 0.5)
            if self._schedule.finish(member.number, shard.index, time.monotonic()):
                yield answer
        self._crew.end_if_done(member)

    def _end_hung(self) -> Iterator[Event]:
        """End workers that take too long for a shard, which is an attempt at it."""
        for number, shard in self._schedule.find_hung(time.monotonic()):
            member, limit_s = self._crew.member(number), self._cluster.max_shard_s
            message = f"not made in {limit_s:g} s (cluster.max_shard_s) on {member.host}"
            yield Notice(f"shard {shard.id}: {message}: its worker is ended")
            failure = self._schedule.fail(number, shard.index, Trouble(message))
            if failure is not None:
                yield failure
            is_retiring = member.is_retiring
            self._crew.end(member)
            yield from self._crew.on_trouble(member, message)
            if not is_retiring:
                self._crew.start()

    def _on_lost(self, member: Member, ending: Ending, message: str) -> Iterator[Event]:
        """A worker is gone with all that it had under way."""
        was_loaded, member.is_loaded = member.is_loaded, False
        if was_loaded:
            reason = f"its worker died on {member.host}: {message}"
            yield from self._schedule.lose_worker(member.number, ending, reason)
        self._crew.end(member)
        if ending is Ending.DIED:
            yield from self._replace(member, message, was_loaded=was_loaded)
        elif member.host:
            how = "was taken away" if ending is Ending.PREEMPTED else "cannot be reached"
            yield from self._crew.say_once(
                f"{member.host} {how}; what its workers had is done elsewhere",
                about=f"{member.node} {how}",
            )

    def _replace(self, member: Member, message: str, *, was_loaded: bool) -> Iterator[Event]:
        """A worker died on a node that lives: try another, unless they all die as they load."""
        crew = self._crew
        where = f"on {member.host}" if member.host else "before it said on which node"
        if not was_loaded:
            crew.num_load_deaths += 1
        if crew.num_load_deaths >= MAX_LOAD_DEATHS:
            if not crew.has_loaded():
                raise JobError(
                    f"{crew.num_load_deaths} workers died while they loaded the model (out of "
                    f"memory?); last {where}: {message}"
                )
            return
        yield Notice(f"a worker died {where}: {message}")
        yield from crew.on_trouble(member, message)
        if not member.is_retiring:
            crew.start()

    def _find_ending(self, member: Member, error: Exception) -> Ending:
        if getattr(error, "preempted", False) or member.node in self._crew.drained:
            return Ending.PREEMPTED
        if self._view is None:
            self._view = self._crew.watch.fresh_view()
        if not member.node and self._crew.misses_a_node(self._view):
            return Ending.LOST  # it may have stood there
        return self._view.endings.get(member.node, Ending.DIED)

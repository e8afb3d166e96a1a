"""One attempt at a shard and how attempts are counted: the same for every executor.

Must not know Ray, plans or pixels; `run_in_process` is the executor without a cluster.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar, TypeVarTuple

from ldm_batch.config.cluster import ClusterConfig
from ldm_batch.errors import (
    FinalShardError,
    JobError,
    LdmBatchError,
    NoRoomError,
    TryLaterError,
    UnforeseenError,
)
from ldm_batch.errors.redact import tellable
from ldm_batch.records import Failure, Receipt, Shard

Given = TypeVarTuple("Given")
Out = TypeVar("Out")


class ShardMaker(Protocol):
    """What a worker does."""

    def environment(self) -> dict[str, str]:
        """What it runs on: versions by package, and its device."""

    def make_shard(self, shard: Shard, terms: Any) -> Receipt:
        """Turn one shard into its committed object, on the terms of its plan."""


NoRoom = Literal["node", "sink"]
"""Whose disk is full: that of a worker's machine, or that of the dataset."""
Loader = Callable[[], ShardMaker]
Begin = Callable[[Mapping[str, str]], tuple[Sequence[Shard], Any]]
"""What the first worker that has loaded runs on -> the shards to make, and on what terms. Called
once, before any shard is handed out; what it raises ends the run."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why an attempt at a shard, or the loading of a model, came to nothing."""

    message: str
    traceback: str = ""
    is_job_error: bool = False
    is_final: bool = False
    """Another attempt would come to the same."""
    no_room: NoRoom | None = None
    """A disk is full, where every shard that follows would be lost, too."""


@dataclass(slots=True)
class Pending:
    """A shard on its way: how often it was tried, and what is known against it."""

    shard: Shard
    attempts: int = 0
    preemptions: int = 0
    losses: int = 0
    is_suspect: bool = False
    """A worker died while it had this shard and another: tried alone next, to tell which it was."""
    last_worker: int | None = None
    last_node: str | None = None
    runners: set[int] = field(default_factory=set)
    """Workers that have it now: none, one, or one more with a copy."""
    is_finished: bool = False


def catch_trouble(function: Callable[[*Given], Out], *arguments: *Given) -> Out | Trouble:
    """Run a function and return what it returns, or as `Trouble` what it raised."""
    try:
        return function(*arguments)
    except LdmBatchError as error:
        return Trouble(
            str(error),
            is_job_error=isinstance(error, JobError),
            is_final=isinstance(error, FinalShardError),
            no_room=_whose_room(error) if isinstance(error, NoRoomError) else None,
        )
    except Exception as error:  # anything else is a shard's trouble, not the job's
        message = tellable(f"{type(error).__name__}: {error}")
        return Trouble(message, tellable(traceback.format_exc()))


def _whose_room(error: NoRoomError) -> NoRoom:
    return "node" if error.is_of_node else "sink"


def count_attempt(pending: Pending, trouble: Trouble, max_attempts: int) -> Failure | None:
    """Count a failed attempt; the failure to report, if it was the last.

    Raises:
        JobError: the trouble is not the shard's but the job's.
        TryLaterError: it would be that of every shard that follows, for now.
    """
    if trouble.is_job_error:
        raise JobError(trouble.message)
    if trouble.no_room:
        raise TryLaterError(
            f"stopped: {trouble.message}. What is committed stays; when there is room, the same "
            "command goes on"
        )
    pending.attempts += 1
    if pending.attempts < max_attempts and not trouble.is_final:
        return None
    return Failure(
        pending.shard.index,
        pending.attempts,
        trouble.message,
        trouble.traceback,
        trouble.is_final,
    )


def run_once_in_process(function: Callable[[], Out]) -> Out:
    """Run a function once in this process, and return what it returns.

    Raises:
        JobError: the function raised.
    """
    return unwrap(catch_trouble(function))


def unwrap(result: Out | Trouble) -> Out:
    """What a function returned, or the trouble that it met as a JobError."""
    if isinstance(result, Trouble):
        raise job_error(result)
    return result


def job_error(trouble: Trouble, where: str = "") -> JobError:
    """Trouble that ends the job, as the error to raise; `where` is said behind its message."""
    message = f"{trouble.message}{where}"
    return UnforeseenError(message, trouble.traceback) if trouble.traceback else JobError(message)


def run_in_process(
    load: Loader, shards: Sequence[Shard], cluster: ClusterConfig, begin: Begin | None = None
) -> Iterator[Receipt | Failure]:
    """Make shards one after the other in this process, and yield what became of each.

    Raises:
        JobError: the model does not load.
    """
    loaded, terms = run_once_in_process(load), None
    if begin is not None:
        shards, terms = begin(loaded.environment())
    for shard in shards:
        pending = Pending(shard)
        while True:
            made = catch_trouble(loaded.make_shard, shard, terms)
            if isinstance(made, Receipt):
                yield made
                break
            if (failure := count_attempt(pending, made, cluster.max_attempts)) is not None:
                yield failure
                break

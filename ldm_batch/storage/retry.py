"""The one layer of retries around each request to a cloud, and what a failure comes to.

The libraries' own retries are off: layers multiply, and a job must know how long a call can take.
Must not know any cloud: each judges its own errors.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from ldm_batch.errors import StorageError
from ldm_batch.storage.place import brief

Answer = TypeVar("Answer")
Judge = Callable[[Exception, str], Exception | None]
"""(error, place) -> what it means, to be raised (itself where it is none of its library's); None
where a later attempt may succeed."""

CONNECT_S, ANSWER_S = 10, 30
"""Longest wait for a connection, and for the next bytes on one: a store that is silent costs an
attempt, not the job, and another one fits into `retry_s`, 60 s by default."""
LEAST_BYTES_PER_S = 256 * 1024
"""A body that is sent more slowly than this counts as stuck: no library times a write."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 8.0
"""Upper ends of the pauses, which double from the first: about 20 attempts in 60 s."""
MAX_CONNECTIONS = 32
"""Twice the 16 threads that read footers or receipts."""


class Missing(Exception):
    """The object is not there."""


class Taken(Exception):
    """The condition of a conditional request does not hold: the object is there, or another."""


class Empty(Exception):
    """The object has no byte where the first was asked for."""


class Unsupported(Exception):
    """The store says itself that it does not know this kind of request."""


def persist(
    request: Callable[[], Answer],
    place: str,
    retry_s: float,
    judge: Judge,
    *,
    pause: Callable[[float], None] = time.sleep,
) -> Answer:
    """Make a request until it succeeds.

    Pauses grow and are drawn at random, so that many workers do not come back at once. No new
    attempt starts after `retry_s` seconds.

    Raises:
        Missing: the object is not there.
        Taken: a condition does not hold.
        Empty: a part was asked for that is not there.
        Unsupported: the store does not know such requests.
        AccessError: no retry could mend it.
        StorageError: it failed until the time was up.
    """
    give_up, longest = time.monotonic() + retry_s, FIRST_PAUSE_S
    while True:
        try:
            return request()
        except Exception as error:
            trouble = judge(error, place)
            if trouble is error:
                raise
            if trouble is not None:
                raise trouble from error
            seconds = random.uniform(0, longest)
            if time.monotonic() + seconds > give_up:
                message = f"{place}: {brief(error)} (tried for {retry_s:g} s)"
                raise StorageError(message) from error
        pause(seconds)
        longest = min(2 * longest, LONGEST_PAUSE_S)


def longest_s(num_bytes: int) -> float:
    """How long a request may take whose body has so many bytes."""
    return CONNECT_S + ANSWER_S + num_bytes / LEAST_BYTES_PER_S

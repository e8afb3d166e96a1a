"""fsspec's file systems of clouds: one per process and options, and calls of theirs from threads.

An event loop is never inherited by a fork: who asks in another process gets an instance of its own.
Nothing is cached of what they list. Credentials are never given here: each finds its own.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar, cast

from fsspec import asyn

from ldm_batch.config.storage import OPTIONS, library_of
from ldm_batch.errors import AccessError, LdmBatchError
from ldm_batch.storage.place import Access, as_access, brief
from ldm_batch.storage.retry import ANSWER_S, longest_s

Answer = TypeVar("Answer")
Options = tuple[tuple[str, Any], ...]
FIXED = {"use_listings_cache": False, "skip_instance_cache": True}
"""What no configuration file of fsspec may change."""
_making = threading.RLock()


def _forget_loop() -> None:
    """Begin anew in a forked process: no thread runs the loop there, and nobody holds a lock."""
    global _making
    _making = threading.RLock()
    asyn.loop[0] = asyn.iothread[0] = None
    asyn.reset_lock()


os.register_at_fork(after_in_child=_forget_loop)


def options_of(scheme: str, access: Access) -> dict[str, Any]:
    """The options of a library among those that a job sets, without our own."""
    known = OPTIONS.get(library_of(scheme), {})
    given = as_access(access).options
    return {name: given[name] for name in known if name in given and name != "retry_s"}


def retry_s_of(access: Access) -> float:
    """How long a failing request is made again."""
    whole = as_access(access)
    return float(whole.options.get("retry_s", whole.s3.retry_s))


def instance(
    name: str, make: Callable[[Mapping[str, Any]], Answer], options: Mapping[str, Any]
) -> Answer:
    """What `make(options)` made in this process; safe in many threads.

    Args:
        name: what to call it where it fails.
        make: a function of a module, which stands for itself.
        options: hashable ones.

    Raises:
        AccessError: it cannot be set up.
    """
    with _making:
        try:
            return cast(Answer, _made(make, tuple(sorted(options.items())), os.getpid()))
        except LdmBatchError:
            raise
        except Exception as error:
            raise AccessError(f"{name}: cannot be set up: {brief(error)}") from error


@lru_cache(maxsize=16)
def _made(make: Callable[[Mapping[str, Any]], Any], options: Options, _pid: int) -> Any:
    return make(dict(options))


def call(fs: Any, request: Callable[[], Awaitable[Answer]], num_bytes: int | None = None) -> Answer:
    """Make one request in the thread of a file system's loop, from any other thread.

    Args:
        fs: an asynchronous file system of fsspec.
        request: makes the request when it is called.
        num_bytes: how many are sent, or received at most, which bounds its time; None: its library
            times each wait for bytes, and nobody knows how many there are.

    Raises:
        ConnectionError: it took longer than such a request may.
    """
    limit_s = None if num_bytes is None else longest_s(num_bytes)

    async def limited() -> Answer:
        try:
            async with asyncio.timeout(limit_s):
                return await request()
        except TimeoutError as error:
            told = str(error) or f"no answer within {limit_s or ANSWER_S:.0f} s"
            raise ConnectionError(told) from error

    return cast(Answer, asyn.sync(fs.loop, limited))


def size_of(file: Any) -> int:
    """How many bytes a file has; it stands at its start then."""
    size = int(file.seek(0, os.SEEK_END))
    file.seek(0)
    return size

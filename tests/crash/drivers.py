"""Drivers that die: a job in a process of its own, killed at a chosen point or from outside.

The process is forked from one that has imported everything, so that hundreds of kills take minutes;
what it runs is what the command runs.
"""

import io
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

from ldm_batch import worker
from ldm_batch.config import JobConfig
from ldm_batch.drive import run_job
from ldm_batch.generate import random_pixels
from ldm_batch.storage import Store
from ldm_batch.storage.cloud import CloudFolder as Place
from ldm_batch.write import encode


def die() -> None:
    """Kill this process as it stands."""
    os.kill(os.getpid(), signal.SIGKILL)


class DyingFile:
    """A file that kills its reader in the middle of being sent.

    It is read three times: for its digest, for the request's signature, and to be sent.
    """

    def __init__(self, file: Any) -> None:
        self._file, self._left = file, 1.5 * file.seek(0, io.SEEK_END)
        file.seek(0)

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            die()
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def before(function: Callable[..., Any], nth: int) -> Callable[..., Any]:
    """The function, but its nth call kills."""
    return _counted(function, nth, lambda call: die())


def after(function: Callable[..., Any], nth: int) -> Callable[..., Any]:
    """The function, but the return of its nth call kills."""
    return _counted(function, nth, lambda call: (call(), die()))


def _counted(
    function: Callable[..., Any], nth: int, last: Callable[[Callable[[], Any]], Any]
) -> Callable[..., Any]:
    calls = iter(range(1, sys.maxsize))

    def counted(*arguments: Any, **options: Any) -> Any:
        if next(calls) == nth:
            last(lambda: function(*arguments, **options))
        return function(*arguments, **options)

    return counted


def in_the_middle(put: Callable[..., Any], nth: int) -> Callable[..., Any]:
    """The upload, but the nth of them kills when half of it is sent."""
    calls = iter(range(1, sys.maxsize))

    def dying(self: Any, path: str, content: Any, *rest: Any, **options: Any) -> Any:
        is_last = next(calls) == nth
        return put(self, path, DyingFile(content) if is_last else content, *rest, **options)

    return dying


POINTS: dict[str, tuple[Any, str, Callable[[Callable[..., Any], int], Callable[..., Any]]]] = {
    "reading": (worker, "read_shard", after),
    "sampling": (random_pixels.RandomPixels, "generate", before),
    "encoding": (encode, "encode_image", after),
    "before publishing": (Store, "publish", before),
    "after publishing": (Store, "publish", after),
    "before the commit": (Place, "create", before),
    "uploading": (Place, "_put", in_the_middle),
    "between commit and receipt": (Place, "create", after),
    "after the receipt": (worker, "write_receipt", after),
}
"""Where a driver can be made to die: module or class, function, and when of its nth call."""


def fork_driver(job: JobConfig, point: str | None = None, nth: int = 1) -> int:
    """Start a driver that dies at a point of its work, if one is named; its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        if point is not None:
            owner, name, when = POINTS[point]
            setattr(owner, name, when(getattr(owner, name), nth))
        code = run_job(job, out=io.StringIO())
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def wait_for(pid: int) -> int:
    """Wait for a process; its exit code, negative where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

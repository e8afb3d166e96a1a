"""What this machine keeps between jobs: its folder, who may write there, and what files were.

Imports no torch. Must not know models.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def sole_process(lock: Path) -> Iterator[None]:
    """Let one process at a time in; the lock ends with its holder, however that dies.

    Where the folder takes no lock (no rights, a network file system without locks) all go ahead:
    the hub's client puts whole files in place by renaming, so this costs requests, not truth.
    """
    descriptor = -1
    with suppress(OSError):
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)

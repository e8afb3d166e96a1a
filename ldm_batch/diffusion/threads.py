"""torch's number of threads, borrowed: set while a pipeline computes, and as it was after.

The number decides an image's last bits, and on a busy machine how long it takes; it is the
process's, so that a library may not keep it. Must not know what is computed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_turn = threading.Lock()


class _Blocks(threading.local):
    """How many blocks this thread of Python is in."""

    depth = 0


_own = _Blocks()
_usual = [0, 0]
"""Blocks that are open in this process, and the number of threads before the first of them."""


@contextmanager
def limit_threads(num_threads: int | None) -> Iterator[None]:
    """Let torch compute in so many threads inside this block, however it ends; None: as it is.

    Blocks may overlap in several threads of Python: torch's number is that of the thread that
    calls it. A thread that meets torch first while a block is open begins with the block's number,
    for which reason all blocks end with the number that stood before the first.
    """
    if num_threads is None:
        yield
        return
    with _turn:
        before = torch.get_num_threads()
        if not _usual[0]:
            _usual[1] = before
        if not _own.depth:
            before = _usual[1]
        torch.set_num_threads(num_threads)
        _usual[0] += 1
        _own.depth += 1
    try:
        yield
    finally:
        with _turn:
            _usual[0] -= 1
            _own.depth -= 1
            torch.set_num_threads(before)

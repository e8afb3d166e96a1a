"""torch's number of threads, borrowed: set while a pipeline computes, and as it was after.

The number decides an image's last bits, and on a busy machine how long it takes; it is the
process's, so that a library may not keep it. Must not know what is computed.

torch has one number for the process and one for each thread of Python: to set a thread's sets the
process's too, and a thread takes the process's where it first meets torch, and keeps it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

_turn = threading.Lock()


class _Blocks(threading.local):
    """How many blocks this thread of Python is in."""

    depth = 0


_own = _Blocks()


@contextmanager
def limit_threads(num_threads: int | None) -> Iterator[None]:
    """Let torch compute in so many threads inside this block, however it ends; None: as it is.

    The number is that of the calling thread alone: the process keeps its own, with which threads
    that meet torch meanwhile begin, but for one that does so in the instant in which a block begins
    or ends. Blocks may overlap in several threads, and stand within each other. A thread that
    leaves its outermost block has the process's number from then on: what `torch.set_num_threads`
    was last told outside of blocks, by whatever thread.
    """
    if num_threads is None:
        yield
        return
    with _turn:
        here = torch.get_num_threads()  # where this thread meets torch, before it is set
        outer = here if _own.depth else None
        _set_here(num_threads, _of_process())
        _own.depth += 1
    try:
        yield
    finally:
        with _turn:
            _own.depth -= 1
            usual = _of_process()
            _set_here(usual if outer is None else outer, usual)


def _set_here(num_threads: int, usual: int) -> None:
    """Set the number of this thread, and leave the process `usual`."""
    torch.set_num_threads(num_threads)
    if num_threads != usual:
        _in_a_new_thread(lambda: torch.set_num_threads(usual))


def _of_process() -> int:
    """The number of the process, with which a thread begins."""
    found: list[int] = []
    _in_a_new_thread(lambda: found.append(torch.get_num_threads()))
    return found[0]


def _in_a_new_thread(call: Callable[[], object]) -> None:
    thread = threading.Thread(target=call, name="torch's number of threads", daemon=True)
    thread.start()
    thread.join()

"""What tests start ends with them: found by a word in its environment, however it was orphaned.

A process that a test starts, and all that these start, inherit the word; Linux tells it of each.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

OF_SESSION, OF_TEST = "LDM_BATCH_TESTS", "LDM_BATCH_TEST"
"""Names of the variables: one for all that a run of tests starts, one for each test's own."""
STARTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn"}
"""Audit events of Python: a process is started."""
INHERITED = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM)
KILL_S = 10.0


class _Started:
    """Whether any process was started since that was last asked."""

    any = False


def watch() -> None:
    """Mark all that this run of tests starts, and note when something is."""
    os.environ[OF_SESSION] = str(os.getpid())
    sys.addaudithook(_note)


def _note(event: str, _arguments: object) -> None:
    if event in STARTS:
        _Started.any = True


def give_signals_back() -> None:
    """Let children have the default of signals that were ignored here, as under `make test &`,
    nohup and some CI: what is ignored is inherited, what is caught is not. Here they stay without
    effect."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in INHERITED:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@contextmanager
def ended(word: str) -> Iterator[None]:
    """End what is started within."""
    before = os.environ.get(OF_TEST)
    os.environ[OF_TEST] = word
    _Started.any = False
    try:
        yield
    finally:
        if before is None:
            del os.environ[OF_TEST]
        else:
            os.environ[OF_TEST] = before
        if _Started.any:
            end_all(OF_TEST, word)


@contextmanager
def of_all_tests() -> Iterator[None]:
    """What is started within is no single test's, and ends with the run of tests."""
    word = os.environ.pop(OF_TEST, None)
    try:
        yield
    finally:
        if word is not None:
            os.environ[OF_TEST] = word


def end_all(name: str, word: str) -> list[int]:
    """Kill, one by one, what has a word in its environment, and what it starts meanwhile; returns
    what there was."""
    found: list[int] = []
    give_up = time.monotonic() + KILL_S
    while (pids := living(name, word)) and time.monotonic() < give_up:
        for pid in pids:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        found += [pid for pid in pids if pid not in found]
        time.sleep(0.01)  # a killed process is there until the kernel is done with it
    return found


def living(name: str, word: str) -> list[int]:
    """Processes beside this one, alive, with a word in their environment."""
    wanted, found = f"{name}={word}".encode(), []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            is_marked = wanted in (entry / "environ").read_bytes().split(b"\0")
            if is_marked and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found

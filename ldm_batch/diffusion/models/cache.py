"""What this machine keeps between jobs: its folder, who may write there, and what files were.

Imports no torch. Must not know models.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ldm_batch.config.places import with_home
from ldm_batch.errors import JobError

FOLDER_VARIABLE = "LDM_BATCH_CACHE"
"""Environment variable that names the folder in place of `XDG_CACHE_HOME/ldm_batch`."""
SMALL_BYTES = 1 << 20
"""Files up to this size are read again each time: that is as quick as to look them up."""
SETTLED_S = 2.0
"""A file younger than this may change once more within one tick of its time stamp."""
MAX_DIGESTS = 4096
"""The latest are remembered; a model in parts has tens of files."""


def cache_folder() -> Path:
    """The folder of what we keep on this machine; it need not exist.

    Raises:
        JobError: there is no home folder and no variable names one.
    """
    if own := os.environ.get(FOLDER_VARIABLE):
        return Path(with_home(own)).absolute()
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        raise JobError(f"no home folder ({error}); set {FOLDER_VARIABLE} to a folder") from error
    return Path(home).absolute() / "ldm_batch"


@contextmanager
def sole_process(lock: Path) -> Iterator[None]:
    """Let one process at a time in; the lock ends with its holder, however that dies.

    Where the folder takes no lock (no rights, a network file system without locks) all go ahead:
    whoever uses this puts whole files in place by renaming, so it costs work, not truth.
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


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remembered_sha256(path: Path) -> str:
    """SHA-256 of a file, remembered for as long as its path, size, time stamps and inode stay.

    For plans only: whoever loads a file reads all of it and knows. What cannot be remembered (no
    room, no rights, a damaged memory) is read again.
    """
    path = path.resolve()
    facts = path.stat()
    if facts.st_size <= SMALL_BYTES or time.time() - facts.st_mtime < SETTLED_S:
        return sha256(path)
    try:
        memory = cache_folder() / "digests.json"
    except JobError:
        return sha256(path)
    when = f"{facts.st_mtime_ns} {facts.st_ctime_ns}"
    key = f"{facts.st_size} {when} {facts.st_ino} {path}"
    if known := _known_digests(memory).get(key):
        return known
    digest = sha256(path)
    with suppress(OSError):
        write_whole(memory, _with_digest(_known_digests(memory), key, digest))
    return digest


def write_whole(path: Path, value: object) -> None:
    """Write a small JSON file so that readers see the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(value, indent=1), encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _known_digests(memory: Path) -> dict[str, str]:
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {k: v for k, v in known.items() if isinstance(v, str) and len(v) == 64}


def _with_digest(known: dict[str, str], key: str, digest: str) -> dict[str, str]:
    """What is known, the newest last; the oldest make room."""
    kept = [(k, v) for k, v in known.items() if k != key][1 - MAX_DIGESTS :]
    return dict([*kept, (key, digest)])

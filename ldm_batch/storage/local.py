"""Whole objects in a folder of a local disk: a temporary file, made durable, then given its name.

The name is given by a link, or a rename that replaces nothing (`exclusive.py`): that makes creation
exclusive.
"""

from __future__ import annotations

import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from ldm_batch.errors import AccessError, JobError, StorageError, UnservedError
from ldm_batch.storage.exclusive import NotExclusive, give_name
from ldm_batch.storage.files import FILES
from ldm_batch.storage.place import (
    COPY_BYTES,
    Access,
    Creation,
    Leftover,
    brief,
    content_digest,
    translated,
)
from ldm_batch.storage.unserved import Whose, judge_os_error, unserved

SCRATCH_FOLDER = ".ldm_batch/tmp"


class LocalFolder:
    """A `Place` on a local disk."""

    def __init__(self, root: str) -> None:
        self._root = Path(root)
        self._scratch = Path(root, SCRATCH_FOLDER)
        self._made: list[Path] = []
        """Folders that were not there, the outermost first."""
        self._why_careless = ""

    def names(self, folder: str) -> set[str]:
        """Names directly below a folder; empty where the folder is not there."""
        with translated(self._name(folder)):
            try:
                return {entry.name for entry in os.scandir(self._root / folder)}
            except FileNotFoundError:
                return set()

    def modified_at(self, folder: str) -> dict[str, float]:
        """When each file directly below a folder was written, by name, in seconds since the epoch;
        empty where the folder is not there."""
        times: dict[str, float] = {}
        with translated(self._name(folder)):
            try:
                entries = list(os.scandir(self._root / folder))
            except FileNotFoundError:
                return times
            for entry in entries:
                with suppress(FileNotFoundError):  # it was removed meanwhile
                    if entry.is_file():
                        times[entry.name] = entry.stat().st_mtime
        return times

    def has(self, path: str) -> bool:
        """Tell whether an object is there."""
        with translated(self._name(path)):
            return (self._root / path).exists()

    def open(self, path: str) -> BinaryIO:
        """Open an object for random reading."""
        with translated(self._name(path)):
            return (self._root / path).open("rb")

    def read(self, path: str) -> bytes | None:
        """All bytes of an object, or None where it is not there."""
        with translated(self._name(path)):
            try:
                return (self._root / path).read_bytes()
            except FileNotFoundError:
                return None

    def create(self, path: str, content: BinaryIO) -> Creation:
        """Make an object appear whole and durable, unless there is one already."""
        if self._publish(path, content, exclusive=True):
            return Creation.WON
        return self.compare(path, content)

    def compare(self, path: str, content: BinaryIO) -> Creation:
        """Tell whether the object that is there holds these bytes or other ones."""
        with self.open(path) as other:
            is_same = content_digest(other) == content_digest(content)
        return Creation.LOST_TO_SAME if is_same else Creation.LOST_TO_OTHER

    def replace(self, path: str, content: BinaryIO) -> None:
        """Make an object appear whole and durable, in place of one that is there."""
        self._publish(path, content, exclusive=False)

    def remove(self, path: str) -> None:
        """Remove an object; nothing happens where it is not there."""
        with translated(self._name(path)):
            (self._root / path).unlink(missing_ok=True)

    def remove_empty_folders(self) -> None:
        """Remove the folders that were made here and nothing stands in."""
        while self._made:
            with suppress(OSError):  # something stands in it
                self._made.pop().rmdir()

    def why_careless(self) -> str:
        """Why a second create replaced the first, where that is known; else nothing."""
        return self._why_careless

    def leftovers(self) -> Iterator[Leftover]:
        """Temporary files of writers, crashed ones and those at work."""
        for name in sorted(self.names(SCRATCH_FOLDER)):
            with suppress(OSError):  # its writer has finished, or another driver removed it
                yield Leftover(f"{SCRATCH_FOLDER}/{name}", (self._scratch / name).stat().st_mtime)

    def remove_leftover(self, leftover: Leftover) -> None:
        """Remove a temporary file."""
        self.remove(leftover.path)

    def _name(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _publish(self, path: str, content: BinaryIO, *, exclusive: bool) -> bool:
        target = self._root / path
        temporary = self._scratch / f"{uuid.uuid4().hex}.tmp"
        with translated(str(target)):
            try:
                self._write(temporary, content)
                self._make_folder(target.parent)
                created = self._give_name(temporary, target, exclusive=exclusive)
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(target.parent)
        return created

    def _give_name(self, temporary: Path, target: Path, *, exclusive: bool) -> bool:
        if exclusive:
            try:
                return give_name(temporary, target)
            except NotExclusive as error:
                self._why_careless = (
                    "its file system has neither hard links nor a rename that replaces nothing "
                    f"({error})"
                )
        os.replace(temporary, target)
        return True

    def _write(self, path: Path, content: BinaryIO) -> None:
        """Write a file, whose folder another process may just be removing because it was empty."""
        for last in (False, False, True):
            self._make_folder(path.parent)
            content.seek(0)
            try:
                return _write_durably(path, content)
            except FileNotFoundError:
                if last:
                    raise
        return None

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        new = [path for path in (*reversed(folder.parents), folder) if not path.exists()]
        self._made += new
        folder.mkdir(parents=True, exist_ok=True)
        for path in new:
            with suppress(PermissionError):  # whoever may not read it may still write below it
                _sync_folder(path.parent)


def _write_durably(path: Path, source: BinaryIO) -> None:
    with path.open("xb") as file:
        shutil.copyfileobj(source, file, COPY_BYTES)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_folder(root: str, _access: Access) -> LocalFolder:
    """The folder of a path; it need not be there, but nothing else may be.

    Raises:
        JobError: a file stands in its place, or in that of a folder above it.
    """
    for path in (Path(root), *Path(root).parents):
        try:
            mode = path.stat().st_mode
        except OSError:
            continue
        if not stat.S_ISDIR(mode):
            raise JobError(f"{root}: {path} is no folder; a dataset is one, name another")
        break
    return LocalFolder(root)


def read_start(path: str, max_bytes: int, _access: Access = None) -> bytes:
    """The first bytes of a file."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # to open a pipe would wait for its writer
            raise UnservedError(f"{path}: no file")
        with open(path, "rb") as file:
            return file.read(max_bytes)
    except OSError as error:
        whose, why = judge_os_error(error, path), error.strerror or brief(error)
        if whose is Whose.STORE:
            raise StorageError(f"{path}: {why}") from error
        raise unserved(path, whose, why) from error


def prove_folder(path: str, _access: Access = None) -> None:
    """Raise what keeps files below a folder from being read, all of them alike."""
    try:
        os.stat(os.path.join(path, "."))
    except OSError as error:
        why = f"{path}: {error.strerror or brief(error)}"
        if judge_os_error(error, path) is Whose.CLOSED:
            raise AccessError(why) from error
        raise StorageError(f"{why}; is it mounted here?") from error


LOCAL = replace(FILES, read_start=read_start, prove_folder=prove_folder, open_place=open_folder)

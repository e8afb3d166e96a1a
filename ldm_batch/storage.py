"""Files and URLs: list, open, and publish whole objects, exclusively where asked.

The only user of fsspec. Knows URLs and bytes; must not know shards, plans or Parquet.
"""

from __future__ import annotations

import io
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.core import url_to_fs

from ldm_batch.errors import JobError, StorageError

PARQUET_SUFFIXES = (".parquet", ".parq", ".pq")
COPY_BYTES = 1024 * 1024
LEFTOVER_AGE_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A listed input file; `name` is its path relative to the source it was found in."""

    name: str
    uri: str
    size_bytes: int
    version: str


def list_source(uris: Sequence[str]) -> tuple[list[SourceFile], list[str]]:
    """List the Parquet files of paths, globs and folders (recursive), in order of their names.

    Returns:
        The files, and a line on each file that was skipped (hidden or empty).

    Raises:
        JobError: nothing is there, or two files would have the same name.
    """
    found: dict[str, SourceFile] = {}
    skipped: list[str] = []
    for uri in uris:
        for file in _list_one(uri):
            if any(part.startswith((".", "_")) for part in file.name.split("/")):
                skipped.append(f"{file.uri}: hidden (a name starts with '.' or '_')")
            elif file.size_bytes == 0:
                skipped.append(f"{file.uri}: empty")
            elif found.setdefault(file.name, file).uri != file.uri:
                raise JobError(
                    f"source.uri: {found[file.name].uri} and {file.uri} would both be named "
                    f"{file.name!r}; name the folder above them, or a glob, in place of a list"
                )
    return sorted(found.values(), key=lambda file: file.name), skipped


def _list_one(uri: str) -> list[SourceFile]:
    fs, path = _filesystem(uri)
    with _translated(uri):
        if fs.isfile(path):
            return [_source_file(fs, fs.info(path), path.rpartition("/")[0])]
        if fs.isdir(path):
            infos = _files_among(fs, _below(fs, path))
            return [
                _source_file(fs, info, path)
                for info in infos
                if info["name"].endswith(PARQUET_SUFFIXES)
            ]
        root = _fixed_prefix(path)
        if root != path and fs.isdir(root):
            infos = _files_among(fs, fs.glob(path, detail=True).values())
            files = [_source_file(fs, info, root) for info in infos]
            if files:
                return files
    raise JobError(f"source.uri: nothing found at {uri}")


def _below(fs: Any, folder: str) -> Iterator[Mapping[str, Any]]:
    """Everything below a folder; fsspec's own `find` leaves out folders that it may not read."""
    for info in fs.ls(folder, detail=True):
        if info["type"] == "directory":
            yield from _below(fs, info["name"])
        else:
            yield info


def _files_among(fs: Any, listing: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Files of a listing, links followed; a broken link counts as an empty file."""
    for info in listing:
        if info.get("islink"):
            path = info["name"]
            info = fs.info(path) if fs.exists(path) else {**info, "type": "file", "size": 0}
        if info["type"] == "file":
            yield info


def _fixed_prefix(pattern: str) -> str:
    fixed = []
    for part in pattern.split("/"):
        if any(c in part for c in "*?["):
            break
        fixed.append(part)
    return "/".join(fixed)


def _source_file(fs: Any, info: Mapping[str, Any], root: str) -> SourceFile:
    path = str(info["name"])
    version = info.get("ETag") or info.get("mtime") or info.get("LastModified") or ""
    name = path.removeprefix(root).lstrip("/")
    uri = path if "file" in fs.protocol else fs.unstrip_protocol(path)
    return SourceFile(name, uri, int(info["size"]), str(version))


def open_file(uri: str) -> BinaryIO:
    """Open a file for random reading.

    Raises:
        StorageError: it cannot be opened.
    """
    fs, path = _filesystem(uri)
    with _translated(uri):
        return cast(BinaryIO, fs.open(path, "rb"))


def absolute(uri: str) -> str:
    """The same place, independent of the working directory."""
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())


def _filesystem(uri: str) -> tuple[Any, str]:
    protocol = fsspec.utils.get_protocol(uri)
    if protocol not in ("file", "local"):
        raise JobError(f"{uri}: {protocol}:// is not supported yet; use a local path")
    fs, path = url_to_fs(absolute(uri), use_listings_cache=False, skip_instance_cache=True)
    return fs, path


@contextmanager
def _translated(place: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{place}: {error.strerror or error}") from error


class Store:
    """A folder that holds whole objects at relative paths: listed, read, published, removed.

    Nothing is cached, so a listing tells what is there now.
    """

    def __init__(self, root: str) -> None:
        _filesystem(root)
        self.root = absolute(root.removeprefix("file://"))
        self._scratch = Path(self.root, ".ldm_batch", "tmp")

    def uri(self, path: str) -> str:
        """Full address of an object."""
        return f"{self.root}/{path}"

    def names(self, folder: str) -> set[str]:
        """Names directly below a folder; empty where the folder is not there."""
        with _translated(self.uri(folder)):
            try:
                return {entry.name for entry in os.scandir(self.uri(folder))}
            except FileNotFoundError:
                return set()

    def has(self, path: str) -> bool:
        """Tell whether an object is there."""
        with _translated(self.uri(path)):
            return Path(self.uri(path)).exists()

    def open(self, path: str) -> BinaryIO:
        """Open an object for random reading."""
        with _translated(self.uri(path)):
            return Path(self.uri(path)).open("rb")

    def read(self, path: str) -> bytes | None:
        """All bytes of an object, or None where it is not there."""
        with _translated(self.uri(path)):
            try:
                return Path(self.uri(path)).read_bytes()
            except FileNotFoundError:
                return None

    def publish(self, path: str, content: bytes | BinaryIO, *, exclusive: bool) -> bool:
        """Make an object appear whole or not at all, durably.

        Args:
            path: where, relative to the root.
            content: bytes, or a file that is read from its start.
            exclusive: create only; an object that is already there stays as it is.

        Returns:
            True if this call's content is now the object, False if another one was there first.

        Raises:
            StorageError: it could not be written; nothing has appeared.
        """
        source = io.BytesIO(content) if isinstance(content, bytes) else content
        source.seek(0)
        target = Path(self.uri(path))
        temporary = self._scratch / f"{uuid.uuid4().hex}.tmp"
        with _translated(str(target)):
            target.parent.mkdir(parents=True, exist_ok=True)
            self._scratch.mkdir(parents=True, exist_ok=True)
            try:
                _write_durably(temporary, source)
                created = _give_name(temporary, target, exclusive=exclusive)
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(target.parent)
        return created

    def remove(self, path: str) -> None:
        """Remove an object; nothing happens where it is not there."""
        with _translated(self.uri(path)):
            Path(self.uri(path)).unlink(missing_ok=True)

    def prove_exclusive(self) -> None:
        """Prove that the store can be written and keeps its word on exclusive creation.

        Raises:
            StorageError: it cannot be written.
            JobError: it lets a second writer replace what the first created.
        """
        self._remove_leftovers()
        probe = f".ldm_batch/tmp/probe-{uuid.uuid4().hex}"
        try:
            outcome = [self.publish(probe, b"probe", exclusive=True) for _ in range(2)]
        finally:
            self.remove(probe)
        if outcome != [True, False]:
            raise JobError(
                f"sink.uri: {self.root} does not refuse to create an object twice, so two "
                "attempts at one shard could both count; use another store"
            )

    def _remove_leftovers(self) -> None:
        """Remove what crashed writers left behind a day ago or earlier."""
        oldest = time.time() - LEFTOVER_AGE_S
        for name in self.names(".ldm_batch/tmp"):
            leftover = self._scratch / name
            with suppress(OSError):  # another driver was faster, or it is another user's
                if leftover.stat().st_mtime < oldest:
                    leftover.unlink()


def _write_durably(path: Path, source: BinaryIO) -> None:
    with path.open("xb") as file:
        shutil.copyfileobj(source, file, COPY_BYTES)
        file.flush()
        os.fsync(file.fileno())


def _give_name(temporary: Path, target: Path, *, exclusive: bool) -> bool:
    if not exclusive:
        os.replace(temporary, target)
        return True
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

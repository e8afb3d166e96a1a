"""The files that rows name by their paths: where these lead, read ahead, and whose trouble it is
where one is not to be had.

Must not know what is in a file.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ldm_batch.config import SourceConfig
from ldm_batch.errors import StorageError, UnservedError
from ldm_batch.read.window import READ_AHEAD, Longer, Window
from ldm_batch.records import Fault, Reason
from ldm_batch.storage import prove_folder, read_file

Fetched = Future[bytes | Fault | Longer | None]
LOCAL = "file://"
ESCAPE = re.compile(rb"%[0-9A-Fa-f]{2}")


class RowFiles:
    """The files that the rows of one shard name.

    A file that is not there, or is closed to us, is the trouble of its row, if the store still
    serves others: of each shard with such a row, one that was read is asked for again at the end,
    or, where none was, the root. Everything else that keeps a file from being read is the store's
    trouble, and raised.
    """

    def __init__(self, source: SourceConfig, table: str, num_per_row: int) -> None:
        """Name where files stand.

        Args:
            table: the Parquet file that holds the rows.
            num_per_row: files that a row may name.
        """
        self._access = source.access
        self._window = Window(source.max_image_bytes, num_per_row, source.access)
        self._root = _normal(source.image_root or _folder_of(table))
        self._served: str | None = None
        self._has_unserved = False

    def read_ahead(
        self, rows: Iterable[Mapping[str, Any]], fields: Sequence[str]
    ) -> Iterator[Mapping[str, Any]]:
        """The rows in their order, with what was read in their fields under `found`.

        Raises:
            StorageError: the store is in trouble.
            AccessError: it lets nobody in.
        """
        with ThreadPoolExecutor(READ_AHEAD, thread_name_prefix="fetch") as pool:
            pending: deque[tuple[Mapping[str, Any], Mapping[str, Fetched]]] = deque()
            for row in rows:
                found = {f: pool.submit(self.fetch, row.get(f) or {}) for f in fields}
                pending.append((row, found))
                if len(pending) == READ_AHEAD:
                    yield _with_found(*pending.popleft())
            while pending:
                yield _with_found(*pending.popleft())
        self._prove_store()

    def fetch(self, cell: Mapping[str, Any]) -> bytes | Fault | Longer | None:
        """The bytes of a row's image: its own, or those of the file that it names; safe in threads.

        Raises:
            StorageError: the store is in trouble.
            AccessError: it lets nobody in.
        """
        data, path = cell.get("bytes"), cell.get("path")
        return self._read(path) if data is None and path else data

    def read_whole(self, file: Longer) -> bytes | Fault:
        """The bytes of a file that is too long to be read ahead, one byte past the limit at most.

        Raises:
            StorageError: the store is in trouble, or the file is gone by now.
        """
        try:
            return self._window.read_whole(file)
        except UnservedError as error:
            raise StorageError(f"was served a moment ago, and is not any more: {error}") from error

    def _read(self, path: bytes) -> bytes | Fault | Longer:
        """Read the file that a row names, one byte past the limit or its part of the window."""
        try:
            uri = resolve_path(path.decode("utf-8"), self._root)
        except UnicodeDecodeError:
            return Fault(Reason.UNREADABLE_IMAGE, "its path is not UTF-8")
        if uri is None:
            return Fault(Reason.UNREADABLE_IMAGE, _why_refused(path, self._root))
        if leads_out(uri, self._root):
            told = f"a link at its path leads out of {self._root} (source.image_root)"
            return Fault(Reason.UNREADABLE_IMAGE, told)
        try:
            data = self._window.read(uri)
        except UnservedError as error:
            self._has_unserved = True
            return Fault(Reason.UNREADABLE_IMAGE, _why_unserved(path, error))
        self._served = uri
        return data

    def _prove_store(self) -> None:
        """Raise where it may be the store's trouble, and not theirs, that files were not to be
        had."""
        if not self._has_unserved:
            return
        if self._served is None:
            prove_folder(self._root, self._access)
            return
        try:
            read_file(self._served, 1, self._access)
        except UnservedError as error:
            raise StorageError(f"was served a moment ago, and is not any more: {error}") from error


def _with_found(row: Mapping[str, Any], found: Mapping[str, Fetched]) -> Mapping[str, Any]:
    cells = {name: {**(row.get(name) or {}), "found": one.result()} for name, one in found.items()}
    return {**row, **cells}


def resolve_path(path: str, root: str) -> str | None:
    """Where a path of the input points to, or None if that is not below `root`.

    Args:
        path: relative to the root, or absolute, or a URI.
        root: a local folder or a URI; empty: none.
    """
    if "\0" in path or "::" in path:
        return None
    if not root:
        return None
    root = _normal(root).rstrip("/")
    if path.startswith("/") or "://" in path:
        path = _plain(path)
        same = (path, _normal(path), _without_steps(path))  # verbatim first: keys may hold a //
        below = next((one for one in same if one.startswith(f"{root}/")), None)
        if below is None:
            return None
        path = below.removeprefix(root).lstrip("/")
    rest = posixpath.normpath(path)
    return None if rest == "." or rest.split("/")[0] == ".." else f"{root}/{rest}"


def leads_out(uri: str, root: str) -> bool:
    """Tell whether links of a local disk lead from below a folder to outside of it."""
    if "://" in uri:
        return False
    target, place = os.path.realpath(uri), os.path.realpath(root)
    return os.path.commonpath([target, place]) != place


def _folder_of(uri: str) -> str:
    """The folder of an input file, whose images stand below it unless the job names another; none
    where that would be the whole disk."""
    folder = posixpath.dirname(_plain(uri))
    return "" if folder == "/" else folder


def _why_refused(path: bytes, root: str) -> str:
    if not root:
        return "its path is below no folder: the input stands in /; set source.image_root"
    if b"\0" in path:
        return "its path holds a null character"
    if b"::" in path:
        return "its path holds '::', which chains one file system to another: rename the file"
    return f"its path does not stand below {root} (source.image_root)"


def _why_unserved(path: bytes, error: UnservedError) -> str:
    return _why_missing(path) if error.is_absent else f"the file at its path: {error}"


def _why_missing(path: bytes) -> str:
    if not (escape := ESCAPE.search(path)):
        return "no file at its path"
    return (
        f"no file at its path, in which {escape[0].decode()} stands for itself: paths and URIs are "
        "taken as they are, without percent-encoding"
    )


def _plain(uri: str) -> str:
    return uri.removeprefix(LOCAL)


def _normal(uri: str) -> str:
    """A local place without `..`, `.` and `//`; a URI as it is: these may be names in its store."""
    place = _plain(uri)
    return place if "://" in place or not place else _without_steps(place)


def _without_steps(place: str) -> str:
    scheme, separator, path = place.rpartition("://")
    normal = posixpath.normpath(path)
    return scheme + separator + (f"/{normal.lstrip('/')}" if path.startswith("/") else normal)

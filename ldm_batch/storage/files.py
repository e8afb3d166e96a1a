"""Input files on local disks and on whatever else fsspec knows: listed and opened for reading.

The clouds that can hold datasets have their own modules.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from ldm_batch.config.places import with_home
from ldm_batch.config.storage import library_of
from ldm_batch.errors import JobError, LdmBatchError, StorageError
from ldm_batch.storage.instance import FIXED, options_of
from ldm_batch.storage.place import (
    Access,
    Kind,
    SourceFile,
    brief,
    is_parquet_name,
    translated,
)
from ldm_batch.storage.unserved import Whose, judge, unserved


def list_files(uri: str, access: Access = None) -> list[SourceFile]:
    """The files that a path, a glob or a folder (recursive) names, of a folder all that is in it;
    empty where there is nothing."""
    fs, path = _filesystem(uri, access)
    with _all_translated(uri):
        if fs.isfile(path):
            return [_source_file(fs, fs.info(path), path.rpartition("/")[0])]
        if fs.isdir(path):
            return [_found(fs, info, path) for info in _below(fs, path)]
        root = fixed_prefix(path)
        if root != path and fs.isdir(root):
            infos = _files_among(fs, fs.glob(path, detail=True).values())
            return [_source_file(fs, info, root) for info in infos]
        if protocol_of(uri) != "file":
            _tell_why_not(fs, path)
    return []


def _tell_why_not(fs: AbstractFileSystem, path: str) -> None:
    """Raise what keeps a place from being looked at: `isfile` of fsspec calls that no file."""
    try:
        fs.info(path)
    except (FileNotFoundError, IsADirectoryError):
        return


def open_for_reading(uri: str, access: Access = None) -> BinaryIO:
    """Open a file for random reading."""
    fs, path = _filesystem(uri, access)
    with _all_translated(uri):
        return cast(BinaryIO, _ForeignFile(fs.open(path, "rb"), uri))


def read_start(uri: str, max_bytes: int, access: Access = None) -> bytes:
    """The first bytes of a file; whatever its client raises is judged, see unserved.py."""
    fs, path = _filesystem(uri, access)
    with _all_translated(uri):
        try:
            with fs.open(path, "rb") as file:
                return cast(bytes, file.read(max_bytes))
        except Exception as error:
            if (whose := judge(error)) is Whose.STORE:
                raise
            raise unserved(uri, whose, f"{type(error).__name__}: {brief(error)}") from error


def prove_folder(uri: str, access: Access = None) -> None:
    """Raise what keeps a folder from being looked at; few kinds of storage tell whether there is
    one, so that an answer is enough."""
    fs, path = _filesystem(uri, access)
    with _all_translated(uri):
        try:
            fs.info(path)
        except Exception as error:
            if judge(error) is Whose.STORE:
                raise


def absolute(uri: str) -> str:
    """The same place, independent of the working directory."""
    if "://" in uri:
        return uri
    return str(Path(with_home(uri)).absolute())


def would_list(uri: str, path: str) -> bool:
    """Tell whether a source names a place, or would if a file stood there; nothing is looked at.

    Args:
        uri: a path, a glob or a folder (recursive) of a source.
        path: of a file, visible or not.
    """
    named, place = _resolved(uri).rstrip("/"), _resolved(path)
    if place.startswith(f"{named}/"):
        return not is_hidden(place.removeprefix(f"{named}/"))
    root = fixed_prefix(named)
    is_named = root != named and glob_matcher(named)(place)
    return bool(is_named) and not is_hidden(place.removeprefix(f"{root}/"))


def is_hidden(name: str) -> bool:
    """Tell whether readers pass over a file of a source by its name, relative to that source.

    `_date=2026-11-01/` is data, as it is to Spark.
    """
    return any(
        part.startswith(".") or (part.startswith("_") and "=" not in part)
        for part in name.split("/")
    )


def _resolved(uri: str) -> str:
    """A place with the links of a local one followed; of a cloud's by one name of its scheme,
    without the account that may stand beside a container."""
    place = absolute(uri.removeprefix("file://"))
    scheme, separator, rest = place.partition("://")
    if not separator:
        return os.path.realpath(place)
    library = library_of(scheme)
    bucket, slash, key = rest.partition("/")
    if library == "az":
        bucket = bucket.partition("@")[0]
    return f"{library}://{bucket}{slash}{key}"


def fixed_prefix(pattern: str) -> str:
    """The folder that a glob pattern starts with, before its first wildcard."""
    fixed = []
    for part in pattern.split("/"):
        if any(c in part for c in "*?["):
            break
        fixed.append(part)
    return "/".join(fixed)


def glob_matcher(pattern: str) -> Callable[[str], object]:
    """Tell of a path whether a glob pattern names it."""
    try:
        return re.compile(fsspec.utils.glob_translate(pattern)).match
    except (ValueError, re.error) as error:
        raise JobError(f"{pattern}: not a glob pattern: {brief(error)}") from error


@contextmanager
def _all_translated(uri: str) -> Iterator[None]:
    """Turn whatever a kind of storage raises into our own error: fsspec hands out the exceptions
    of any client, and these have no common base."""
    try:
        with translated(uri):
            yield
    except LdmBatchError:
        raise
    except Exception as error:
        raise StorageError(f"{uri}: {type(error).__name__}: {brief(error)}") from error


class _ForeignFile(io.RawIOBase):
    """A file of any kind of storage, open for reading, whose trouble is told in our errors."""

    def __init__(self, file: Any, uri: str) -> None:
        """Take over an open file: it is closed with this one."""
        self._file, self._uri = file, uri

    def readable(self) -> bool:
        """It can be read."""
        return True

    def seekable(self) -> bool:
        """It can be read anywhere."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        with _all_translated(self._uri):
            return int(self._file.tell())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to where the next read begins."""
        with _all_translated(self._uri):
            return int(self._file.seek(offset, whence))

    def read(self, size: int = -1, /) -> bytes:
        """Read up to `size` bytes, all that are left if negative; fewer only at the end."""
        with _all_translated(self._uri):
            return cast(bytes, self._file.read(size))

    def readall(self) -> bytes:
        """Read all that is left."""
        return self.read()

    def readinto(self, buffer: Any, /) -> int:
        """Read into a buffer."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the file that was taken over."""
        if not self.closed:
            super().close()
            with _all_translated(self._uri):
                self._file.close()


def _filesystem(uri: str, access: Access) -> tuple[AbstractFileSystem, str]:
    protocol = protocol_of(uri)
    if "::" in uri:
        raise JobError(f"{uri}: {protocol}:// is not supported; name the files themselves")
    options = {**options_of(protocol, access), **FIXED}
    with _all_translated(uri):
        try:
            fs, path = url_to_fs(absolute(uri), **options)
        except (ValueError, ImportError) as error:
            raise JobError(
                f"{uri}: {protocol}:// is not supported here: {error}; use a path "
                "or s3://, or install what fsspec needs for it"
            ) from error
    return fs, path


def protocol_of(uri: str) -> str:
    """`file` for paths, `s3`, ...: what stands before `://`."""
    protocol = str(fsspec.utils.get_protocol(uri)).lower()
    return "file" if protocol == "local" else protocol


def _below(fs: AbstractFileSystem, folder: str) -> Iterator[Mapping[str, Any]]:
    """Everything below a folder; fsspec's own `find` leaves out folders that it may not read."""
    for info in fs.ls(folder, detail=True):
        if info["type"] == "directory":
            yield from _below(fs, info["name"])
        else:
            yield info


def _files_among(
    fs: AbstractFileSystem, listing: Iterable[Mapping[str, Any]]
) -> Iterator[Mapping[str, Any]]:
    """Files of a listing, links followed; a broken link counts as an empty file."""
    for info in listing:
        if (followed := _followed(fs, info))["type"] == "file":
            yield followed


def _followed(fs: AbstractFileSystem, info: Mapping[str, Any]) -> Mapping[str, Any]:
    if not info.get("islink"):
        return info
    path = info["name"]
    return fs.info(path) if fs.exists(path) else {**info, "type": "file", "size": 0}


def _found(fs: AbstractFileSystem, info: Mapping[str, Any], root: str) -> SourceFile:
    """Whatever stands in a folder; of what is no Parquet file not much is asked."""
    followed = _followed(fs, info)
    if followed["type"] == "file" and is_parquet_name(info["name"]):
        return replace(_source_file(fs, {**followed, "name": info["name"]}, root), is_found=True)
    trouble = {"file": "", "directory": "a link to a folder"}.get(followed["type"], "no file")
    known = {**followed, "name": info["name"], "size": followed.get("size") or 0}
    return replace(_source_file(fs, known, root), is_found=True, trouble=trouble)


def _source_file(fs: AbstractFileSystem, info: Mapping[str, Any], root: str) -> SourceFile:
    path = str(info["name"])
    version = next((info[key] for key in ("ETag", "mtime", "LastModified") if info.get(key)), "")
    name = path.removeprefix(root).lstrip("/")
    uri = path if "file" in fs.protocol else fs.unstrip_protocol(path)
    if info.get("size") is None:
        raise StorageError(f"{uri}: its size is not known, so it cannot be read in parts")
    return SourceFile(name, uri, int(info["size"]), str(version))


FILES = Kind(list_files, open_for_reading, read_start, prove_folder)

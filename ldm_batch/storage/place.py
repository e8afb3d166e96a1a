"""What every place that holds objects can do, and the values that it answers with.

The words that the kinds of storage share; must not know any one of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import BinaryIO, Protocol

from ldm_batch.config import S3Config
from ldm_batch.config.storage import StorageAccess
from ldm_batch.errors import NoRoomError, StorageError, is_no_room

PARQUET_SUFFIXES = (".parquet", ".parq", ".pq")
COPY_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A listed input file; `name` is its path relative to the source it was found in."""

    name: str
    uri: str
    size_bytes: int
    version: str
    is_found: bool = field(default=False, compare=False)
    """It stands in a folder that is named, and is not named itself or by a glob."""
    trouble: str = ""
    """Why nothing can be read there, where that shows: a link to a folder, ..."""


class Creation(StrEnum):
    """What became of an attempt to create an object."""

    WON = "won"
    LOST_TO_SAME = "lost_to_same"
    """Another attempt created it first, with the same bytes."""
    LOST_TO_OTHER = "lost_to_other"
    """Another attempt created it first, with other bytes; these stand."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """What a crash left behind: a temporary object, or an upload that was never completed."""

    path: str
    modified_at: float
    """Seconds since the epoch."""
    upload_id: str | None = None


def is_parquet_name(name: str) -> bool:
    """Tell whether a file in a folder is taken for Parquet; its name alone says so."""
    return name.lower().endswith(PARQUET_SUFFIXES)


class Place(Protocol):
    """A folder of whole objects at relative paths; nothing is cached.

    Every method raises `StorageError` where it cannot do what it says.
    """

    def names(self, folder: str) -> set[str]:
        """Names directly below a folder; empty where the folder is not there."""

    def modified_at(self, folder: str) -> dict[str, float]:
        """When each object directly below a folder appeared, by name; empty where the folder is
        not there. Seconds since the epoch, by the store's own clock."""

    def has(self, path: str) -> bool:
        """Tell whether an object is there."""

    def open(self, path: str) -> BinaryIO:
        """Open an object for random reading."""

    def read(self, path: str) -> bytes | None:
        """All bytes of an object, or None where it is not there."""

    def create(self, path: str, content: BinaryIO) -> Creation:
        """Make an object appear whole, unless there is one already."""

    def compare(self, path: str, content: BinaryIO) -> Creation:
        """Tell whether the object that is there holds these bytes or other ones."""

    def replace(self, path: str, content: BinaryIO) -> None:
        """Make an object appear whole, in place of one that is there."""

    def remove(self, path: str) -> None:
        """Remove an object; nothing happens where it is not there."""

    def remove_empty_folders(self) -> None:
        """Remove the folders that this process made and nothing stands in."""

    def why_careless(self) -> str:
        """Why a second create replaced the first, where that is known; else nothing."""

    def leftovers(self) -> Iterator[Leftover]:
        """What crashed writers left behind."""

    def remove_leftover(self, leftover: Leftover) -> None:
        """Remove a leftover; nothing happens where it is gone."""


Access = StorageAccess | S3Config | None
"""How a place is reached, S3's section alone being enough for S3: opaque to all but the module of
its scheme; see `access` of a source or a sink."""


def as_access(access: Access) -> StorageAccess:
    """How a place is reached, where only S3's section was given, or nothing."""
    if isinstance(access, StorageAccess):
        return access
    return StorageAccess(access or S3Config())


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of storage: what its module offers for URLs of its schemes."""

    list_files: Callable[[str, Access], list[SourceFile]]
    """The files that a URL, a glob or a folder (recursive) names, of a folder all that is in it;
    empty where there is nothing."""
    open_for_reading: Callable[[str, Access], BinaryIO]
    """A file for random reading."""
    read_start: Callable[[str, int, Access], bytes]
    """The first so many bytes of a file. Raises `UnservedError` where the file is not there or not
    to be had, `StorageError` where the store is in trouble; see unserved.py."""
    prove_folder: Callable[[str, Access], None]
    """Ask for the folder, or prefix, that files stand below. Raises `StorageError` where it cannot
    be reached now, `AccessError` where it is closed to us."""
    open_place: Callable[[str, Access], Place] | None = None
    """A folder that can hold a dataset; None: input only."""


@contextmanager
def translated(place: str) -> Iterator[None]:
    """Turn what the operating system complains of into our own error, with the place's name."""
    try:
        yield
    except OSError as error:
        kind = NoRoomError if is_no_room(error) else StorageError
        raise kind(f"{place}: {error.strerror or brief(error)}") from error


def brief(error: BaseException) -> str:
    """An error in one line, which is never empty."""
    lines = str(error).splitlines()
    return lines[0] if lines and lines[0] else type(error).__name__


def content_digest(content: BinaryIO) -> str:
    """SHA-256 (hexadecimal) of a file, read from its start."""
    content.seek(0)
    sha256 = hashlib.sha256()
    while block := content.read(COPY_BYTES):
        sha256.update(block)
    return sha256.hexdigest()

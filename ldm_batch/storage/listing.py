"""Which files of a source are read, by their names alone, and what is told of all others.

Must not know what stands in a file, nor plans.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from ldm_batch.errors import JobError, StorageError
from ldm_batch.storage.files import is_hidden
from ldm_batch.storage.kinds import kind_of
from ldm_batch.storage.place import PARQUET_SUFFIXES, Access, SourceFile
from ldm_batch.storage.sources import is_text, read_file
from ldm_batch.storage.tables import (
    WHAT_IS_READ,
    first_kind,
    is_table,
    kinds_of,
    text_format,
    why_beside,
)

HIDDEN = "hidden (a name starts with '.' or '_')"
EMPTY = "empty"
PARQUET_MAGIC = b"PAR1"
NAMED = "named"
ONLY_IF_NAMED = " (JSON lines where a path or a glob names them)"
MAX_NAMES = 8
"""Endings of names that are told apart; the rarest are told together."""
_ENDING = re.compile(r"[^/.][^/]*(\.[A-Za-z][A-Za-z0-9_-]{0,15})")
_TABLES = {
    "Delta": re.compile(r"(.*/)?_delta_log/[^/]+\.json"),
    "Hudi": re.compile(r"(.*/)?\.hoodie/.+"),
    "Iceberg": re.compile(r"(.*/)?metadata/[^/]+\.metadata\.json(\.gz)?"),
}
"""Kind of a table -> a file that its folder has, below a source."""


class Listing(NamedTuple):
    """What a source names."""

    files: list[SourceFile]
    """What is to be read, in order of their names."""
    notes: list[str]
    """A line for each reason why files are not: how many, and one of them."""
    tables: list[str]
    """Folders whose own log says which of their files count, which is not followed."""


@dataclass
class _Left:
    """Files that are not read for one reason."""

    number: int = 0
    first: str = ""
    largest: SourceFile | None = None


@dataclass
class Omissions:
    """How many files are not read, by reason."""

    _by_reason: dict[str, _Left] = field(default_factory=dict)

    def add(self, why: str, file: SourceFile) -> None:
        """Count a file."""
        left = self._by_reason.setdefault(why, _Left())
        left.number += 1
        left.first = min(left.first or file.uri, file.uri)
        left.largest = min(left.largest or file, file, key=lambda f: (-f.size_bytes, f.uri))

    def told(self, access: Access = None) -> list[str]:
        """A line for each reason; of files with other names the largest is looked into.

        Args:
            access: how to reach them.
        """
        return list(self._lines(access))

    def _lines(self, access: Access) -> Iterator[str]:
        named = [why for why in self._by_reason if why.startswith(NAMED)]
        rarest = sorted(named, key=lambda why: (-self._by_reason[why].number, why))[MAX_NAMES:]
        for why, left in sorted(self._by_reason.items()):
            if why in rarest:
                continue
            example, inside = left.first, ""
            if why.startswith(NAMED) and left.largest and _is_parquet(left.largest, access):
                example = left.largest.uri
                inside = ", which is Parquet inside: name such files by a glob to read them"
            if left.number == 1:
                yield f"{shown(example)}: {why}{inside}"
            else:
                yield f"{left.number:,} files: {why}, such as {shown(example)}{inside}"
        if rarest:
            number = sum(self._by_reason[why].number for why in rarest)
            example = self._by_reason[rarest[0]].first
            yield f"{number:,} files: {NAMED} otherwise, such as {shown(example)}"


def list_source(
    uris: Sequence[str],
    access: Access = None,
    *,
    may_be_gone: Collection[str] = (),
    planned: Collection[str] = frozenset(),
) -> Listing:
    """List the tables of paths, globs and folders (recursive), in order of their names.

    What is named itself, or by a glob, is read whatever its name ends with; of a folder, only the
    first kind of files that it has, and the kinds that a dataset has of it.

    Args:
        uris: local paths or URLs.
        access: how to reach them.
        may_be_gone: those of them at which nothing need be any more.
        planned: names of the files that a dataset has already.

    Raises:
        JobError: nothing is there, two files would have the same name, or one file two.
    """
    found: dict[str, SourceFile] = {}
    left: dict[str, tuple[str, SourceFile]] = {}
    tables: list[str] = []
    gone: list[str] = []
    for uri in uris:
        files = kind_of(uri).list_files(uri, access)
        for file in _readable(files, left, planned):
            if found.setdefault(file.name, file).uri != file.uri:
                raise JobError(
                    f"source.uri: {found[file.name].uri} and {file.uri} would both be named "
                    f"{file.name!r}; name the folder above them, or a glob, in place of a list"
                )
        tables += _tables(uri, files)
        if any(is_table(file.name) or not file.is_found for file in files):
            continue
        if uri in may_be_gone:
            gone.append(f"{uri}: nothing is there any more")
        else:
            raise JobError(
                f"source.uri: nothing found at {uri}; name a Parquet file, a glob, or a folder "
                f"of files that end with {', '.join(WHAT_IS_READ)}"
                + "".join(f"\n  skipped {note}" for note in _counted(left).told(access))
            )
    files = sorted(found.values(), key=lambda file: file.name)
    _refuse_twice(files, planned)
    for file in files:
        left.pop(file.uri, None)  # another of the places names it
    return Listing(files, [*gone, *_counted(left).told(access)], tables)


def _refuse_twice(files: Sequence[SourceFile], planned: Collection[str]) -> None:
    """Refuse a file that two places of a source name otherwise, but for what was planned so."""
    names: dict[str, str] = {}
    for file in files:
        first = names.setdefault(file.uri, file.name)
        if first != file.name and not (first in planned and file.name in planned):
            raise JobError(
                f"source.uri: {file.uri} would be read twice, as {first!r} and as {file.name!r}; "
                "leave out one of the places that name it"
            )


def _counted(left: Mapping[str, tuple[str, SourceFile]]) -> Omissions:
    omissions = Omissions()
    for why, file in left.values():
        omissions.add(why, file)
    return omissions


def was_listed_before(file: SourceFile) -> bool:
    """Tell whether a file was read by the code that made plans without `carried`: those grow by
    these alone."""
    is_hidden_then = any(part.startswith((".", "_")) for part in file.name.split("/"))
    return not is_hidden_then and (not file.is_found or file.name.endswith(PARQUET_SUFFIXES))


def shown(place: str) -> str:
    """A place that can be printed: the name of a file may hold any bytes."""
    return place if is_text(place) and place.isprintable() else ascii(place)


def _readable(
    files: Sequence[SourceFile],
    left: dict[str, tuple[str, SourceFile]],
    planned: Collection[str],
) -> Iterator[SourceFile]:
    """Those that are to be read; the others are left, by their places."""
    whys = {file.uri: _why_not(file) for file in files}
    names = [file.name for file in files if file.is_found and not whys[file.uri]]
    kinds = {first_kind(names), *kinds_of(name for name in names if name in planned)}
    for file in files:
        why = whys[file.uri]
        if why or (file.is_found and (why := why_beside(kinds, file.name))):
            left[file.uri] = (why, file)
        elif not is_text(file.uri):
            raise JobError(
                f"source.uri: {file.uri!a}: its name is no text in UTF-8, which no plan "
                "could record; rename it"
            )
        else:
            yield file


def _why_not(file: SourceFile) -> str:
    """Why a file is not read, in words; empty where it is."""
    if is_hidden(file.name):
        return HIDDEN
    if file.trouble:
        return file.trouble
    if file.is_found and not is_table(file.name):
        ending = _ENDING.fullmatch(file.name.rpartition("/")[2])
        if ending is None:
            return f"{NAMED} without an ending"
        is_text_if_named = text_format(file.name) is not None
        return f"{NAMED} *{ending[1]}{ONLY_IF_NAMED * is_text_if_named}"
    return "" if file.size_bytes else EMPTY


def _tables(uri: str, files: Sequence[SourceFile]) -> Iterator[str]:
    for kind, pattern in _TABLES.items():
        for file in files:
            if file.is_found and (match := pattern.fullmatch(file.name)):
                folder = f"{uri.rstrip('/')}/{match[1] or ''}".rstrip("/")
                article = "an" if kind[0] in "AEIOU" else "a"
                yield f"{folder} is {article} {kind} table"
                break


def _is_parquet(file: SourceFile, access: Access) -> bool:
    with suppress(StorageError):
        return read_file(file.uri, len(PARQUET_MAGIC), access) == PARQUET_MAGIC
    return False

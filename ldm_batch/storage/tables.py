"""Which files are tables, by their names, and which of a folder are read together.

Knows names only; must not know what stands in a file, nor any kind of storage.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from ldm_batch.storage.place import PARQUET_SUFFIXES, is_parquet_name

FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".txt": "text",
}
"""End of a name -> how its lines are read."""
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
"""A second end of a name -> how its bytes are unpacked."""
NAMED_ONLY = (".json",)
"""Read where they are named, and not where they stand in a folder: most are no tables."""
KINDS = ("Parquet files", "CSV and JSON lines files", "text files")
"""Of a folder only the first kind is read that it has, and those that it was planned with."""
WHAT_IS_READ = (*PARQUET_SUFFIXES, *(end for end in FORMATS if end not in NAMED_ONLY))


class TextFormat(NamedTuple):
    """How a file of text is read, by its name."""

    lines: str
    """`csv`, `tsv`, `json` (one object a line) or `text` (one prompt a line)."""
    compression: str | None
    """`gzip`, `bz2`, `zstd`; None: it is plain."""


def text_format(name: str) -> TextFormat | None:
    """How a file is read if it is text by its name; None: it is taken for Parquet."""
    bare, dot, last = name.lower().rpartition(".")
    compression = COMPRESSIONS.get(f".{last}") if dot else None
    if compression is not None:
        _, dot, last = bare.rpartition(".")
    lines = FORMATS.get(f".{last}") if dot else None
    return None if lines is None else TextFormat(lines, compression)


def is_table(name: str) -> bool:
    """Tell whether a file is read where its folder is named."""
    if is_parquet_name(name):
        return True
    ends = name.lower().split(".")[-2:]
    return text_format(name) is not None and not any(f".{end}" in NAMED_ONLY for end in ends)


def first_kind(names: Iterable[str]) -> int:
    """The kind of files, by number, that a folder is read as: the first that it has."""
    return min(kinds_of(names), default=0)


def kinds_of(names: Iterable[str]) -> set[int]:
    """The kinds of files, by number."""
    return set(map(_kind_of, names))


def why_beside(kinds: Collection[int], name: str) -> str:
    """Why a table is not read where a folder is read as some kinds; empty where it is.

    A README.txt beside prompts is no prompt. Files that are named, by a glob too, are all read.
    """
    told = f"beside {KINDS[min(kinds)]} (a folder is read as one kind; a glob names others, too)"
    return "" if _kind_of(name) in kinds else told


def _kind_of(name: str) -> int:
    found = text_format(name)
    if found is None:
        return 0
    return 2 if found.lines == "text" else 1

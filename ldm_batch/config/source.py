"""The table that a job reads, and the checks of that."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ldm_batch.columns import IMAGE_COLUMNS, TaskColumns
from ldm_batch.config.bounds import one_of, suggest, within
from ldm_batch.config.places import PLACE
from ldm_batch.config.s3 import S3Config
from ldm_batch.config.storage import StorageAccess
from ldm_batch.config.text import check_text

LongPrompts = Literal["truncate", "reject"]
LONG_PROMPT_POLICIES: tuple[LongPrompts, ...] = get_args(LongPrompts)


@dataclass
class SourceConfig:
    """The table whose rows become images: of prompts, of images to enlarge, ..."""

    kind: str | None = None
    """An older name of `task`: `prompts` or `images`; not for new jobs."""
    uri: Any = field(default=None, metadata=PLACE)
    """A file (Parquet; CSV, TSV, JSON lines or text, also as .gz, .bz2, .zst), a glob, a folder
    (recursive), or a list of these; paths or URLs. Of a folder one kind of files is read, by the
    ends of their names in any case, hidden names left out; a plan counts the rest."""
    s3: S3Config = field(default_factory=S3Config)
    """How to reach the input where it is in S3."""
    storage: dict[str, Any] = field(default_factory=dict)
    """Options of fsspec for the input's store, e.g. `{project: p}` of `gs://`: a closed list for
    each kind of URL, never credentials."""
    columns: dict[str, str | None] = field(default_factory=dict)
    """Field -> column name, e.g. `{prompt: caption}`; unmapped fields use a column of their name
    where the input has one (`guidance_rescale` does not); `null` ignores such a column. Folders
    below `uri` such as `topic=cats/` are columns, too: whole numbers where all are, else text."""
    carry: list[str] = field(default_factory=list)
    """Extra columns copied unchanged to the output, in one type for all files; what `datasets`
    cannot read is refused."""
    max_prompt_chars: int = 4096
    """Longer prompts are rejected before the tokenizer sees them."""
    long_prompts: str = "truncate"
    """Prompts past the text encoder's tokens: `truncate` (recorded) or `reject`."""
    image_root: str | None = field(default=None, metadata=PLACE)
    """Folder or URL below which the paths of images must stand, and to which relative ones are
    relative, links followed; null: the folder of the Parquet file, if that is not `/`."""
    max_image_bytes: int = 32 * 1024 * 1024
    """Larger image files are rejected unread."""
    max_image_pixels: int = 1024 * 1024
    """Images of more pixels are rejected before they are decoded."""
    max_side: int | None = None
    """Longest side in pixels of an image that a row may ask for, as it is stored, after all that
    enlarges it; rows that ask for more are rejected. Null: what the columns and the format take."""
    carry_parent: bool = True
    """Copy the columns of a dataset of ours to what is made of its images; `parent_` is put before
    names that the new dataset has itself."""
    types: dict[str, str] = field(default_factory=dict)
    """Column -> type of what is text in the input (CSV, JSON lines), e.g. `{score: float64}`: of
    columns that are carried along. Others stay text; numbers that a job uses are read of it."""
    encoding: str = "utf-8"
    """Of text in the input."""
    delimiter: str | None = None
    """Between the cells of CSV: one character, or `tab`; null: a comma, and a tab in .tsv."""
    allow_touched: bool = False
    """Accept planned files whose time stamp changed while size and footer did not."""

    @property
    def access(self) -> StorageAccess:
        """How its storage is reached, for storage/ alone to read."""
        return StorageAccess(self.s3, self.storage)


def source_uris(source: SourceConfig) -> list[Any]:
    """The places that a source names, one or several, as a list of texts."""
    uris = source.uri if isinstance(source.uri, list) else [source.uri]
    return [os.fspath(uri) if isinstance(uri, os.PathLike) else uri for uri in uris]


def check_source(source: SourceConfig, task: TaskColumns) -> Iterator[str]:
    """Problems of the fields of `source`, a line each."""
    yield from one_of("source.long_prompts", source.long_prompts, LONG_PROMPT_POLICIES)
    yield from within("source.max_prompt_chars", source.max_prompt_chars, 1, 1_000_000)
    yield from within("source.max_image_bytes", source.max_image_bytes, 1, 2**30)
    yield from within("source.max_image_pixels", source.max_image_pixels, 1, 2**26)
    yield from within("source.max_side", source.max_side, 8, 2**20)
    uris = source_uris(source)
    if source.uri is None or not uris:
        yield "source.uri: not set; name a Parquet file, a glob, a folder, or a list of these"
    elif not all(isinstance(uri, str) and uri for uri in uris):
        yield f"source.uri: {source.uri!r} is not a path or a list of paths"
    yield from _check_columns(source, task)
    yield from check_text(source.encoding, source.delimiter, source.types)


def _check_columns(source: SourceConfig, task: TaskColumns) -> Iterator[str]:
    for name in source.columns:
        if name not in task.fields:
            yield f"source.columns.{name}: unknown field{suggest(name, task.fields)}"
    for name in task.needed:
        if source.columns.get(name, name) is None:
            yield f"source.columns.{name}: null, but every row must have one"
    for name in source.carry:
        if name in IMAGE_COLUMNS or name in task.recorded:
            yield f"source.carry: {name!r} is already a column of the output"
    repeated = {name for name in source.carry if source.carry.count(name) > 1}
    if repeated:
        yield f"source.carry: {sorted(repeated)} named twice"

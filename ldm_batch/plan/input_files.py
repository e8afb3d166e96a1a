"""The files of a dataset's input, by their names, and what a stored plan says of their columns.

A plan of earlier code grows by what that code read. Must not know rows or shards.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

from ldm_batch.columns import TaskColumns
from ldm_batch.config import SourceConfig, source_uris
from ldm_batch.errors import JobError
from ldm_batch.plan.input_columns import find_columns_of
from ldm_batch.plan.stored import Plan
from ldm_batch.read.folders import folder_values
from ldm_batch.read.footer import Footer
from ldm_batch.read.input_types import InputTypes
from ldm_batch.storage import SourceFile, is_parquet_name, list_source, was_listed_before


def list_input(
    source: SourceConfig, planned: Plan | None, *, may_be_gone: Collection[str] = ()
) -> tuple[list[SourceFile], list[str]]:
    """The files that count for a dataset, and what is told of those that do not.

    Args:
        may_be_gone: places of the source at which nothing need be any more.

    Raises:
        JobError: nothing is there; or a dataset is to begin with a table whose log says which of
            its files count.
    """
    known = {shard.file.name for shard in planned.shards} if planned else set()
    files, notes, tables = list_source(
        source_uris(source), source.access, may_be_gone=may_be_gone, planned=known
    )
    notes = [f"skipped {note}" for note in notes]
    for table in tables:
        what = (
            f"{table}: its log says which of its files count, which is not read, so that rows "
            "would count that were deleted or replaced"
        )
        if planned is None:
            raise JobError(
                f"source.uri: {what}; write what it holds now as plain Parquet, or name the files "
                "that count by a list or a glob, such as FOLDER/*.parquet"
            )
        notes.append(f"warning: {what}")
    if planned is None:
        notes += _above(source_uris(source))
    if planned is None or planned.knows_folders:
        return files, notes
    before = [file for file in files if was_listed_before(file)]
    if more := [file.uri for file in files if not was_listed_before(file)]:
        notes.append(
            f"skipped {len(more):,} files, such as {more[0]}: this dataset was planned by an "
            "earlier version, which passed over names like that; a new sink would have them"
        )
    columns = {key: file.uri for file in reversed(before) for key in folder_values(file.name)}
    if columns:
        notes.append(
            f"folders that name columns ({', '.join(sorted(columns))}) are none of this dataset, "
            f"which an earlier version planned, such as {columns[min(columns)]}; a new sink would "
            "have them"
        )
    return before, notes


def _above(uris: Sequence[str]) -> list[str]:
    """A word on folders that would be columns, if they stood below what is named."""
    parts = {part for uri in uris for part in uri.split("/") if "*" not in part}
    named = [
        part for part in sorted(parts) if not is_parquet_name(part) and folder_values(f"{part}/")
    ]
    if not named:
        return []
    return [
        f"folders that source.uri itself names are no columns: {', '.join(named)}; name the folder "
        "above them to have these"
    ]


def types_now(
    source: SourceConfig,
    task: TaskColumns,
    planned: Plan,
    known: SourceFile | None,
    read_footers: Callable[[Sequence[SourceFile]], Iterator[Footer]],
) -> InputTypes:
    """What the job carries now, with the plan's types of it; what the plan has not has the type
    that it has in a planned file.

    Args:
        known: a planned file that is found.
        read_footers: reads it.

    Raises:
        JobError: a planned file cannot be read, or lacks a column.
    """
    planned_types = planned.types
    words = dict.fromkeys(source.carry, "")
    if known and (task.has_image or words.keys() != planned_types.words.keys()):
        [footer] = read_footers([known])
        _, found = find_columns_of(footer, known.name, known.uri, task, source, planned_types)
        words = {name: str(kind) for name, kind in found.carried.items()}
    elif task.has_image:
        words = dict(planned_types.words)
    now = {name: planned_types.words.get(name, kind) for name, kind in words.items()}
    return InputTypes(planned_types.carried, planned_types.folders, now)

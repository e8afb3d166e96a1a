"""The plan: input files cut into shards, and what is left to do.

A plan only grows: new input files append shards, nothing renumbers one. Reads footers, never
rows; must not know pipelines or workers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ldm_batch.columns import TaskColumns
from ldm_batch.config import JobConfig, SourceConfig, source_uris
from ldm_batch.errors import JobError
from ldm_batch.plan.cut import (
    NewFile,
    cut_files,
    describe_unknown_sizes,
    look_at,
    settle_rows_per_shard,
)
from ldm_batch.plan.input_columns import (
    FoundColumns,
    describe_folders,
    describe_used,
    refuse_other_columns,
    settle_types,
)
from ldm_batch.plan.input_files import types_now
from ldm_batch.plan.inputs import Inputs
from ldm_batch.plan.other_settings import refuse_other_fingerprint
from ldm_batch.plan.stored import PLAN_AGAIN, Plan
from ldm_batch.read import footer as footers
from ldm_batch.read.footer import Footer
from ldm_batch.read.input_types import InputTypes
from ldm_batch.records import InputFile, Shard, StoredInput
from ldm_batch.storage import Omissions, SourceFile, Store

Identify = Callable[[InputTypes], Mapping[str, Any]]
"""Types of the input's columns -> the job's own plan document (see `plan_document`)."""


def make_plan(
    job: JobConfig,
    store: Store,
    planned: Plan | None,
    inputs: Inputs,
    *,
    task: TaskColumns,
    identify: Identify,
    native_size: tuple[int, int],
) -> Plan:
    """Match the input against the stored plan and append shards for files that are new.

    Args:
        job: a validated job.
        store: the sink.
        planned: the plan that the sink holds, if any.
        inputs: of the job, looked at beside that plan.
        task: the columns of the job's task.
        identify: makes the job's document, once the types of its input's columns are known.
        native_size: the model's own height and width in pixels.

    Raises:
        JobError: the job has another fingerprint than the plan, an input file changed or is gone,
            or the input cannot be read.
    """
    notes = [*inputs.notes, *inputs.describe_unused()]
    known = {shard.file.name: shard.file for shard in planned.shards} if planned else {}
    if planned:
        types = types_now(job.source, task, planned, inputs.sample(known), inputs.read_footers)
        refuse_other_fingerprint(planned.document, identify(types), store)
        job, ignored = _as_planned(job, planned)
        notes += ignored
    here = _match_known(job.source, inputs.files, known, inputs)
    away = known.keys() - here.keys()
    gone = frozenset(name for name in away if not inputs.stands(known[name]))
    new_files, told = _look_at_new(
        inputs,
        [file for file in inputs.files if file.name not in known],
        _rename_guard([known[name] for name in away], inputs),
        look=partial(
            look_at, job, task, native_size=native_size, types=planned.types if planned else None
        ),
    )
    notes += told
    if not planned and not new_files:
        uris = ", ".join(source_uris(job.source))
        raise JobError("\n  ".join([f"source.uri: no rows in {uris}", *notes]))
    types, told = _types_of(job.source, task, planned, [new.columns for new in new_files])
    notes += told
    before = planned
    if before is None:
        job, document = settle_rows_per_shard(job, new_files, identify(types))
        before = Plan(document, shards=(), num_segments=0)
    notes += describe_unknown_sizes(job, new_files)
    shards = tuple(_moved(shard, here.get(shard.file.name)) for shard in before.shards)
    new = tuple(cut_files(job, new_files, first=len(shards)))
    plan = replace(before, shards=(*shards, *new), new_shards=new)
    return replace(plan, gone_files=gone, notes=tuple(notes))


def _types_of(
    source: SourceConfig, task: TaskColumns, planned: Plan | None, found: Sequence[FoundColumns]
) -> tuple[InputTypes, list[str]]:
    """The types of the input's columns, the plan's if there is one, and what to tell of them.

    Raises:
        JobError: a new file has columns that fit no type of them; it is named.
    """
    if planned is None:
        types = settle_types(found, task)
        return types, list(describe_folders(found, types, late=()))
    for columns in found:
        refuse_other_columns(columns, planned.types, is_exact=planned.knows_folders)
    late = set(task.fields) - source.columns.keys()
    return planned.types, list(describe_folders(found, planned.types, late))


def _look_at_new(
    inputs: Inputs,
    files: Sequence[SourceFile],
    refuse_renamed: Callable[[SourceFile, Footer], None],
    *,
    look: Callable[[SourceFile, Footer], NewFile],
) -> tuple[list[NewFile], list[str]]:
    """What cutting needs of files that are not planned yet, and what to tell of them."""
    new_files: list[NewFile] = []
    without = Omissions()
    notes: list[str] = []
    for file, footer in zip(files, inputs.read_footers(files), strict=True):
        refuse_renamed(file, footer)
        if footer.num_rows == 0:
            without.add(f"no rows{inputs.why_empty(file)}", file)
            continue
        new = look(file, footer)
        stored = inputs.stored(file)
        new_files.append(replace(new, file=replace(new.file, stored=stored)) if stored else new)
        notes += inputs.describe(file)
    unread = dict.fromkeys(line for new in new_files for line in new.unread)
    used = describe_used([new.columns for new in new_files])
    skipped = [f"skipped {note}" for note in without.told()]
    return new_files, [*notes, *used, *unread, *skipped]


def _moved(shard: Shard, file: InputFile | None) -> Shard:
    """A planned shard, of its file where that is found now."""
    return shard if file is None or file is shard.file else replace(shard, file=file)


def _as_planned(job: JobConfig, planned: Plan) -> tuple[JobConfig, list[str]]:
    """The job with the `rows_per_shard` that its dataset was planned with, and a word if it asked
    for another."""
    num_rows = int(planned.document["config"]["rows_per_shard"])
    settled = replace(job, rows_per_shard=num_rows)
    if job.rows_per_shard in (num_rows, "auto"):
        return settled, []
    note = f"rows_per_shard: {job.rows_per_shard} ignored, the dataset was planned with {num_rows}"
    return settled, [note]


def select_shards(
    plan: Plan, done: set[int], *, named: Sequence[range], overwrite: bool
) -> list[Shard]:
    """The shards to do: the named ones (all of them with `overwrite`), else all that are missing.

    Raises:
        JobError: a named shard is not in the plan, or the input of a shard to do is gone.
    """
    for indices in named:
        if indices[-1] >= len(plan.shards):
            last = len(plan.shards) - 1
            raise JobError(f"shards: no shard {indices[-1]}; the plan has 0 to {last}")
    chosen = {index for indices in named for index in indices}
    wanted = [plan.shards[index] for index in sorted(chosen)] if named else plan.shards
    selected = [shard for shard in wanted if overwrite or shard.index not in done]
    gone = sorted({shard.file.name for shard in selected} & plan.gone_files)
    if gone:
        raise JobError(
            f"source.uri: planned input is gone: {', '.join(gone[:5])}; put it back, or make only "
            "shards of other files with shards=[...]" + (f". {PLAN_AGAIN}" if not done else "")
        )
    return selected


def _match_known(
    source: SourceConfig,
    listed: Sequence[SourceFile],
    known: Mapping[str, InputFile],
    inputs: Inputs,
) -> dict[str, InputFile]:
    """Planned files as they are found now, by name; refuses files that changed."""
    here: dict[str, InputFile] = {}
    for file in listed:
        before = known.get(file.name)
        if before is None:
            continue
        if (file.size_bytes, file.version) != (before.size_bytes, before.version):
            if before.stored is None:
                _refuse_changed(source, file, before)
            elif not inputs.is_same_text(file, before):
                _refuse_changed_text(file, before)
        here[file.name] = before if file.uri == before.uri else replace(before, uri=file.uri)
    return here


def _refuse_changed(source: SourceConfig, file: SourceFile, before: InputFile) -> None:
    changes = []
    if file.size_bytes != before.size_bytes:
        changes.append(f"{before.size_bytes} -> {file.size_bytes} bytes")
    [footer] = footers.read_new_footers([file], source.access)
    if footer.num_rows != before.num_rows:
        changes.append(f"{before.num_rows} -> {footer.num_rows} rows")
    if footer.sha256 != before.footer_sha256 and not changes:
        changes.append("its footer differs")
    if not changes and source.allow_touched:
        return
    if not changes:
        changes.append(
            "its time stamp differs, size and footer do not; if the content is the same, set "
            "source.allow_touched=true"
        )
    raise JobError(
        f"{file.uri}: changed after it was planned ({', '.join(changes)}); put the planned file "
        "back, add new rows as a new file, or write to a new sink"
    )


def _refuse_changed_text(file: SourceFile, before: InputFile) -> None:
    sizes = f"{before.size_bytes} -> {file.size_bytes} bytes"
    what = sizes if file.size_bytes != before.size_bytes else "its bytes differ"
    raise JobError(
        f"{file.uri}: changed after it was planned ({what}); put the planned file back, add new "
        "rows as a new file, or write to a new sink"
    )


def _rename_guard(
    gone: Sequence[InputFile], inputs: Inputs
) -> Callable[[SourceFile, Footer], None]:
    names = {
        (file.size_bytes, _content(file.footer_sha256, file.stored)): file.name for file in gone
    }

    def refuse_renamed(file: SourceFile, footer: Footer) -> None:
        content = _content(footer.sha256, inputs.stored(file)) if names else ""
        before = names.get((file.size_bytes, content))
        if before is not None:
            raise JobError(
                f"{file.uri}: looks like the planned file {before!r} under another name; its rows "
                "would be made twice. Give it its planned name below source.uri"
            )

    return refuse_renamed


def _content(footer_sha256: str, stored: StoredInput | None) -> str:
    """The digest that a file is known by under another name."""
    return footer_sha256 if stored is None else stored.text_sha256

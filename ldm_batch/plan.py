"""The plan: input files cut into shards, and what is left to do.

A plan only grows: new input files append shards, nothing renumbers one. Reads footers, never
rows; must not know pipelines or workers.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ldm_batch import footer as footers
from ldm_batch.config import UPSCALE, JobConfig, SourceConfig, has_second_stage
from ldm_batch.errors import JobError
from ldm_batch.footer import Footer
from ldm_batch.plan_file import Plan, refuse_other_fingerprint
from ldm_batch.records import InputFile, Shard
from ldm_batch.shard_size import auto_rows_per_shard, expected_workers, whole_batches
from ldm_batch.storage import SourceFile, Store, list_source

PIXELS_PER_BYTE = 2
"""Of compressed images of unknown size: what photographs have at good quality."""


def make_plan(
    job: JobConfig,
    store: Store,
    planned: Plan | None,
    *,
    document: Mapping[str, Any],
    native_size: tuple[int, int],
) -> Plan:
    """Match the input against the stored plan and append shards for files that are new.

    Args:
        job: a validated job.
        store: the sink.
        planned: the plan that the sink holds, if any.
        document: the job's own plan document (see `plan_document`).
        native_size: the model's own height and width in pixels.

    Raises:
        JobError: the job has another fingerprint than the plan, an input file changed or is gone,
            or the input cannot be read.
    """
    uris = job.source.uri if isinstance(job.source.uri, list) else [job.source.uri]
    listed, skipped = list_source(uris, job.source.s3)
    notes = [f"skipped {note}" for note in skipped]
    known = {shard.file.name: shard.file for shard in planned.shards} if planned else {}
    if planned:
        refuse_other_fingerprint(planned.document, document, store)
        job, ignored = _as_planned(job, planned)
        notes += ignored
    here = _match_known(job.source, listed, known)
    gone = frozenset(known.keys() - here.keys())
    refuse_renamed = _rename_guard([known[name] for name in gone])
    shards = (
        [_moved(shard, here.get(shard.file.name)) for shard in planned.shards] if planned else []
    )
    unknown = [file for file in listed if file.name not in known]
    new_footers = list(footers.read_new_footers(unknown, job.source.s3))
    if not planned:
        job, document = _settle_rows_per_shard(job, new_footers, document)
    new_shards: list[Shard] = []
    for file, footer in zip(unknown, new_footers, strict=True):
        refuse_renamed(file, footer)
        if footer.num_rows == 0:
            notes.append(f"skipped {file.uri}: no rows")
            continue
        cut, columns = _plan_file(job, file, footer, document=document, native_size=native_size)
        if not new_shards:
            notes.append(f"columns used: {columns}")
        first = len(shards) + len(new_shards)
        new_shards += [replace(shard, index=first + shard.index) for shard in cut]
    if not shards and not new_shards:
        raise JobError("\n  ".join([f"source.uri: no rows in {', '.join(uris)}", *notes]))
    return Plan(
        document=planned.document if planned else document,
        shards=(*shards, *new_shards),
        num_segments=planned.num_segments if planned else 0,
        new_shards=tuple(new_shards),
        gone_files=gone,
        notes=tuple(notes),
    )


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


def _settle_rows_per_shard(
    job: JobConfig, new_footers: Sequence[Footer], document: Mapping[str, Any]
) -> tuple[JobConfig, Mapping[str, Any]]:
    """The job, and its document, with `rows_per_shard: auto` settled for as long as the dataset
    lives."""
    num_rows = job.rows_per_shard
    if num_rows == "auto":
        num_rows = auto_rows_per_shard(
            sum(footer.num_rows for footer in new_footers),
            expected_workers(job.cluster),
            batch_size=job.batch_size,
            num_images_per_prompt=job.num_images_per_prompt,
        )
    config = {**document["config"], "rows_per_shard": num_rows}
    return replace(job, rows_per_shard=num_rows), {**document, "config": config}


def carry_schema(job: JobConfig) -> dict[str, str]:
    """Types of the carried columns in the first input file, as text, by their output name."""
    if not job.source.carry and job.source.kind == "prompts":
        return {}
    uris = job.source.uri if isinstance(job.source.uri, list) else [job.source.uri]
    listed, _ = list_source(uris, job.source.s3)
    if not listed:
        return {}
    [footer] = footers.read_new_footers(listed[:1], job.source.s3)
    footers.resolve_columns(footer, job.source, listed[0].uri)
    return {name: str(kind) for name, kind in footers.carried_fields(footer, job.source)}


def select_shards(
    plan: Plan, done: set[int], *, named: Sequence[int], overwrite: bool
) -> list[Shard]:
    """The shards to do: the named ones (all of them with `overwrite`), else all that are missing.

    Raises:
        JobError: a named shard is not in the plan, or the input of a shard to do is gone.
    """
    for index in named:
        if index >= len(plan.shards):
            raise JobError(f"shards: no shard {index}; the plan has 0 to {len(plan.shards) - 1}")
    wanted = [plan.shards[i] for i in sorted(set(named))] if named else plan.shards
    selected = [shard for shard in wanted if overwrite or shard.index not in done]
    gone = sorted({shard.file.name for shard in selected} & plan.gone_files)
    if gone:
        raise JobError(
            f"source.uri: planned input is gone: {', '.join(gone[:5])}; put it back, or make only "
            "shards of other files with shards=[...]"
        )
    return selected


def rows_per_shard(job: JobConfig, size: tuple[int, int]) -> int:
    """Rows whose images fit into `max_object_bytes` at the worst (nothing compresses).

    Raises:
        JobError: not even one row's images fit.
    """
    image_bytes = size[0] * size[1] * 3 * 105 // 100 + 16 * 1024
    fitting = job.max_object_bytes // (image_bytes * job.num_images_per_prompt)
    if fitting < 1:
        raise JobError(
            f"max_object_bytes: {job.max_object_bytes} is too small for the images of one row "
            f"({job.num_images_per_prompt} of {size[0]}x{size[1]} pixels)"
        )
    if fitting >= job.rows_per_shard:
        return int(job.rows_per_shard)
    images = job.num_images_per_prompt
    return whole_batches(fitting, batch_size=job.batch_size, num_images_per_prompt=images)


def _largest_size(
    footer: Footer, columns: Mapping[str, str], job: JobConfig, native_size: tuple[int, int]
) -> tuple[int, int]:
    if job.source.kind == "images":
        return _upscaled_size(footer, columns, job)
    factor = UPSCALE if has_second_stage(job) else 1
    sides = []
    for name, default, native in zip(
        ("height", "width"), (job.call.height, job.call.width), native_size, strict=True
    ):
        largest = footers.largest_value(footer, columns[name]) if name in columns else None
        within = max(0, min(largest or 0, footers.MAX_SIDE))
        sides.append(factor * max(default or native, int(within)))
    return sides[0], sides[1]


def _upscaled_size(footer: Footer, columns: Mapping[str, str], job: JobConfig) -> tuple[int, int]:
    """Sides of a square of as many pixels as a large image may have.

    A dataset of ours tells; of others the bytes per image are taken for two pixels each.
    """
    pixels = PIXELS_PER_BYTE * footers.mean_bytes(footer, columns["image"])
    if footers.is_own(footer):
        sides = [footers.largest_value(footer, name) for name in ("height", "width")]
        if None not in sides:
            pixels = math.prod(int(side) for side in sides if side is not None)
    side = math.isqrt(int(min(max(pixels, 1), job.source.max_image_pixels)) - 1) + 1
    return UPSCALE * side, UPSCALE * side


def _plan_file(
    job: JobConfig,
    file: SourceFile,
    footer: Footer,
    *,
    document: Mapping[str, Any],
    native_size: tuple[int, int],
) -> tuple[list[Shard], str]:
    """Shards of one new file, counted from 0, and the columns that it is read from, in words."""
    columns = footers.resolve_columns(footer, job.source, file.uri)
    _refuse_other_types(footers.carried_fields(footer, job.source), document, file.uri)
    planned = InputFile(
        file.name, file.uri, file.size_bytes, file.version, footer.num_rows, footer.sha256
    )
    num_rows = rows_per_shard(job, _largest_size(footer, columns, job, native_size))
    return cut_file(planned, footers.row_group_ends(footer), num_rows), footers.in_words(columns)


def cut_file(file: InputFile, row_group_ends: Sequence[int], num_rows: int) -> list[Shard]:
    """Cut a file into the fewest shards of at most `num_rows` rows.

    A cut moves back to the end of a row group where that does not add a shard. Indices count
    from 0 in the file.
    """
    total, start = file.num_rows, 0
    shards: list[Shard] = []
    while start < total:
        end = min(start + num_rows, total)
        reached = bisect.bisect_right(row_group_ends, end)
        boundary = row_group_ends[reached - 1] if reached else 0
        if boundary > start and -(-(total - boundary) // num_rows) == -(-(total - end) // num_rows):
            end = boundary
        shards.append(Shard(len(shards), file, start, end - start))
        start = end
    return shards


def _match_known(
    source: SourceConfig, listed: Sequence[SourceFile], known: Mapping[str, InputFile]
) -> dict[str, InputFile]:
    """Planned files as they are found now, by name; refuses files that changed."""
    here: dict[str, InputFile] = {}
    for file in listed:
        before = known.get(file.name)
        if before is None:
            continue
        if (file.size_bytes, file.version) != (before.size_bytes, before.version):
            _refuse_changed(source, file, before)
        here[file.name] = before if file.uri == before.uri else replace(before, uri=file.uri)
    return here


def _refuse_changed(source: SourceConfig, file: SourceFile, before: InputFile) -> None:
    changes = []
    if file.size_bytes != before.size_bytes:
        changes.append(f"{before.size_bytes} -> {file.size_bytes} bytes")
    [footer] = footers.read_new_footers([file], source.s3)
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


def _rename_guard(gone: Sequence[InputFile]) -> Callable[[SourceFile, Footer], None]:
    names = {(file.size_bytes, file.footer_sha256): file.name for file in gone}

    def refuse_renamed(file: SourceFile, footer: Footer) -> None:
        before = names.get((file.size_bytes, footer.sha256))
        if before is not None:
            raise JobError(
                f"{file.uri}: looks like the planned file {before!r} under another name; its rows "
                "would be made twice. Give it its planned name below source.uri"
            )

    return refuse_renamed


def _refuse_other_types(
    carried: Sequence[tuple[str, Any]], document: Mapping[str, Any], uri: str
) -> None:
    planned = document["images"]["source"]["carry"]
    for name, declared in carried:
        if str(declared) != planned.get(name):
            raise JobError(
                f"{uri}: carried column {name!r} has type {declared}, planned "
                f"{planned.get(name, 'without it')}; all files of a dataset need the same"
            )
    missing = planned.keys() - {name for name, _ in carried}
    if missing:
        raise JobError(
            f"{uri}: lacks {sorted(missing)[0]!r}, which other files of the dataset carry"
        )

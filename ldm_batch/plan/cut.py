"""New input files cut into shards: how large, and where.

Sees one footer at a time, and keeps little of it; must not know the stored plan.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ldm_batch.columns import TaskColumns
from ldm_batch.config import ClusterConfig, JobConfig
from ldm_batch.errors import JobError
from ldm_batch.plan.input_columns import FoundColumns, find_columns_of
from ldm_batch.plan.sizes import carried_bytes, holds_images, largest_size, refuse_too_large
from ldm_batch.read import footer as footers
from ldm_batch.read import matching
from ldm_batch.read.footer import Footer
from ldm_batch.read.input_types import InputTypes
from ldm_batch.records import InputFile, Shard
from ldm_batch.storage import SourceFile

LARGEST_IMAGES = 1024
"""More images in a shard save nothing, and are more to lose when a machine goes."""
SMALLEST_IMAGES = 64
"""With fewer a fast device waits for the store."""
FEWEST_IMAGES = 32
"""A table so small is one shard: what there is to gain is over before anyone notices."""
SHARDS_PER_WORKER = 32
"""At the end workers wait half a shard on average: 1/64 of the job."""
FEWEST_PER_WORKER = 4
"""Below that the end costs more than small shards do."""
ROOT_PER_WORKER = 2
"""Images per worker grow with their number: of n, there are taken to be sqrt(n) / 2 workers."""
LOCAL_WORKERS = 8
"""Taken for a machine of unknown size: the GPUs of a large one."""


@dataclass(frozen=True, slots=True)
class NewFile:
    """What is kept of a footer until its file is cut."""

    file: InputFile
    row_group_ends: Sequence[int]
    largest_size: tuple[int, int]
    is_size_known: bool
    """False: rows name their images by paths, and the largest size is what a job allows."""
    carried_bytes: int
    """What the columns that are carried along take of a row, as far as the footer tells."""
    columns: FoundColumns
    """What is read of it."""
    unread: Sequence[str] = ()
    """What is to be told of columns that were probably meant to be read, a line each."""


def look_at(
    job: JobConfig,
    task: TaskColumns,
    file: SourceFile,
    footer: Footer,
    *,
    native_size: tuple[int, int],
    types: InputTypes | None = None,
) -> NewFile:
    """Keep what cutting a new file needs.

    Args:
        types: the plan's, if there is one; None: they are to be decided yet.

    Raises:
        JobError: it lacks a column, or has one whose type cannot hold its field.
    """
    footer, found = find_columns_of(footer, file.name, file.uri, task, job.source, types)
    columns = found.fields
    refuse_too_large(job, task, columns, native_size)
    is_known = not task.has_image or holds_images(footer, columns["image"])
    return NewFile(
        InputFile(
            file.name, file.uri, file.size_bytes, file.version, footer.num_rows, footer.sha256
        ),
        footers.row_group_ends(footer),
        largest_size(footer, task, columns, job, native_size, is_known=is_known),
        is_known,
        carried_bytes(footer, task, job.source),
        found,
        matching.describe_unread(footer, task, job.source, columns),
    )


def settle_rows_per_shard(
    job: JobConfig, new_files: Sequence[NewFile], document: Mapping[str, Any]
) -> tuple[JobConfig, Mapping[str, Any]]:
    """The job, and its document, with `rows_per_shard: auto` settled for as long as the dataset
    lives."""
    num_rows = job.rows_per_shard
    if num_rows == "auto":
        num_rows = auto_rows_per_shard(
            sum(new.file.num_rows for new in new_files),
            expected_workers(job.cluster),
            batch_size=job.batch_size,
            num_images_per_prompt=job.num_images_per_prompt,
        )
        unknown = [new for new in new_files if not new.is_size_known]
        num_rows = min([num_rows, *(_cautious_rows(job, new) for new in unknown)])
    config = {**document.get("config", {}), "rows_per_shard": num_rows}
    return replace(job, rows_per_shard=num_rows), {**document, "config": config}


def cut_files(job: JobConfig, files: Sequence[NewFile], *, first: int) -> list[Shard]:
    """Shards of new files, in their order, counted on from `first`."""
    shards: list[Shard] = []
    for new in files:
        start = first + len(shards)
        num_rows = job.rows_per_shard  # taken at its word where no size is known
        if new.is_size_known:
            num_rows = rows_per_shard(job, new.largest_size, new.carried_bytes)
        cut = cut_file(new.file, new.row_group_ends, num_rows)
        shards += [replace(shard, index=start + shard.index) for shard in cut]
    return shards


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


def rows_per_shard(job: JobConfig, size: tuple[int, int], carried_bytes: int = 0) -> int:
    """Rows whose images fit into `max_object_bytes` at the worst (nothing compresses).

    Args:
        size: height and width of the largest images.
        carried_bytes: what columns that are carried along take of each image.

    Raises:
        JobError: not even one row's images fit.
    """
    fitting = _fitting_rows(job, size, carried_bytes)
    if fitting < 1:
        beside = f", and {carried_bytes} bytes of carried columns each" if carried_bytes else ""
        raise JobError(
            f"max_object_bytes: {job.max_object_bytes} is too small for the images of one row "
            f"({job.num_images_per_prompt} of {size[0]}x{size[1]} pixels{beside})"
        )
    if fitting >= job.rows_per_shard:
        return int(job.rows_per_shard)
    images = job.num_images_per_prompt
    return whole_batches(fitting, batch_size=job.batch_size, num_images_per_prompt=images)


def describe_unknown_sizes(job: JobConfig, new_files: Sequence[NewFile]) -> list[str]:
    """What a user should know of shards whose images are of unknown size, a line each."""
    unknown = [new for new in new_files if not new.is_size_known]
    rows = [_fitting_rows(job, new.largest_size, new.carried_bytes) for new in unknown]
    fitting = min(rows, default=job.rows_per_shard)
    if fitting >= job.rows_per_shard:
        return []
    height, width = max(new.largest_size for new in unknown)
    return [
        f"rows_per_shard: {job.rows_per_shard}; how large images are that paths name is not known "
        f"yet: of {width}x{height} pixels, made of the largest that source.max_image_pixels lets "
        f"in, max_object_bytes={job.max_object_bytes} is sure to hold {fitting} rows"
    ]


def _cautious_rows(job: JobConfig, new: NewFile) -> int:
    """Rows of a shard whose images may have a size, but need not: those that fit, of whole batches,
    but one batch at least."""
    images = job.num_images_per_prompt
    fitting = max(1, _fitting_rows(job, new.largest_size, new.carried_bytes))
    rows = whole_batches(fitting, batch_size=job.batch_size, num_images_per_prompt=images)
    return max(rows, -(-int(job.batch_size) // images))


def _fitting_rows(job: JobConfig, size: tuple[int, int], carried_bytes: int) -> int:
    image_bytes = size[0] * size[1] * 3 * 105 // 100 + 16 * 1024 + carried_bytes
    return int(job.max_object_bytes) // (image_bytes * job.num_images_per_prompt)


def auto_rows_per_shard(
    num_rows: int, num_workers: int | None, *, batch_size: int, num_images_per_prompt: int = 1
) -> int:
    """Choose rows per shard: about 32 shards per worker, of whole batches, of 1024 images at most.

    Args:
        num_rows: rows of all input files when the dataset is first planned.
        num_workers: how many share them; None takes half the square root of the images.
        batch_size: images per model call.
        num_images_per_prompt: images of each row.

    Returns:
        At least the rows of one batch, even where the dataset has fewer.
    """
    num_images = num_rows * num_images_per_prompt
    workers = num_workers or max(1, math.isqrt(num_images) // ROOT_PER_WORKER)
    smallest = min(SMALLEST_IMAGES, num_images // (workers * FEWEST_PER_WORKER))
    images = max(FEWEST_IMAGES, smallest, num_images // (workers * SHARDS_PER_WORKER))
    of_one_batch = -(-batch_size // num_images_per_prompt)
    rows = max(of_one_batch, min(images, LARGEST_IMAGES) // num_images_per_prompt)
    filling = _rows_of_whole_batches(batch_size, num_images_per_prompt)
    if rows < filling and filling * num_images_per_prompt <= LARGEST_IMAGES:
        return filling
    return whole_batches(rows, batch_size=batch_size, num_images_per_prompt=num_images_per_prompt)


def expected_workers(cluster: ClusterConfig) -> int | None:
    """How many workers a job is likely to have, by its configuration alone; None: nothing says."""
    if cluster.executor == "in_process":
        return 1
    if named := cluster.num_workers or cluster.max_workers:
        return named
    if cluster.min_workers > 1:
        return cluster.min_workers
    return LOCAL_WORKERS if cluster.address is None else None


def whole_batches(num_rows: int, *, batch_size: int, num_images_per_prompt: int = 1) -> int:
    """Round rows down to where their images fill batches, or nearly: the rest would be padding.

    Returns:
        From 1 to `num_rows`; `num_rows` itself where its images are less than a batch.
    """
    filling = _rows_of_whole_batches(batch_size, num_images_per_prompt)
    if num_rows >= filling:
        return num_rows // filling * filling
    batches = num_rows * num_images_per_prompt // batch_size
    return batches * batch_size // num_images_per_prompt or num_rows


def _rows_of_whole_batches(batch_size: int, num_images_per_prompt: int) -> int:
    """The fewest rows whose images fill batches without a rest."""
    return batch_size // math.gcd(batch_size, num_images_per_prompt)

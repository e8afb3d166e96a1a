"""New input files cut into shards: how large, and where.

Sees one footer at a time, and keeps little of it; must not know the stored plan.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from ldm_batch.columns import TaskColumns
from ldm_batch.config import ClusterConfig, JobConfig, with_size
from ldm_batch.errors import JobError
from ldm_batch.plan.input_columns import FoundColumns, find_columns_of
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
PIXELS_PER_BYTE = 2
"""Of compressed images of unknown size: what photographs have at good quality."""
SMALLEST_FILE = 26
"""Bytes of the smallest image file, a GIF: with fewer on the mean, cells hold only paths."""


@dataclass(frozen=True, slots=True)
class NewFile:
    """What is kept of a footer until its file is cut."""

    file: InputFile
    row_group_ends: Sequence[int]
    largest_size: tuple[int, int]
    is_size_known: bool
    """False: rows name their images by paths, and the largest size is what a job allows."""
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
    is_known = not task.has_image or _holds_images(footer, columns["image"])
    return NewFile(
        InputFile(
            file.name, file.uri, file.size_bytes, file.version, footer.num_rows, footer.sha256
        ),
        footers.row_group_ends(footer),
        _largest_size(footer, task, columns, job, native_size, is_known=is_known),
        is_known,
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
        sizes = [new.largest_size for new in new_files if not new.is_size_known]
        num_rows = min([num_rows, *(_cautious_rows(job, size) for size in sizes)])
    config = {**document.get("config", {}), "rows_per_shard": num_rows}
    return replace(job, rows_per_shard=num_rows), {**document, "config": config}


def cut_files(job: JobConfig, files: Sequence[NewFile], *, first: int) -> list[Shard]:
    """Shards of new files, in their order, counted on from `first`."""
    shards: list[Shard] = []
    for new in files:
        start = first + len(shards)
        num_rows = job.rows_per_shard  # taken at its word where no size is known
        if new.is_size_known:
            num_rows = rows_per_shard(job, new.largest_size)
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


def rows_per_shard(job: JobConfig, size: tuple[int, int]) -> int:
    """Rows whose images fit into `max_object_bytes` at the worst (nothing compresses).

    Raises:
        JobError: not even one row's images fit.
    """
    fitting = _fitting_rows(job, size)
    if fitting < 1:
        raise JobError(
            f"max_object_bytes: {job.max_object_bytes} is too small for the images of one row "
            f"({job.num_images_per_prompt} of {size[0]}x{size[1]} pixels)"
        )
    if fitting >= job.rows_per_shard:
        return int(job.rows_per_shard)
    images = job.num_images_per_prompt
    return whole_batches(fitting, batch_size=job.batch_size, num_images_per_prompt=images)


def describe_unknown_sizes(job: JobConfig, new_files: Sequence[NewFile]) -> list[str]:
    """What a user should know of shards whose images are of unknown size, a line each."""
    sizes = [new.largest_size for new in new_files if not new.is_size_known]
    fitting = min((_fitting_rows(job, size) for size in sizes), default=job.rows_per_shard)
    if fitting >= job.rows_per_shard:
        return []
    height, width = max(sizes)
    return [
        f"rows_per_shard: {job.rows_per_shard}; how large images are that paths name is not known "
        f"yet: of {width}x{height} pixels, made of the largest that source.max_image_pixels lets "
        f"in, max_object_bytes={job.max_object_bytes} is sure to hold {fitting} rows"
    ]


def _cautious_rows(job: JobConfig, size: tuple[int, int]) -> int:
    """Rows of a shard whose images may have a size, but need not: those that fit, of whole batches,
    but one batch at least."""
    images = job.num_images_per_prompt
    rows = whole_batches(
        max(1, _fitting_rows(job, size)), batch_size=job.batch_size, num_images_per_prompt=images
    )
    return max(rows, -(-int(job.batch_size) // images))


def _fitting_rows(job: JobConfig, size: tuple[int, int]) -> int:
    image_bytes = size[0] * size[1] * 3 * 105 // 100 + 16 * 1024
    return int(job.max_object_bytes) // (image_bytes * job.num_images_per_prompt)


def _holds_images(footer: Footer, column: str) -> bool:
    """Tell whether a column holds images and not only their paths, as far as a size can tell; one
    of a dataset of ours that lost its bytes is known by its heights and widths."""
    kind = matching.plain_type(footer.schema.field(column).type)
    if pa.types.is_struct(kind):
        held = footers.mean_bytes(footer, f"{column}.bytes")
        return held >= SMALLEST_FILE or _own_pixels(footer) is not None
    return not matching.is_text(kind)


def _largest_size(
    footer: Footer,
    task: TaskColumns,
    columns: Mapping[str, str],
    job: JobConfig,
    native_size: tuple[int, int],
    *,
    is_known: bool,
) -> tuple[int, int]:
    """Height and width in pixels that no image of a file is likely to exceed."""
    if task.has_image:
        pixels = _input_pixels(footer, columns) if is_known else math.inf
        side = task.scale * _side(min(pixels, job.source.max_image_pixels))
        return side, side
    sides = []
    call = with_size(job.call, native_size)
    for name, default in (("height", call.height), ("width", call.width)):
        largest = footers.largest_value(footer, columns[name]) if name in columns else None
        within = max(0, min(largest or 0, footers.MAX_SIDE))
        sides.append(task.scale * max(default or 0, int(within)))
    return sides[0], sides[1]


def _input_pixels(footer: Footer, columns: Mapping[str, str]) -> float:
    """As many pixels as a large image of the input may have.

    A dataset of ours tells; of others the bytes per image are taken for two pixels each.
    """
    own = _own_pixels(footer)
    return PIXELS_PER_BYTE * footers.mean_bytes(footer, columns["image"]) if own is None else own


def _own_pixels(footer: Footer) -> float | None:
    """The largest image of a dataset of ours; None: it is none, or does not tell."""
    names = ("height", "width")
    if not matching.is_own(footer) or not set(names) <= {*footer.schema.names}:
        return None
    sides = [footers.largest_value(footer, name) for name in names]
    return None if None in sides else math.prod(int(side) for side in sides if side is not None)


def _side(pixels: float) -> int:
    """Side of the smallest square of as many pixels."""
    return math.isqrt(int(max(pixels, 1)) - 1) + 1


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

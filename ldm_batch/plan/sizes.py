"""How large the images and the carried cells of a new input file may be, by its footer.

Must not know shards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import pyarrow as pa

from ldm_batch.columns import TaskColumns
from ldm_batch.config import JobConfig, SourceConfig, with_size
from ldm_batch.errors import JobError
from ldm_batch.read import footer as footers
from ldm_batch.read import matching
from ldm_batch.read.footer import Footer
from ldm_batch.write.encode import MAX_SIDES

PIXELS_PER_BYTE = 2
"""Of compressed images of unknown size: what photographs have at good quality."""
SMALLEST_FILE = 26
"""Bytes of the smallest image file, a GIF: with fewer on the mean, cells hold only paths."""


def refuse_too_large(
    job: JobConfig, task: TaskColumns, columns: Mapping[str, str], native_size: tuple[int, int]
) -> None:
    """Refuse a call whose images their format does not take; a row that says its size is judged
    when it is read.

    Raises:
        JobError: they are too large.
    """
    if task.has_image:
        return
    call, limit = with_size(job.call, native_size), MAX_SIDES[job.image.format]
    for name, side in (("height", call.height), ("width", call.width)):
        stored = (side or 0) * task.scale
        if name not in columns and stored > limit:
            larger = f" makes {stored} when it is enlarged" if task.scale > 1 else ""
            raise JobError(
                f"call.{name}: {side} pixels{larger}, more than the {limit} that "
                f"image.format={job.image.format} holds; make it less, or use image.format=png"
            )


def carried_bytes(footer: Footer, task: TaskColumns, source: SourceConfig) -> int:
    """What the columns that are carried along take of a row on the mean, unpacked."""
    carried = matching.carried_columns(footer, task, source)
    return math.ceil(sum(footers.mean_bytes(footer, name) for name in carried.values()))


def holds_images(footer: Footer, column: str) -> bool:
    """Tell whether a column holds images and not only their paths, as far as a size can tell; one
    of a dataset of ours that lost its bytes is known by its heights and widths."""
    kind = matching.plain_type(footer.schema.field(column).type)
    if pa.types.is_struct(kind):
        held = footers.mean_bytes(footer, f"{column}.bytes")
        return held >= SMALLEST_FILE or _own_pixels(footer) is not None
    return not matching.is_text(kind)


def largest_size(
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

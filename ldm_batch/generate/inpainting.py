"""Task: what a mask marks of an image is painted anew by a prompt; the rest stays, to the bit.

Must not know who draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ldm_batch.columns import IMAGE, MASK, TaskColumns
from ldm_batch.config import JobConfig
from ldm_batch.generate import from_images, image_to_image
from ldm_batch.generate.image_to_image import ARGUMENTS, IMAGE_TO_IMAGE
from ldm_batch.generate.task import LoadImages
from ldm_batch.read.rows import RowContext, RowPlace, parse_all_carried, parse_seed
from ldm_batch.records import PlannedImage, PromptCount, Request, Row

STRENGTH = 1.0
"""Where neither the row nor the job says."""
COLUMNS = TaskColumns(
    fields=(IMAGE, MASK, "prompt", *from_images.FIELDS, from_images.PARENT_SEED, *ARGUMENTS),
    recorded=from_images.recorded(ARGUMENTS, ("mask_path", "mask_sha256")),
    also_needed=(MASK, "prompt"),
)


def check(job: JobConfig) -> Iterator[str]:
    """Problems of a job's fields, a line each."""
    yield from from_images.check(job)
    second = job.upscale.model
    if job.image.format == "jpeg" and second.path is None and second.repo_id is None:
        yield "image.format: 'jpeg' changes what no mask marks; webp and png keep it to the bit"


def parse_row(values: Mapping[str, Any], place: RowPlace, context: RowContext) -> Row:
    """Make the row of an image, its mask and a prompt; both files are checked and kept.

    Raises:
        InvalidRow: a value is missing, of the wrong type or out of range, or is no usable image, or
            the mask is none of the image.
    """
    texts = from_images.parse_texts(values, context)
    arguments = from_images.parse_call(values, context, ARGUMENTS, {"strength": STRENGTH})
    seed, carry = parse_seed(values, context.form), parse_all_carried(values)
    image = from_images.keep_image(values, context, place.index)
    assert context.images is not None
    mask = from_images.found_or_invalid(context.images.keep_mask(place.index, values[MASK], image))
    call = from_images.sized(arguments, image)
    row = place.row({IMAGE: image, MASK: mask, **texts}, call, seed=seed, carry=carry)
    return from_images.with_parent_seed(row, values, context)


def make_request(image: PlannedImage, images: LoadImages | None) -> Request:
    """The pixels of the row's image and mask, its texts, and the seeds."""
    assert images is not None
    made = image_to_image.make_request(image, images)
    return replace(made, inputs={**made.inputs, MASK: images.load_mask(image.row.index)})


def record(image: PlannedImage, count: PromptCount, low: str | None) -> dict[str, Any]:
    """The texts, and what the image and the mask that the row brought were."""
    mask = image.row.inputs[MASK]
    about_mask = {"mask_path": mask.path, "mask_sha256": mask.sha256}
    return image_to_image.record(image, count, low) | about_mask


INPAINTING = replace(
    IMAGE_TO_IMAGE,
    name="inpainting",
    columns=COLUMNS,
    check=check,
    parse_row=parse_row,
    make_request=make_request,
    record=record,
    strength=STRENGTH,
)

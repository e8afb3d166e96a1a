"""Task: an image, partly turned to noise, becomes another one by a prompt (SDEdit, 2022).

Must not know who draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldm_batch.columns import IMAGE, TaskColumns
from ldm_batch.config import JobConfig
from ldm_batch.generate import from_images
from ldm_batch.generate.task import LoadImages, Lock, Stage, Task
from ldm_batch.identity import Form
from ldm_batch.read.rows import RowContext, RowPlace, parse_all_carried, parse_seed
from ldm_batch.records import PlannedImage, PromptCount, Request, Row

ARGUMENTS = ("num_inference_steps", "guidance_scale", "eta", "guidance_rescale", "strength")
STRENGTH = 0.8
"""Where neither the row nor the job says."""
COLUMNS = TaskColumns(
    fields=(IMAGE, "prompt", *from_images.FIELDS, from_images.PARENT_SEED, *ARGUMENTS),
    recorded=from_images.recorded(ARGUMENTS),
    also_needed=("prompt",),
)


def parse_row(values: Mapping[str, Any], place: RowPlace, context: RowContext) -> Row:
    """Make the row of an image and a prompt; the image's file is checked and kept.

    Raises:
        InvalidRow: a value is missing, of the wrong type or out of range, or is no usable image.
    """
    texts = from_images.parse_texts(values, context)
    arguments = from_images.parse_call(values, context, ARGUMENTS, {"strength": STRENGTH})
    seed, carry = parse_seed(values, context.form), parse_all_carried(values)
    image = from_images.keep_image(values, context, place.index)
    call = from_images.sized(arguments, image)
    row = place.row({IMAGE: image, **texts}, call, seed=seed, carry=carry)
    return from_images.with_parent_seed(row, values, context)


def plan_image(row: Row, image_index: int, job_seed: int, form: Form) -> PlannedImage:
    """Image `image_index` of a row, with its seed."""
    seed = form.edit_seed(job_seed, row.key, image_index, row.seed, row.parent_seed)
    return PlannedImage(row, image_index, seed)


def make_request(image: PlannedImage, images: LoadImages | None) -> Request:
    """The pixels of the row's image, its texts, and the seeds."""
    assert images is not None
    row = image.row
    return Request(
        inputs={**row.inputs, IMAGE: images.load(row.index)},
        seed=image.seed,
        call=row.call,
        upscale_seed=image.upscale_seed,
    )


def stages(job: JobConfig) -> list[Stage]:
    """One model."""
    return [Stage("", job.model, job.scheduler, "")]


def identify(job: JobConfig, _lock: Lock) -> dict[str, Any]:
    """How images are read."""
    return from_images.identify(job)


def record(image: PlannedImage, count: PromptCount, _low: str | None) -> dict[str, Any]:
    """The texts, and what the image that the row brought was."""
    inputs = image.row.inputs
    return from_images.record_texts(inputs, count) | from_images.record_image(inputs[IMAGE])


def origin(*_: object) -> dict[str, Any]:
    """What every task has is enough."""
    return {}


IMAGE_TO_IMAGE = Task(
    name="image_to_image",
    columns=COLUMNS,
    check=from_images.check,
    stages=stages,
    identify=identify,
    parse_row=parse_row,
    plan_image=plan_image,
    seed_of=lambda form: form.edit_seed,
    make_request=make_request,
    request_again=None,
    load=None,
    origin=origin,
    record=record,
    strength=STRENGTH,
)

"""Task: an image becomes one four times as large (Rombach et al. 2022, section 4.4).

Joins a loaded model to what jobs ask of a pipeline; torch comes in only with the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ldm_batch.columns import IMAGE, TaskColumns
from ldm_batch.config import UPSCALE, JobConfig
from ldm_batch.diffusion.models.files import LDM_SUPER_RESOLUTION
from ldm_batch.errors import JobError
from ldm_batch.generate import from_images
from ldm_batch.generate.pipeline import Picture, Pipeline
from ldm_batch.generate.task import OF_EVERY_IMAGE, LoadImages, Lock, Stage, Task
from ldm_batch.identity import Form
from ldm_batch.made_as import MadeAs
from ldm_batch.read.colour import enlarge_alpha
from ldm_batch.read.rows import (
    RowContext,
    RowPlace,
    parse_all_carried,
    parse_arguments,
    parse_seed,
)
from ldm_batch.records import (
    Call,
    Fault,
    Made,
    PlannedImage,
    PromptCount,
    Request,
    Row,
    UpscaleRequest,
)

MAX_OUTPUT_PIXELS = 2**26
"""Pixels of the large images of one call: bounds memory, not results."""
ARGUMENTS = ("num_inference_steps", "eta")
COLUMNS = TaskColumns(
    fields=(IMAGE, "id", "image_index", "seed", *ARGUMENTS),
    recorded=(
        "key",
        "image_index",
        "seed",
        *ARGUMENTS,
        "height",
        "width",
        *OF_EVERY_IMAGE,
        *from_images.ABOUT_IMAGE,
        "fingerprint",
    ),
    scale=UPSCALE,
)


def check(job: JobConfig) -> Iterator[str]:
    """Problems of a job's fields, a line each."""
    if job.batch_size == "auto":
        yield "batch_size: 'auto' measures text to image only; give a number, e.g. 16"


def parse_row(values: Mapping[str, Any], place: RowPlace, context: RowContext) -> Row:
    """Make the row of an image to enlarge; its file is checked and kept.

    Raises:
        InvalidRow: a value is missing, of the wrong type or out of range, or is no usable image.
    """
    arguments = parse_arguments(values, context.call, ARGUMENTS)
    seed, carry = parse_seed(values, context.form), parse_all_carried(values)
    image = from_images.keep_image(values, context, place.index)
    return place.row({IMAGE: image}, from_images.sized(arguments, image), seed=seed, carry=carry)


def plan_image(row: Row, image_index: int, job_seed: int, form: Form) -> PlannedImage:
    """Image `image_index` of a row, with its seed."""
    seed = form.upscale_seed(job_seed, row.key, image_index, row.seed)
    return PlannedImage(row, image_index, seed)


def make_request(image: PlannedImage, images: LoadImages | None) -> Request:
    """The pixels of the row's image, and the seed."""
    assert images is not None
    pixels = images.load(image.row.index)
    return Request(
        inputs={IMAGE: pixels},
        seed=image.seed,
        call=image.row.call,
        upscale_seed=image.upscale_seed,
    )


def stages(job: JobConfig) -> list[Stage]:
    """One model."""
    return [Stage("", job.model, job.scheduler, LDM_SUPER_RESOLUTION)]


def load(job: JobConfig, lock: Lock) -> Pipeline:
    """Load the model; a JobError where it does not, or is not that of the lock."""
    from ldm_batch.diffusion.super_resolution import SuperResolution

    return ImagesLarger(
        SuperResolution.from_config(
            job.model,
            job.scheduler,
            batch_size=job.batch_size,
            num_threads=job.num_threads,
            lock=lock,
            tile_size=job.upscale.tile_size,
            tile_overlap=job.upscale.tile_overlap,
        )
    )


def identify(job: JobConfig, _lock: Lock) -> dict[str, Any]:
    """How images are read, and the tiles in which large ones are made."""
    return {**from_images.identify(job), "tiles": identify_tiles(job)}


def identify_tiles(job: JobConfig) -> dict[str, Any]:
    """The tiles in which large images are made."""
    return {"size": job.upscale.tile_size, "overlap": job.upscale.tile_overlap}


def record(image: PlannedImage, _count: PromptCount, _low: str | None) -> dict[str, Any]:
    """What the image that the row brought was."""
    return from_images.record_image(image.row.inputs[IMAGE])


def origin(*_: object) -> dict[str, Any]:
    """What every task has is enough."""
    return {}


class Enlarger(Protocol):
    """What a loaded super-resolution model offers; see `diffusion.super_resolution`."""

    scale: int
    batch_size: int

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Size at which an image is computed."""

    def generate(self, requests: Sequence[UpscaleRequest]) -> Sequence[Picture]:
        """The images, larger."""

    def as_made(self, how: MadeAs) -> Enlarger:
        """The model that enlarges as this one did where it was otherwise than planned, so."""

    def pop_notes(self) -> list[str]:
        """What the receipt should tell."""

    def describe(self) -> dict[str, Any]:
        """What made the images."""


class ImagesLarger:
    """A job that enlarges images: every request brings its image."""

    def __init__(self, upscaler: Enlarger) -> None:
        self._upscaler = check_scale(upscaler)

    def count_tokens(self, prompts: Sequence[str]) -> list[PromptCount]:
        """No prompts, no tokens."""
        return [PromptCount(0, False)] * len(prompts)

    def batch_key(self, call: Call) -> tuple[Call, int]:
        """Images of one padded size share a batch; fewer of them, the larger they are."""
        height, width = self._upscaler.padded_size(call.height, call.width)
        fitting = max(1, MAX_OUTPUT_PIXELS // (height * width * UPSCALE**2))
        key = replace(call, height=height, width=width)
        return key, min(self._upscaler.batch_size, fitting)

    def generate(self, requests: Sequence[Request]) -> Sequence[Picture]:
        """Enlarge images `[h, w, 3]`; those `[h, w, 4]` with their alpha, bicubic."""
        made = self._upscaler.generate(
            [
                UpscaleRequest(
                    request.inputs[IMAGE][..., :3],
                    request.seed,
                    request.call.num_inference_steps,
                    request.call.eta,
                )
                for request in requests
            ]
        )
        return [
            large if isinstance(large, Fault) else _with_alpha(large, request.inputs[IMAGE])
            for large, request in zip(made, requests, strict=True)
        ]

    def as_made(self, how: MadeAs) -> ImagesLarger:
        """As the model was when it made images so."""
        return ImagesLarger(self._upscaler.as_made(how))

    def pop_notes(self) -> list[str]:
        """What the receipt should tell."""
        return self._upscaler.pop_notes()

    def describe(self) -> dict[str, Any]:
        """What made the images."""
        return self._upscaler.describe()


def check_scale(upscaler: Enlarger) -> Enlarger:
    """Refuse a model that enlarges otherwise than jobs expect."""
    if upscaler.scale != UPSCALE:
        raise JobError(
            f"model: enlarges {upscaler.scale} times; jobs take models that do {UPSCALE} times"
        )
    return upscaler


def _with_alpha(
    large: NDArray[np.uint8] | Made, small: NDArray[np.uint8]
) -> NDArray[np.uint8] | Made:
    if small.shape[2] == 3:
        return large
    if isinstance(large, Made):
        return replace(large, pixels=_with_alpha(large.pixels, small))
    return np.dstack([large, enlarge_alpha(small[..., 3], UPSCALE)])


SUPER_RESOLUTION = Task(
    name="super_resolution",
    columns=COLUMNS,
    check=check,
    stages=stages,
    identify=identify,
    parse_row=parse_row,
    plan_image=plan_image,
    seed_of=lambda form: form.upscale_seed,
    make_request=make_request,
    request_again=None,
    load=load,
    origin=origin,
    record=record,
)

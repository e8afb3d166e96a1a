"""Rows -> pixels: which images a shard needs, and in which batches.

Rows with an equal call share a batch; the order of the rows is the caller's to restore. Must not
know who draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ldm_batch.columns import IMAGE, LOW_RESOLUTION
from ldm_batch.config import JobConfig, has_second_stage
from ldm_batch.generate.pipeline import BatchKey, Pipeline
from ldm_batch.identity import Form
from ldm_batch.records import Call, Fault, Made, PlannedImage, Row, Slot


def plan_images(rows: Sequence[Row], job: JobConfig, form: Form) -> list[PlannedImage]:
    """All images of some rows, in the order of the rows, with their seeds."""
    enlarges, has_second = job.source.kind == "images", has_second_stage(job)
    seed_of = form.upscale_seed if enlarges else form.image_seed
    return [
        PlannedImage(
            row,
            k,
            seed_of(job.seed, row.key, k, row.seed),
            form.upscale_seed(job.seed, form.image_key(row.key, k), 0) if has_second else None,
        )
        for row in rows
        for k in range(job.num_images_per_prompt)
    ]


def make_batches(images: Sequence[PlannedImage], batch_key: BatchKey) -> list[list[int]]:
    """Cut images into batches; positions, each exactly once.

    Keys come in the order in which they first appear, images of a key in their own order.
    """
    by_key: dict[Call, list[int]] = {}
    sizes: dict[Call, int] = {}
    for slot, image in enumerate(images):
        key, size = batch_key(image.row.call)
        by_key.setdefault(key, []).append(slot)
        sizes[key] = size
    return [
        slots[start : start + sizes[key]]
        for key, slots in by_key.items()
        for start in range(0, len(slots), sizes[key])
    ]


def generate_images(
    pipeline: Pipeline,
    images: Sequence[PlannedImage],
    load_image: Callable[[int], NDArray[np.uint8]] | None = None,
) -> Iterator[tuple[Slot, NDArray[np.uint8] | Fault]]:
    """Make images batch by batch; yields where each belongs, and its pixels or its fault.

    Of a job of two stages, what the first one made follows the image that was made of it.

    Args:
        load_image: place of a row in the shard -> the image to be enlarged, if rows have some.
    """
    for numbers in make_batches(images, pipeline.batch_key):
        requests = [images[number].request for number in numbers]
        if load_image is not None:
            requests = [
                replace(request, image=load_image(images[number].row.index))
                for number, request in zip(numbers, requests, strict=True)
            ]
        for number, made in zip(numbers, pipeline.generate(requests), strict=True):
            if isinstance(made, Made):
                yield (number, IMAGE), made.pixels
                yield (number, LOW_RESOLUTION), made.low_resolution
            else:
                yield (number, IMAGE), made

"""Rows -> pixels: which images a shard needs, in which batches, and whose are unusable.

Rows with an equal call share a batch; the order of the rows is the caller's to restore. Must not
know who draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain

from ldm_batch.columns import IMAGE, LOW_RESOLUTION
from ldm_batch.generate.pipeline import BatchKey, Picture, Pipeline
from ldm_batch.generate.row_by_row import draw
from ldm_batch.generate.task import Task
from ldm_batch.identity import Form
from ldm_batch.records import (
    Call,
    Fault,
    Made,
    PlannedImage,
    Rejection,
    Request,
    Row,
    Slot,
)
from ldm_batch.write.encode import Drawn

MAX_OTHER_CALLS = 4
"""Of a shard of which nothing was drawn yet, by which a pipeline is tried that draws nothing of a
batch."""


def plan_images(
    task: Task, rows: Sequence[Row], form: Form, *, job_seed: int, num_images: int
) -> list[PlannedImage]:
    """All images of some rows, `num_images` each, in the order of the rows, with their seeds."""
    return [
        task.plan_image(row, number, job_seed, form) for row in rows for number in range(num_images)
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
    make_request: Callable[[PlannedImage], Request],
    as_usual: Callable[[Call], Call] = lambda call: call,
) -> Iterator[list[tuple[Slot, Drawn]]]:
    """Make images batch by batch; of each batch, where an image belongs, and its pixels or fault.

    What was measured of an image, and what the first of two stages made, follow it. Where a batch
    raises, the rows that it is about are faults; see row_by_row.py.

    Args:
        pipeline: who draws.
        images: of a shard.
        make_request: what the pipeline is told of an image.
        as_usual: the call of a row with the job's own numbers in place of those that it asks.

    Raises:
        Exception: the pipeline draws nothing of the shard.
    """
    batches = make_batches(images, pipeline.batch_key)
    shown: Request | None = None
    for place, numbers in enumerate(batches):
        requests = [make_request(images[number]) for number in numbers]
        others = _others(batches[place + 1 :], images, pipeline.batch_key)
        known, first = [shown] if shown else [], requests[0]
        witnesses = chain(
            known,
            (make_request(images[number]) for number in others),
            [replace(first, call=usual)] if (usual := as_usual(first.call)) != first.call else [],
        )
        drawn: list[tuple[Slot, Drawn]] = []
        pictures = draw(pipeline, requests, witnesses)
        for number, request, made in zip(numbers, requests, pictures, strict=True):
            if not isinstance(made, Fault):
                shown = request
            drawn += _drawn(number, made)
        yield drawn


def _drawn(number: int, made: Picture) -> Iterator[tuple[Slot, Drawn]]:
    """An image, and what follows it."""
    if not isinstance(made, Made):
        yield (number, IMAGE), made
        return
    yield (number, IMAGE), made.pixels
    if made.low_resolution is not None:
        yield (number, LOW_RESOLUTION), made.low_resolution
    if made.columns:
        yield (number, IMAGE), made.columns


def _others(
    later: Sequence[Sequence[int]], images: Sequence[PlannedImage], batch_key: BatchKey
) -> Iterator[int]:
    """Images of later batches to try a pipeline by, one of each of a few calls."""
    seen: list[Call] = []
    for number in (batch[0] for batch in later):
        key, _ = batch_key(images[number].row.call)
        if key not in seen and len(seen) < MAX_OTHER_CALLS:
            seen.append(key)
            yield number


def reject_faulty(
    images: Sequence[PlannedImage], faults: Mapping[int, Fault]
) -> dict[str, Rejection]:
    """Reject, by key, each row of which an image is unusable: a row has all its images or none."""
    rejections: dict[str, Rejection] = {}
    for number, fault in sorted(faults.items()):
        image = images[number]
        message = f"image {image.image_index}, seed {image.seed}: {fault.message}"
        rejection = Rejection(image.row.key, image.row.input_row, fault.reason, message)
        rejections.setdefault(image.row.key, rejection)
    return rejections

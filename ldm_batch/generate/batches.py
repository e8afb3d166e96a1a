"""Rows -> pixels: which images a shard needs, in which batches, and whose are unusable.

Rows with an equal call share a batch; the order of the rows is the caller's to restore. Must not
know who draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from ldm_batch.columns import IMAGE, LOW_RESOLUTION
from ldm_batch.generate.pipeline import BatchKey, Pipeline
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
) -> Iterator[list[tuple[Slot, Drawn]]]:
    """Make images batch by batch; of each batch, where an image belongs, and its pixels or fault.

    What was measured of an image, and what the first of two stages made, follow it.

    Args:
        make_request: what the pipeline is told of an image.
    """
    for numbers in make_batches(images, pipeline.batch_key):
        requests = [make_request(images[number]) for number in numbers]
        drawn: list[tuple[Slot, Drawn]] = []
        for number, made in zip(numbers, pipeline.generate(requests), strict=True):
            if isinstance(made, Made):
                drawn.append(((number, IMAGE), made.pixels))
                if made.low_resolution is not None:
                    drawn.append(((number, LOW_RESOLUTION), made.low_resolution))
                if made.columns:
                    drawn.append(((number, IMAGE), made.columns))
            else:
                drawn.append(((number, IMAGE), made))
        yield drawn


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

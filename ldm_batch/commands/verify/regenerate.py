"""Make images of a dataset again from their own records, and compare.

On the same kind of device the encoded bytes must be equal; on another kind of device the pixels may
differ by `MAX_MEAN_LEVELS` on the mean, of 255.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from PIL import Image

from ldm_batch import identity
from ldm_batch.config import JobConfig, with_size
from ldm_batch.config.job import ImageFormat
from ldm_batch.dataset import Dataset
from ldm_batch.generate.batches import generate_images, plan_images
from ldm_batch.generate.choose import Choice, choose
from ldm_batch.generate.pipeline import Picture, Pipeline
from ldm_batch.plan.stored import Plan
from ldm_batch.read.images import InputImages
from ldm_batch.read.rows import RowContext
from ldm_batch.read.shard import read_shard
from ldm_batch.records import Fault, Made, Request, Shard, join_locks
from ldm_batch.storage import Store
from ldm_batch.write.encode import encode_image, sha256
from ldm_batch.write.spool import Spool

MAX_MEAN_LEVELS = 1.0
"""Other kernels round differently: of 49,152 values of an image 130 changed with the size of the
batch, where a codebook amplifies it. Another image differs by far more."""
NO_SIDE = 8
"""Pixels, where a call must have some: rows that are read again bring images, and so the size."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Which images to make again."""

    num_images: int = 0
    choice: int = 0
    """Seed of the random choice."""
    model_path: str | None = None
    """Where the planned model is now; null: where it was."""


@dataclass(frozen=True, slots=True)
class Regenerated:
    """How many images were made again, and how many came out as they are stored."""

    num_images: int
    num_equal: int
    num_within_tolerance: int
    device: str
    largest_mean_levels: float
    problems: tuple[str, ...]


def regenerate(dataset: Dataset, sample: Sample) -> Regenerated:
    """Make random images of a dataset again and compare them with what is stored.

    Enlarged images need their input as well, which is read where the plan says that it is.

    Args:
        dataset: of which at least one shard is done.
        sample: how many to make again, and which.

    Raises:
        JobError: the model does not load, or is not the one that was planned.
    """
    chosen = choose(_as_here(dataset.job, sample.model_path))
    pipeline = chosen.load(planned_lock(dataset.plan.document["images"]))
    device = str(pipeline.describe().get("device"))
    shards = _choose_shards(dataset, sample)
    problems: list[str] = []
    num_equal = num_near = 0
    largest = 0.0
    for index in sorted(set(shards)):
        rows = _choose_rows(dataset, index, shards.count(index), sample.choice)
        is_same_device = _recorded_device(dataset.store, index) in (None, device)
        again = _make_again(chosen, pipeline, rows, dataset.plan, index)
        for row, made in zip(rows, again, strict=True):
            levels = _difference(row, made, chosen.job)
            largest = max(largest, levels)
            num_equal += levels == 0
            is_near = not is_same_device and levels <= MAX_MEAN_LEVELS
            num_near += levels > 0 and is_near
            if levels > 0 and not is_near:
                name = f"{identity.data_path(f'{index:05d}')}: {row['key']} #{row['image_index']}"
                problems.append(f"{name}: made again it differs by {levels:.3g} levels on the mean")
    num_made = num_equal + num_near + len(problems)
    return Regenerated(num_made, num_equal, num_near, device, largest, tuple(problems))


def _as_here(job: JobConfig, model_path: str | None) -> JobConfig:
    """The planned job, on whatever device there is here, its model where it is now."""
    model = replace(job.model, device="auto", path=model_path or job.model.path)
    return replace(job, model=model)


def _choose_shards(dataset: Dataset, sample: Sample) -> list[int]:
    """A shard for each image to make again, at random, none more often than it has images."""
    dice, left = random.Random(sample.choice), [shard.index for shard in dataset.done]
    chosen: list[int] = []
    num_images: dict[int, int] = {}
    while left and len(chosen) < sample.num_images:
        index = dice.choice(left)
        if index not in num_images:
            num_images[index] = dataset.num_images(index)
        if chosen.count(index) < num_images[index]:
            chosen.append(index)
        else:
            left.remove(index)
    return sorted(chosen)


def planned_lock(images: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the files of all models that a plan names."""
    second = images.get("second_stage", {"model": {"files": {}}})
    return join_locks(images["model"]["files"], second["model"]["files"])


def _choose_rows(dataset: Dataset, index: int, count: int, choice: int) -> list[Mapping[str, Any]]:
    """Random images of one object, fewer where it holds fewer."""
    total = dataset.num_images(index)
    wanted = random.Random(f"{choice}/{index}").sample(range(total), min(count, total))
    return dataset.rows_at(index, wanted)


def _recorded_device(store: Store, index: int) -> str | None:
    try:
        receipt = json.loads(store.read(identity.receipt_path(f"{index:05d}")) or b"")
        return str(receipt["pipeline"]["device"])
    except (ValueError, KeyError, TypeError):
        return None


def _make_again(
    chosen: Choice,
    pipeline: Pipeline,
    rows: Sequence[Mapping[str, Any]],
    plan: Plan,
    index: int,
) -> Iterator[Picture]:
    """Make the images of some rows of a shard again, in their order."""
    if (request_again := chosen.task.request_again) is not None:
        requests = [request_again(row, chosen.task.columns) for row in rows]
        yield from _generate(pipeline, requests, chosen.job.batch_size)
        return
    for row in rows:
        place = replace(plan.shards[index], row_start=row["input_row"], num_rows=1)
        yield from _read_and_generate(chosen, pipeline, place, row["image_index"], plan.form)


def _generate(
    pipeline: Pipeline, requests: Sequence[Request], batch_size: int
) -> Iterator[Picture]:
    """Images of requests in their order."""
    made: dict[int, Picture] = {}
    for call in {request.call for request in requests}:
        slots = [slot for slot, request in enumerate(requests) if request.call == call]
        for start in range(0, len(slots), batch_size):
            batch = slots[start : start + batch_size]
            images = pipeline.generate([requests[slot] for slot in batch])
            made.update(zip(batch, images, strict=True))
    yield from (made[slot] for slot in range(len(requests)))


def _read_and_generate(
    chosen: Choice, pipeline: Pipeline, row: Shard, image_index: int, form: identity.Form
) -> Iterator[Picture]:
    """An image of one row, which is read again where the plan says that it is."""
    job, task = chosen.job, chosen.task
    call = with_size(job.call, (NO_SIDE, NO_SIDE))
    with Spool() as spool:
        inputs = InputImages(job, row, spool)
        context = RowContext(job.source, call, form, inputs)
        found = read_shard(row, task.columns, task.parse_row, context)
        images = plan_images(
            task,
            found.rows,
            form,
            job_seed=job.seed,
            num_images=job.num_images_per_prompt,
        )
        wanted = [image for image in images if image.image_index == image_index]
        made = generate_images(
            pipeline, wanted, lambda image: task.make_request(image, inputs.load)
        )
        yield from (pixels for _, pixels in made if not isinstance(pixels, Mapping))


def _difference(row: Mapping[str, Any], made: Picture, job: JobConfig) -> float:
    """Mean difference in levels of 255 between an image and what is stored; 0: the same bytes."""
    if isinstance(made, Fault):
        return 255.0
    pixels = made.pixels if isinstance(made, Made) else made
    encoded = encode_image(pixels, cast(ImageFormat, job.image.format), mark=job.image.mark)
    if sha256(encoded) == row["image_sha256"]:
        return 0.0
    with Image.open(io.BytesIO(row["image"]["bytes"])) as stored:
        before = np.asarray(stored.convert("RGB"), np.int16)
    with Image.open(io.BytesIO(encoded)) as again:
        after = np.asarray(again.convert("RGB"), np.int16)
    if before.shape != after.shape:
        return 255.0
    return max(float(np.abs(before - after).mean()), 1e-9)

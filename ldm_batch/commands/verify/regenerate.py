"""Make images of a dataset again from their own records, and compare.

On the same kind of device the encoded bytes must be equal; what was made otherwise than planned is
made so again. On another kind of device, and where an image had to be made otherwise here, pixels
may differ by `MAX_MEAN_LEVELS` on the mean, of 255.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from PIL import Image

from ldm_batch import identity
from ldm_batch.commands.verify.again import MakerAgain, NotMade
from ldm_batch.config import JobConfig
from ldm_batch.config.job import ImageFormat
from ldm_batch.dataset import Dataset
from ldm_batch.diffusion.models.loras import moved_loras
from ldm_batch.generate.choose import choose
from ldm_batch.generate.pipeline import Picture
from ldm_batch.made_as import how_made
from ldm_batch.records import Fault, Made, join_locks
from ldm_batch.storage import Store
from ldm_batch.write.encode import encode_image, sha256

MAX_MEAN_LEVELS = 1.0
"""Other kernels round differently: of 49,152 values of an image 130 changed with the size of the
batch, where a codebook amplifies it. Another image differs by far more."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Which images to make again."""

    num_images: int = 0
    choice: int = 0
    """Seed of the random choice."""
    model_path: str | None = None
    """Where the planned model is now; null: where it was."""
    lora_paths: tuple[str, ...] = ()
    """Where planned LoRAs are now, known by their SHA-256; others: where they were."""


@dataclass(frozen=True, slots=True)
class Regenerated:
    """How many images were made again, and how many came out as they are stored."""

    num_images: int
    num_equal: int
    num_within_tolerance: int
    """Near enough, where the same bytes were not to be had: made on another kind of device, or here
    otherwise than there because memory ran out or half precision gave no picture."""
    num_not_made: int
    """Images that could not be made again: their input is gone, or another one."""
    device: str
    largest_mean_levels: float
    problems: tuple[str, ...]


def regenerate(dataset: Dataset, sample: Sample) -> Regenerated:
    """Make random images of a dataset again and compare them with what is stored.

    Enlarged images need their input as well, which is read where the plan says that it is, and
    must be what it was.

    Args:
        dataset: of which at least one shard is done.
        sample: how many to make again, and which.

    Raises:
        JobError: the model does not load, or is not the one that was planned.
        StorageError: an input image is there but cannot be read.
    """
    again = load_again(dataset, sample.model_path, sample.lora_paths)
    shards = _choose_shards(dataset, sample)
    comparison = Comparison(again.job, again.device)
    for index in sorted(set(shards)):
        rows = _choose_rows(dataset, index, shards.count(index), sample.choice)
        is_same_device = _recorded_device(dataset.store, index) in (None, again.device)
        for row, made in again.maker.make(index, rows):
            name = f"{identity.data_path(f'{index:05d}')}: {row['key']} #{row['image_index']}"
            comparison.add(name, row, made, is_same_device=is_same_device)
    return comparison.result()


@dataclass(frozen=True, slots=True)
class Again:
    """The models of a dataset, loaded to make images of it again."""

    job: JobConfig
    """The planned job, on the device that there is here."""
    maker: MakerAgain
    device: str


def load_again(dataset: Dataset, model_path: str | None, lora_paths: Sequence[str] = ()) -> Again:
    """Load the models that a dataset was planned with.

    Args:
        model_path: where the planned model is now; None: where it was.
        lora_paths: where planned LoRAs are now, in any order.

    Raises:
        JobError: a model does not load, or is not the one that was planned.
    """
    lock = planned_lock(dataset.plan.document["images"])
    job = _as_here(dataset.job, model_path)
    if lora_paths:
        job = replace(job, model=moved_loras(job.model, lock, lora_paths))
    chosen = choose(job)
    pipeline = chosen.load(lock)
    maker = MakerAgain(chosen, pipeline, dataset.plan)
    return Again(chosen.job, maker, str(pipeline.describe().get("device")))


class Comparison:
    """Images that were made again beside those that are stored, counted."""

    def __init__(self, job: JobConfig, device: str) -> None:
        self._job, self._device = job, device
        self._num_equal = self._num_near = self._num_different = self._num_not_made = 0
        self._largest = 0.0
        self._problems: list[str] = []

    def add(
        self, name: str, row: Mapping[str, Any], made: Picture | NotMade, *, is_same_device: bool
    ) -> None:
        """Compare one image with its record."""
        if isinstance(made, NotMade):
            self._num_not_made += 1
            self._problems.append(f"{name}: not made again: {made.why}")
            return
        levels = mean_levels(row, made, self._job)
        self._largest = max(self._largest, levels)
        is_made_alike = is_same_device and not str(how_made(made))
        if levels == 0:
            self._num_equal += 1
        elif not is_made_alike and levels <= MAX_MEAN_LEVELS:
            self._num_near += 1
        else:
            self._num_different += 1
            text = f"{name}: made again it differs by {levels:.3g} levels on the mean"
            self._problems.append(text)

    def result(self) -> Regenerated:
        """What was found."""
        return Regenerated(
            num_images=self._num_equal + self._num_near + self._num_different,
            num_equal=self._num_equal,
            num_within_tolerance=self._num_near,
            num_not_made=self._num_not_made,
            device=self._device,
            largest_mean_levels=self._largest,
            problems=tuple(self._problems),
        )


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


def mean_levels(row: Mapping[str, Any], made: Picture, job: JobConfig) -> float:
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

"""Rows -> pixels: which images a shard needs, in which batches, from which pipeline.

Rows with an equal call share a batch; the order of the rows is the caller's to restore. Must not
know how a pipeline works: torch and diffusers are loaded only when a pipeline is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ldm_batch.config import JobConfig
from ldm_batch.identity import image_seed
from ldm_batch.records import Call, Fault, PlannedImage, PromptCount, Request, Row

RANDOM_PIXELS_SIDE = 8


class Pipeline(Protocol):
    """What the rest of the program knows of a model."""

    def count_tokens(self, prompts: Sequence[str]) -> list[PromptCount]:
        """Tokens of each prompt, and whether the text encoder would cut it."""

    def generate(self, requests: Sequence[Request]) -> list[NDArray[np.uint8] | Fault]:
        """One image per request (uint8, height x width x 3), all with an equal call; what an
        image looks like does not depend on the requests beside it."""

    def describe(self) -> dict[str, Any]:
        """What made the images, for provenance; JSON values."""

    def pop_notes(self) -> list[str]:
        """What happened since the last call that a receipt should tell, such as a split batch."""


class RandomPixels:
    """Pictures of random pixels without a model, to measure everything around one."""

    def count_tokens(self, prompts: Sequence[str]) -> list[PromptCount]:
        """Count words."""
        return [PromptCount(len(prompt.split()), False) for prompt in prompts]

    def generate(self, requests: Sequence[Request]) -> list[NDArray[np.uint8] | Fault]:
        """Random pixels from each request's seed."""
        return [self._draw(request) for request in requests]

    def describe(self) -> dict[str, Any]:
        """Name itself."""
        return {"pipeline": "random_pixels", "scheduler": "none", "device": "cpu"}

    def pop_notes(self) -> list[str]:
        """Nothing ever happens."""
        return []

    @staticmethod
    def _draw(request: Request) -> NDArray[np.uint8]:
        bits = np.random.Generator(np.random.Philox(request.seed))
        shape = (request.call.height, request.call.width, 3)
        return bits.integers(0, 256, shape, dtype=np.uint8)


def find_model(job: JobConfig) -> tuple[dict[str, str], tuple[int, int]]:
    """Find the model's files without loading them.

    Returns:
        The SHA-256 of every file that loading reads, and the model's own height and width.

    Raises:
        JobError: the model is not there or not what we load.
    """
    if job.model.pipeline == "random_pixels":
        return {}, (RANDOM_PIXELS_SIDE, RANDOM_PIXELS_SIDE)
    from ldm_batch.diffusion import files

    folder: Path = files.find_model(job.model)
    if job.call.height is not None and job.call.width is not None:
        return files.lock_model(folder), (job.call.height, job.call.width)
    return files.lock_model(folder), files.native_size(folder)


def load_pipeline(job: JobConfig, lock: Mapping[str, str]) -> Pipeline:
    """Load the job's model into this process.

    Raises:
        JobError: the model does not load, or its files are not those of the lock.
    """
    if job.model.pipeline == "random_pixels":
        return RandomPixels()
    import torch

    from ldm_batch.diffusion.text_to_image import TextToImage

    torch.set_num_threads(job.num_threads)
    return TextToImage.from_config(job.model, job.scheduler, batch_size=job.batch_size, lock=lock)


def plan_images(
    rows: Sequence[Row], job_seed: int, num_images_per_prompt: int
) -> list[PlannedImage]:
    """All images of some rows, in the order of the rows, with their seeds."""
    return [
        PlannedImage(row, k, image_seed(job_seed, row.key, k, row.seed))
        for row in rows
        for k in range(num_images_per_prompt)
    ]


def make_batches(images: Sequence[PlannedImage], batch_size: int) -> list[list[int]]:
    """Cut images into batches with an equal call; positions, each exactly once.

    Calls come in the order in which they first appear, images of a call in their own order.
    """
    by_call: dict[Call, list[int]] = {}
    for slot, image in enumerate(images):
        by_call.setdefault(image.row.call, []).append(slot)
    return [
        slots[start : start + batch_size]
        for slots in by_call.values()
        for start in range(0, len(slots), batch_size)
    ]


def generate_images(
    pipeline: Pipeline, images: Sequence[PlannedImage], batch_size: int
) -> Iterator[tuple[int, NDArray[np.uint8] | Fault]]:
    """Make images batch by batch; yields the position of each and its pixels or its fault."""
    for slots in make_batches(images, batch_size):
        made = pipeline.generate([images[slot].request for slot in slots])
        yield from zip(slots, made, strict=True)

"""Rows -> pixels: which images a shard needs, in which batches, from which pipeline.

Rows with an equal call share a batch; the order of the rows is the caller's to restore. Must not
know how a pipeline works: torch and diffusers are loaded only when a pipeline is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ldm_batch.config import JobConfig, ModelConfig, has_second_stage
from ldm_batch.errors import JobError
from ldm_batch.identity import Form
from ldm_batch.records import Call, Fault, Made, PlannedImage, PromptCount, Request, Row

RANDOM_PIXELS_SIDE, RANDOM_PIXELS_BATCH = 8, 16
SECOND_STAGE = "upscale/"
"""Before the paths of the second model's files in the lock of a job of two stages."""
PIPELINE_CLASSES = {
    "text_to_image": "LDMTextToImagePipeline",
    "super_resolution": "LDMSuperResolutionPipeline",
}
BatchKey = Callable[[Call], tuple[Call, int]]
"""call -> what calls must share to be in one batch, and how many images one batch may have."""


class Pipeline(Protocol):
    """What the rest of the program knows of a model.

    It may have a method `batch_key` (see `BatchKey`); without one, images of an equal call share
    batches of the job's `batch_size`.
    """

    def count_tokens(self, prompts: Sequence[str]) -> list[PromptCount]:
        """Tokens of each prompt, and whether the text encoder would cut it."""

    def generate(self, requests: Sequence[Request]) -> Sequence[NDArray[np.uint8] | Made | Fault]:
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
        The SHA-256 of every file that loading reads, and the model's own height and width; files
        of a second stage under `SECOND_STAGE`.

    Raises:
        JobError: the model is not there or not what we load.
    """
    if job.model.pipeline == "random_pixels":
        return {}, (RANDOM_PIXELS_SIDE, RANDOM_PIXELS_SIDE)
    from ldm_batch.diffusion import files

    folder = files.find_model(job.model)
    lock = files.lock_model(folder)
    if has_second_stage(job):
        lock = join_locks(lock, files.lock_model(files.find_model(job.upscale.model)))
    if job.call.height is not None and job.call.width is not None:
        return lock, (job.call.height, job.call.width)
    return lock, files.native_size(folder)


def check_models(job: JobConfig) -> None:
    """Check without weights that each model is of the kind that the job needs, and that its
    scheduler takes the job's settings.

    Raises:
        JobError: names the field.
    """
    if job.model.pipeline == "random_pixels":
        return
    from ldm_batch.diffusion import files, schedulers

    stages = [("", job.model, job.scheduler)]
    if has_second_stage(job):
        stages.append(("upscale.", job.upscale.model, job.upscale.scheduler))
    for section, model, scheduler in stages:
        folder = files.find_model(model)
        kind, wanted = files.read_kind(folder), PIPELINE_CLASSES[model.pipeline]
        if kind != wanted:
            raise JobError(
                f"{section}model.path: {folder} holds a {kind}; "
                f"{section}model.pipeline={model.pipeline} needs a {wanted}"
            )
        try:
            own = files.read_json(folder / "scheduler" / "scheduler_config.json")
            schedulers.make_scheduler(own, scheduler.name, scheduler.settings)
        except JobError as error:
            raise JobError(f"{section}{error}") from error


def join_locks(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, str]:
    """The lock of a job of two stages; `split_lock` takes it apart."""
    return {**first, **{f"{SECOND_STAGE}{path}": digest for path, digest in second.items()}}


def split_lock(lock: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The files of the job's model, and those of its second stage if it has one."""
    first = {path: digest for path, digest in lock.items() if not path.startswith(SECOND_STAGE)}
    second = {
        path.removeprefix(SECOND_STAGE): digest
        for path, digest in lock.items()
        if path.startswith(SECOND_STAGE)
    }
    return first, second


def load_pipeline(job: JobConfig, lock: Mapping[str, str]) -> Pipeline:
    """Load the job's model, or models, into this process.

    Raises:
        JobError: a model does not load, or its files are not those of the lock.
    """
    if job.model.pipeline == "random_pixels":
        return RandomPixels()
    import torch

    from ldm_batch.diffusion.super_resolution import SuperResolution
    from ldm_batch.diffusion.text_to_image import TextToImage
    from ldm_batch.generate.then_upscale import ImagesLarger, TextToLargeImages

    torch.set_num_threads(job.num_threads)
    first, second = split_lock(lock)
    tiles: dict[str, Any] = {
        "tile_size": job.upscale.tile_size,
        "tile_overlap": job.upscale.tile_overlap,
    }
    if job.model.pipeline == "super_resolution":
        return ImagesLarger(
            SuperResolution.from_config(
                job.model, job.scheduler, batch_size=job.batch_size, lock=first, **tiles
            )
        )
    painter = TextToImage.from_config(
        job.model, job.scheduler, batch_size=job.batch_size, lock=first
    )
    if not has_second_stage(job):
        return painter
    shared = painter.modules(shared_components(first, second, job.model, job.upscale.model))
    upscaler = SuperResolution.from_config(
        job.upscale.model,
        job.upscale.scheduler,
        batch_size=job.batch_size,
        lock=second,
        shared=shared,
        **tiles,
    )
    return TextToLargeImages(
        painter,
        upscaler,
        num_inference_steps=job.upscale.num_inference_steps,
        eta=job.upscale.eta,
    )


def shared_components(
    first: Mapping[str, str],
    second: Mapping[str, str],
    first_model: ModelConfig,
    second_model: ModelConfig,
) -> list[str]:
    """Names of the components that two models have in common, file by file, and load alike."""
    if replace(first_model, pipeline="", path=None, repo_id=None, revision=None) != replace(
        second_model, pipeline="", path=None, repo_id=None, revision=None
    ):
        return []

    def of(name: str, lock: Mapping[str, str]) -> dict[str, str]:
        return {path: digest for path, digest in lock.items() if path.startswith(f"{name}/")}

    names = {path.split("/")[0] for path in second if "/" in path} - {"scheduler"}
    return sorted(name for name in names if of(name, first) == of(name, second))


def measure_batch_size(job: JobConfig, native_size: tuple[int, int]) -> int:
    """Find the batch size that suits the job's model on this machine, or remember it.

    Raises:
        JobError: the model does not load.
        ShardError: not even one image fits into memory.
    """
    if job.model.pipeline == "random_pixels":
        return RANDOM_PIXELS_BATCH
    import torch

    from ldm_batch.diffusion.batch_size import find_batch_size

    torch.set_num_threads(job.num_threads)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    (height, width), call = native_size, job.call
    return find_batch_size(
        job.model,
        job.scheduler,
        Call(
            call.num_inference_steps,
            call.guidance_scale,
            call.eta,
            call.height or height,
            call.width or width,
        ),
        memory=cache / "ldm_batch" / "batch_sizes.json",
    )


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
    batch_size: int,
    load_image: Callable[[int], NDArray[np.uint8]] | None = None,
) -> Iterator[tuple[int, NDArray[np.uint8] | Fault]]:
    """Make images batch by batch; yields the position of each and its pixels or its fault.

    What the first of two stages made follows at its image's position plus the number of images.

    Args:
        load_image: place of a row in the shard -> the image to be enlarged, if rows have some.
    """
    batch_key: BatchKey = getattr(pipeline, "batch_key", lambda call: (call, batch_size))
    for slots in make_batches(images, batch_key):
        requests = [images[slot].request for slot in slots]
        if load_image is not None:
            requests = [
                replace(request, image=load_image(images[slot].row.index))
                for slot, request in zip(slots, requests, strict=True)
            ]
        for slot, made in zip(slots, pipeline.generate(requests), strict=True):
            if isinstance(made, Made):
                yield slot, made.pixels
                yield slot + len(images), made.low_resolution
            else:
                yield slot, made

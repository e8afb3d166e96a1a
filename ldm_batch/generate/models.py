"""The models of a job: found, checked without weights, locked by content, loaded.

torch and diffusers are imported only where a model is looked into. Must not know rows or shards.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldm_batch.config import JobConfig, ModelConfig, has_second_stage
from ldm_batch.errors import JobError
from ldm_batch.generate.pipeline import Pipeline
from ldm_batch.generate.random_pixels import RANDOM_PIXELS_BATCH, RANDOM_PIXELS_SIDE, RandomPixels
from ldm_batch.records import Call

SECOND_STAGE = "upscale/"
"""Before the paths of the second model's files in the lock of a job of two stages."""
PIPELINE_CLASSES = {
    "text_to_image": "LDMTextToImagePipeline",
    "super_resolution": "LDMSuperResolutionPipeline",
}


def find_models(job: JobConfig) -> tuple[dict[str, str], tuple[int, int]]:
    """Find the files of a job's models without loading them.

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
        return RandomPixels(job.batch_size)
    import torch

    from ldm_batch.diffusion.super_resolution import SuperResolution
    from ldm_batch.diffusion.text_to_image import TextToImage
    from ldm_batch.generate.super_resolution import ImagesLarger
    from ldm_batch.generate.then_upscale import TextToLargeImages

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

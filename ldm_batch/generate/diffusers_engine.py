"""Engine `diffusers`: later text-to-image models, by diffusers' own pipelines.

A second stage stays with our own loop. torch and diffusers are imported only where a model is
looked into. Must not know rows or shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from ldm_batch.config import JobConfig
from ldm_batch.errors import JobError
from ldm_batch.generate import ldm
from ldm_batch.generate.pipeline import Pipeline
from ldm_batch.generate.task import Engine, FoundModels, Lock, Stage, Task
from ldm_batch.generate.text_to_image import TEXT_TO_IMAGE
from ldm_batch.generate.then_upscale import load_both

if TYPE_CHECKING:
    from pathlib import Path

    from ldm_batch.diffusion.family.pipeline import FamilyPipeline

NAME = "diffusers"


def check(job: JobConfig, task: Task) -> Iterator[str]:
    """What no pipeline of diffusers does: other tasks, and what belongs to our own loop."""
    if task.name != TEXT_TO_IMAGE.name:
        yield f"model.engine: {NAME} draws task={TEXT_TO_IMAGE.name} only, not {task.name}"
    if list(job.scheduler.guidance_interval) != [0.0, 1.0]:
        yield (
            f"scheduler.guidance_interval: {job.scheduler.guidance_interval}, but engine {NAME} "
            "guides all steps; leave it out (speed=fast sets it)"
        )
    if job.scheduler.cache_interval > 1:
        yield (
            f"scheduler.cache_interval: {job.scheduler.cache_interval}, but engine {NAME} computes "
            "every step; leave it out"
        )
    for stage in task.stages(job):
        if stage.section:
            yield from ldm.check_fields(stage)


def find(job: JobConfig, task: Task) -> FoundModels:
    """Find the files of a job's models without loading them; pickled ones are converted.

    Raises:
        JobError: a model is not there, or none of the closed table.
    """
    return ldm.find_stages(job, task.stages(job))


def check_models(job: JobConfig, task: Task) -> list[str]:
    """Check without weights that the parts of the model are of the closed table, that its scheduler
    takes the job's settings, and that the pipeline can do all that the job's call says.

    Returns:
        What the user should know of it.

    Raises:
        JobError: names the field.
    """
    from ldm_batch.diffusion.family.files import read_not_loaded
    from ldm_batch.diffusion.models.find import find_model

    first, *others = task.stages(job)
    folder = find_model(first.model)
    notes = [note for stage in others for note in ldm.check_stage(job, stage, task)]
    _check_first(job, first, folder)
    if not_loaded := read_not_loaded(folder):
        notes.append(f"model: never loaded: {', '.join(not_loaded)}")
    return notes


def _check_first(job: JobConfig, stage: Stage, folder: Path) -> None:
    from ldm_batch.diffusion.family.extras import check_extras
    from ldm_batch.diffusion.family.files import read_family, size_multiple
    from ldm_batch.diffusion.family.load import check_parts
    from ldm_batch.diffusion.family.scheduler import find_config_trouble, make_family_scheduler
    from ldm_batch.diffusion.models import files

    kind, family = files.read_kind(folder), read_family(folder)
    check_parts(folder)
    check_extras(stage.model)
    if stage.model.loras and not family.loras:
        raise JobError(f"model.loras: diffusers fuses none into a {kind}; leave them out")
    if trouble := find_config_trouble(family, stage.model.scheduler_config):
        raise JobError(f"model.scheduler_config.{trouble}")
    own = files.read_json(folder / "scheduler" / "scheduler_config.json")
    make_family_scheduler(kind, family, own | stage.model.scheduler_config, stage.scheduler)
    refused = {
        "call.eta": (job.call.eta, family.has_eta),
        "call.negative_prompt": (job.call.negative_prompt, family.has_negative),
        "call.guidance_rescale": (job.call.guidance_rescale, family.has_rescale),
        "scheduler.guidance_rescale": (job.scheduler.guidance_rescale, family.has_rescale),
    }
    for field, (value, is_known) in refused.items():
        if value and not is_known:
            raise JobError(f"{field}: {value!r}, but {kind} takes none; leave it out")
    if job.model.attention == "plain" and family.denoiser != "unet":
        raise JobError(f"model.attention: plain is for UNets; {kind} has none; leave it at sdpa")
    multiple = size_multiple(folder, family)
    for name in ("height", "width"):
        if (side := getattr(job.call, name)) is not None and side % multiple:
            raise JobError(
                f"call.{name}: {side} is not a multiple of {multiple}, which {kind} needs"
            )


def load(job: JobConfig, task: Task, lock: Lock) -> Pipeline:
    """Load the models of a job into this process, and probe the first.

    Raises:
        JobError: a model does not load, its files are not those of the lock, or it draws noise that
            is not the images' own.
    """
    if len(task.stages(job)) > 1:
        return load_both(replace(TEXT_TO_IMAGE, load=_load_first), job, lock)
    return _load_first(job, lock)


def _load_first(job: JobConfig, lock: Lock | None) -> FamilyPipeline:
    from ldm_batch.diffusion.family.pipeline import FamilyPipeline

    return FamilyPipeline.from_config(
        job.model,
        job.scheduler,
        batch_size=job.batch_size,
        num_threads=job.num_threads,
        lock=lock,
    )


def measure_batch_size(job: JobConfig, native_size: tuple[int, int]) -> int:
    """Find the batch size that suits the job's model on this machine, or remember it.

    Raises:
        JobError: the model does not load.
        ShardError: not even one image fits into memory.
    """
    first = replace(job, batch_size=1)
    return ldm.measure_batch_size(job, native_size, lambda: _load_first(first, None))


DIFFUSERS = Engine(
    name=NAME,
    has_models=True,
    check=check,
    find=find,
    check_models=check_models,
    load=load,
    measure_batch_size=measure_batch_size,
)

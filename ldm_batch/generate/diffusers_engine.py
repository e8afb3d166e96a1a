"""Engine `diffusers`: later models, by diffusers' own pipelines.

A second stage stays with our own loop. torch and diffusers are imported only where a model is
looked into. Must not know rows or shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ldm_batch.columns import MASK
from ldm_batch.config import UPSCALE, JobConfig
from ldm_batch.errors import JobError
from ldm_batch.generate import ldm
from ldm_batch.generate.pipeline import Pipeline
from ldm_batch.generate.task import Engine, FoundModels, Lock, Stage, Task
from ldm_batch.generate.then_upscale import load_both

if TYPE_CHECKING:
    from pathlib import Path

    from ldm_batch.diffusion.family.family import Family
    from ldm_batch.diffusion.family.pipeline import FamilyPipeline

NAME = "diffusers"


def check(job: JobConfig, task: Task) -> Iterator[str]:
    """What no pipeline of diffusers does: what belongs to our own loop."""
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
    notes += _check_first(job, task, first, folder)
    if not_loaded := read_not_loaded(folder):
        notes.append(f"model: never loaded: {', '.join(not_loaded)}")
    return notes


def _check_first(job: JobConfig, task: Task, stage: Stage, folder: Path) -> list[str]:
    from ldm_batch.diffusion.family.extras import check_extras
    from ldm_batch.diffusion.family.files import read_drawing, read_family
    from ldm_batch.diffusion.family.parts import check_parts
    from ldm_batch.diffusion.family.scheduler import find_config_trouble, make_family_scheduler
    from ldm_batch.diffusion.models import files

    family, drawing = read_family(folder), read_drawing(folder, task.name)
    kind = drawing.pipeline
    check_parts(folder, stage.model.variant)
    check_extras(stage.model)
    if stage.model.loras and not family.loras:
        raise JobError(f"model.loras: diffusers fuses none into a {kind}; leave them out")
    if trouble := find_config_trouble(family, stage.model.scheduler_config):
        raise JobError(f"model.scheduler_config.{trouble}")
    own = files.read_json(folder / "scheduler" / "scheduler_config.json")
    made = make_family_scheduler(kind, family, own | stage.model.scheduler_config, stage.scheduler)
    refused = {
        "call.eta": (job.call.eta, family.has_eta),
        "call.negative_prompt": (job.call.negative_prompt, family.has_negative),
        "call.guidance_rescale": (job.call.guidance_rescale, drawing.has_rescale),
        "scheduler.guidance_rescale": (job.scheduler.guidance_rescale, drawing.has_rescale),
    }
    for field, (value, is_known) in refused.items():
        if value and not is_known:
            raise JobError(f"{field}: {value!r}, but {kind} takes none; leave it out")
    if job.model.attention == "plain" and family.denoiser != "unet":
        raise JobError(f"model.attention: plain is for UNets; {kind} has none; leave it at sdpa")
    return _check_call(job, task, family, folder, made)


def _check_call(
    job: JobConfig, task: Task, family: Family, folder: Path, scheduler: Any
) -> list[str]:
    """Check the numbers of the job's call; what the user should know of them."""
    from ldm_batch.diffusion.family.files import size_multiple
    from ldm_batch.diffusion.family.limits import size_limit, size_trouble, step_trouble
    from ldm_batch.diffusion.family.pictures import num_steps

    multiple, limit = size_multiple(folder, family), size_limit(folder, family)
    if trouble := size_trouble(job.call, multiple, limit):
        raise JobError(f"call.{trouble}")
    notes = _check_image_numbers(job, task, family, folder)
    steps, strength = job.call.num_inference_steps, _strength(job, task)
    taken = steps if strength is None else num_steps(family, steps, strength)
    if trouble := step_trouble(scheduler, family, steps, taken):
        raise JobError(f"call.{trouble}")
    return notes


def _strength(job: JobConfig, task: Task) -> float | None:
    return task.strength if job.call.strength is None else job.call.strength


def _check_image_numbers(job: JobConfig, task: Task, family: Family, folder: Path) -> list[str]:
    """Check what the job's call says of images that rows bring; what the user should know of it."""
    from ldm_batch.diffusion.family.files import max_noise_level
    from ldm_batch.diffusion.family.pictures import num_steps, strength_trouble

    strength = _strength(job, task)
    steps = job.call.num_inference_steps
    if strength is not None and (trouble := strength_trouble(family, steps, strength)):
        raise JobError(f"call.{trouble}")
    level, limit = job.call.noise_level, max_noise_level(folder, family)
    if level is not None and limit is not None and level > limit:
        raise JobError(f"call.noise_level: {level}, but this model takes {limit} at most")
    if strength is None or strength == 1 or MASK in task.columns.fields:
        return []
    if num_steps(family, steps, strength) == steps:
        return [
            f"warning: call.strength: {strength} of {steps} steps is rounded up to all of them by "
            "models of this kind: they begin with noise alone, and nothing of the images is seen; "
            "raise call.num_inference_steps"
        ]
    return []


def load(job: JobConfig, task: Task, lock: Lock) -> Pipeline:
    """Load the models of a job into this process, and probe the first.

    Raises:
        JobError: a model does not load, its files are not those of the lock, or it draws noise that
            is not the images' own.
    """

    def load_first(job: JobConfig, lock: Lock) -> FamilyPipeline:
        return _load_first(job, task.name, lock)

    job = ldm.on_own_device(job)
    if len(task.stages(job)) > 1:
        return load_both(load_first, job, lock, scale=task.columns.scale // UPSCALE)
    return load_first(job, lock)


def _load_first(job: JobConfig, task: str, lock: Lock | None) -> FamilyPipeline:
    from ldm_batch.diffusion.family.pipeline import FamilyPipeline

    return FamilyPipeline.from_config(
        job.model,
        job.scheduler,
        task=task,
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
    first = replace(ldm.on_own_device(job), batch_size=1)
    return ldm.measure_batch_size(job, native_size, lambda: _load_first(first, job.task, None))


DIFFUSERS = Engine(
    name=NAME,
    has_models=True,
    check=check,
    find=find,
    check_models=check_models,
    load=load,
    measure_batch_size=measure_batch_size,
)

"""Engine `ldm`: our own denoising loop on diffusers' models, for the paper's pipelines.

torch and diffusers are imported only where a model is looked into. Must not know rows or shards.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from ldm_batch.config import JobConfig, ModelConfig, with_size
from ldm_batch.errors import JobError
from ldm_batch.generate.pipeline import Pipeline
from ldm_batch.generate.task import Engine, FoundModels, Lock, Stage, Task
from ldm_batch.records import Call

if TYPE_CHECKING:
    from ldm_batch.diffusion.batch_size import Measurable


def check(job: JobConfig, task: Task) -> Iterator[str]:
    """The task has a model of its own to draw by, and our own loop draws it; a second stage alone
    draws nothing."""
    stages = task.stages(job)
    if task.load is None:
        yield f"model.engine: ldm does not draw task={task.name}; use model.engine=diffusers"
    if not any(not stage.section for stage in stages):
        yield f"model.engine: task={task.name} has no model that ldm could load"
    for stage in stages:
        yield from check_fields(stage)


def check_fields(stage: Stage) -> Iterator[str]:
    """What our own loop has no use for."""
    usual = ModelConfig()
    for name in ("text_encoder_dtype", "vae_slicing", "vae_tiling", "loras", "offload"):
        if getattr(stage.model, name) != getattr(usual, name):
            yield f"{stage.section}model.{name}: only engine diffusers knows it; leave it out"


def find(job: JobConfig, task: Task) -> FoundModels:
    """Find the files of a job's models without loading them; pickled ones are converted.

    Raises:
        JobError: a model is not there or not what we load.
    """
    from ldm_batch.diffusion.models.files import read_kind
    from ldm_batch.diffusion.models.find import find_source

    stages = task.stages(job)
    for stage in stages:  # before anything of it is converted
        _check_kind(task, stage, read_kind(find_source(stage.model)))
    return find_stages(job, stages)


def find_stages(job: JobConfig, stages: list[Stage]) -> FoundModels:
    """The files of models, those of a later stage with its section before their paths.

    Raises:
        JobError: a model is not there or not what we load.
    """
    from ldm_batch.diffusion.models import conversion, files
    from ldm_batch.diffusion.models.find import find_model
    from ldm_batch.diffusion.models.loras import lock_loras
    from ldm_batch.diffusion.models.sizes import native_size

    lock: dict[str, str] = {}
    results: dict[str, str] = {}
    folders = [(stage, find_model(stage.model)) for stage in stages]
    for stage, folder in folders:
        before, made = stage.section.replace(".", "/"), conversion.read_conversion(folder)
        locked = files.lock_model(folder, stage.model.variant) | lock_loras(stage.model)
        lock |= {f"{before}{path}": sha for path, sha in locked.items()}
        results |= {f"{before}{path}": sha for path, sha in (made.result if made else {}).items()}
    if job.call.height is not None and job.call.width is not None:
        return FoundModels(lock, (job.call.height, job.call.width), results)
    return FoundModels(lock, native_size(folders[0][1]), results)


def check_models(job: JobConfig, task: Task) -> list[str]:
    """Check without weights that each model is of the kind that the task needs, and that its
    scheduler takes the job's settings.

    Returns:
        What the user should know of them.

    Raises:
        JobError: names the field.
    """
    return [note for stage in task.stages(job) for note in check_stage(job, stage, task)]


def check_stage(job: JobConfig, stage: Stage, task: Task) -> list[str]:
    """The same for one model."""
    from ldm_batch.diffusion import schedulers
    from ldm_batch.diffusion.models import files
    from ldm_batch.diffusion.models.conversion import read_conversion
    from ldm_batch.diffusion.models.find import find_model
    from ldm_batch.diffusion.models.headers import check_headers

    folder, given = find_model(stage.model), stage.model.scheduler_config
    _check_kind(task, stage, files.read_kind(folder))
    made = read_conversion(folder)
    check_headers(folder, stage.model.variant if made is None else None)
    if trouble := schedulers.find_config_trouble(given):
        raise JobError(f"{stage.section}model.scheduler_config.{trouble}")
    own = files.read_json(folder / "scheduler" / "scheduler_config.json") | given
    notes = []
    if trouble := schedulers.find_beta_trouble(own):
        right = json.dumps(schedulers.PAPER_SETTINGS).replace('"', "").replace(" ", "")
        remedy = f"set '{stage.section}model.scheduler_config={right}'"
        notes.append(f"warning: {stage.section}model: {trouble}; {remedy}")
    try:
        scheduler = schedulers.make_scheduler(own, stage.scheduler.name, stage.scheduler.settings)
        steps = job.upscale if stage.section else job.call
        schedulers.check_steps(scheduler, steps.num_inference_steps)
    except JobError as error:
        raise JobError(f"{stage.section}{error}") from error
    return notes


def _check_kind(task: Task, stage: Stage, kind: str) -> None:
    """Raise a JobError where a model is of another kind than the task needs."""
    if kind == stage.model_class:
        return
    from ldm_batch.diffusion.family.table import FAMILIES

    what = f"task={task.name}" if not stage.section else "a second stage"
    model = stage.model
    named = f"path: {model.path}" if model.path is not None else f"repo_id: {model.repo_id}"
    remedy = "; model.engine=diffusers draws by it" * (kind in FAMILIES and not stage.section)
    raise JobError(
        f"{stage.section}model.{named} holds a {kind}; {what} needs a {stage.model_class}{remedy}"
    )


def load(job: JobConfig, task: Task, lock: Lock) -> Pipeline:
    """Load the models of a job into this process.

    Raises:
        JobError: a model does not load, or its files are not those of the lock.
    """
    assert task.load is not None
    return task.load(on_own_device(job), lock)


def on_own_device(job: JobConfig) -> JobConfig:
    """The job on what its cluster gives one worker: none of a machine's GPUs where it gives none,
    and, of one that several share, this worker's part of the memory."""
    from ldm_batch.diffusion.device_memory import limit_memory

    share, upscale = job.cluster.gpus_per_worker, job.upscale
    limit_memory(share)
    if share != 0:
        return job
    second = replace(upscale, model=replace(upscale.model, device="cpu"))
    return replace(job, model=replace(job.model, device="cpu"), upscale=second)


def measure_batch_size(
    job: JobConfig,
    native_size: tuple[int, int],
    load: Callable[[], Measurable] | None = None,
) -> int:
    """Find the batch size that suits the job's model on this machine, or remember it.

    Args:
        load: loads the model, its batch size 1; None: as a pipeline of the paper's.

    Raises:
        JobError: the model does not load.
        ShardError: not even one image fits into memory.
    """
    from ldm_batch.diffusion.batch_size import find_batch_size
    from ldm_batch.diffusion.models.cache import cache_folder
    from ldm_batch.diffusion.threads import limit_threads

    job = on_own_device(job)
    memory, call = cache_folder() / "batch_sizes.json", _usual_call(job, native_size)
    with limit_threads(job.num_threads):
        return find_batch_size(
            job.model,
            job.scheduler,
            call,
            memory=memory,
            load=load,
            share=job.cluster.gpus_per_worker,
        )


def _usual_call(job: JobConfig, native_size: tuple[int, int]) -> Call:
    """The call of a row that says nothing of it."""
    call = with_size(job.call, native_size)
    assert call.height is not None
    assert call.width is not None
    return Call(
        num_inference_steps=call.num_inference_steps,
        guidance_scale=call.guidance_scale,
        eta=call.eta,
        height=call.height,
        width=call.width,
    )


LDM = Engine(
    name="ldm",
    has_models=True,
    check=check,
    find=find,
    check_models=check_models,
    load=load,
    measure_batch_size=measure_batch_size,
)

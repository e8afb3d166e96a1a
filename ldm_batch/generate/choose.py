"""The tables of tasks and engines, and the choice of a job's.

A new task is a module, a line here, and a YAML in `conf/task/`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ldm_batch.columns import ARGUMENTS, COLUMNS
from ldm_batch.config import JobConfig
from ldm_batch.config.bounds import one_of, refuse
from ldm_batch.config.older import with_new_names
from ldm_batch.config.validate import validate
from ldm_batch.generate.diffusers_engine import DIFFUSERS
from ldm_batch.generate.image_to_image import IMAGE_TO_IMAGE
from ldm_batch.generate.inpainting import INPAINTING
from ldm_batch.generate.ldm import LDM
from ldm_batch.generate.pipeline import Pipeline
from ldm_batch.generate.prompted_super_resolution import PROMPTED_SUPER_RESOLUTION
from ldm_batch.generate.random_pixels import RANDOM_PIXELS
from ldm_batch.generate.super_resolution import SUPER_RESOLUTION
from ldm_batch.generate.task import Engine, FoundModels, Lock, Stage, Task
from ldm_batch.generate.text_to_image import TEXT_TO_IMAGE
from ldm_batch.generate.then_upscale import then_upscale

TASKS = {task.name: task for task in (TEXT_TO_IMAGE, IMAGE_TO_IMAGE, INPAINTING, SUPER_RESOLUTION)}
ENGINES = {engine.name: engine for engine in (LDM, DIFFUSERS, RANDOM_PIXELS)}
TASKS_BY_ENGINE = {(DIFFUSERS.name, SUPER_RESOLUTION.name): PROMPTED_SUPER_RESOLUTION}
"""(engine, task) -> the task whose rows are others where that engine draws it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A job, what its rows become images by, and who draws them."""

    job: JobConfig
    task: Task
    engine: Engine

    @property
    def stages(self) -> list[Stage]:
        """The models that the engine draws by, in the order of their work."""
        return self.task.stages(self.job) if self.engine.has_models else []

    def find_models(self) -> FoundModels:
        """Find the models; loads nothing."""
        return self.engine.find(self.job, self.task)

    def load(self, lock: Lock) -> Pipeline:
        """Load the models into this process."""
        return self.engine.load(self.job, self.task, lock)


def choose(job: JobConfig) -> Choice:
    """The task and the engine that a job names, by today's names or by older ones.

    Raises:
        JobError: there is no such task or engine.
    """
    job = with_new_names(job)
    refuse(one_of("task", job.task, sorted(TASKS)))
    refuse(one_of("model.engine", job.model.engine, sorted(ENGINES)))
    refuse(one_of("upscale.model.engine", job.upscale.model.engine, [LDM.name]))
    named = TASKS_BY_ENGINE.get((job.model.engine, job.task), TASKS[job.task])
    task, upscale = _with_used_columns(named, job), job.upscale
    if upscale.model.path is not None or upscale.model.repo_id is not None:
        task = then_upscale(task, keep_low_resolution=upscale.keep_low_resolution)
    return Choice(job, task, ENGINES[job.model.engine])


def _with_used_columns(task: Task, job: JobConfig) -> Task:
    """The task with the columns recorded that only a job which uses them has."""
    used = tuple(
        name
        for name in ARGUMENTS
        if COLUMNS[name].is_named
        and name in task.columns.fields
        and (job.source.columns.get(name) is not None or getattr(job.call, name) is not None)
    )
    recorded = (*task.columns.recorded, *used)
    return replace(task, columns=replace(task.columns, recorded=recorded)) if used else task


def measure_batch_size(job: JobConfig, native_size: tuple[int, int]) -> int:
    """The batch size that suits a job's model on this machine; travels to where a worker runs."""
    return choose(job).engine.measure_batch_size(job, native_size)


def validate_job(job: JobConfig) -> Choice:
    """Check every value of a job, by itself and for its task and engine.

    Raises:
        JobError: names every field with a bad value, one line each, and what it may be.
    """
    chosen = choose(job)
    task, engine = chosen.task, chosen.engine
    problems = [*task.check(chosen.job), *engine.check(chosen.job, task)]
    models = [stage.section for stage in chosen.stages]
    validate(chosen.job, task.columns, models=models, more=problems)
    return chosen

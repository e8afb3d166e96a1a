"""Names of earlier versions, in old plans, YAML files and commands: read through one table."""

from __future__ import annotations

from dataclasses import replace

from ldm_batch.config.job import JobConfig
from ldm_batch.errors import JobError

DEFAULT_TASK, DEFAULT_ENGINE = JobConfig().task, JobConfig().model.engine
TASKS_AND_ENGINES = {
    ("text_to_image", "prompts"): ("text_to_image", "ldm"),
    ("super_resolution", "images"): ("super_resolution", "ldm"),
    ("random_pixels", "prompts"): ("text_to_image", "random_pixels"),
}
"""(`model.pipeline`, `source.kind`) -> (`task`, `model.engine`)."""


def with_new_names(job: JobConfig) -> JobConfig:
    """The job by today's names alone; of a pair of which one is missing, the other tells.

    Raises:
        JobError: the older names mean nothing, or not the same as the newer ones.
    """
    pipeline, kind = job.model.pipeline, job.source.kind
    second = job.upscale.model
    if second.pipeline not in (None, "super_resolution"):
        raise JobError(f"upscale.model.pipeline: {second.pipeline!r} is not 'super_resolution'")
    upscale = replace(job.upscale, model=replace(second, pipeline=None))
    if pipeline is None and kind is None:
        return replace(job, upscale=upscale)
    fitting = [
        new
        for old, new in TASKS_AND_ENGINES.items()
        if pipeline in (None, old[0]) and kind in (None, old[1])
    ]
    if not fitting:
        raise JobError(_no_such_pair(pipeline, kind))
    if job.task not in (DEFAULT_TASK, *(task for task, _ in fitting)):
        raise JobError(_does_not_go(pipeline, kind, f"task={job.task}"))
    if job.model.engine not in (DEFAULT_ENGINE, *(engine for _, engine in fitting)):
        raise JobError(_does_not_go(pipeline, kind, f"model.engine={job.model.engine}"))
    task, engine = next((new for new in fitting if new[1] == job.model.engine), fitting[0])
    return replace(
        job,
        task=task,
        model=replace(job.model, engine=engine, pipeline=None),
        source=replace(job.source, kind=None),
        upscale=upscale,
    )


def pipeline_name(task: str, engine: str) -> str:
    """What a fingerprint of form 1 calls a task drawn by an engine."""
    for (pipeline, _), new in TASKS_AND_ENGINES.items():
        if new == (task, engine):
            return pipeline
    return task if engine == "ldm" else f"{engine}:{task}"


def _does_not_go(pipeline: str | None, kind: str | None, newer: str) -> str:
    older = f"source.kind: {kind!r}" if kind else f"model.pipeline: {pipeline!r}"
    return f"{older} does not go with {newer}; leave the older name out"


def _no_such_pair(pipeline: str | None, kind: str | None) -> str:
    known = {"model.pipeline": pipeline, "source.kind": kind}
    for place, (name, value) in enumerate(known.items()):
        values = sorted({old[place] for old in TASKS_AND_ENGINES})
        if value is not None and value not in values:
            return f"{name}: unknown value {value!r}; known: {', '.join(values)}"
    return f"source.kind: {kind!r} does not go with model.pipeline={pipeline}; choose another task"

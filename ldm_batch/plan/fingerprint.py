"""What identifies the images of a job: the document that its fingerprint is made of.

Pure. Fields that are added to a job enter by the rules of its plan's form, so that plans of earlier
versions keep their fingerprint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldm_batch.columns import TaskColumns
from ldm_batch.config import JobConfig
from ldm_batch.config.identified import (
    identify_call,
    identify_encoding,
    identify_model,
    identify_scheduler,
    identify_text,
)
from ldm_batch.config.older import pipeline_name
from ldm_batch.identity import Form
from ldm_batch.records import split_lock


def images_document(
    job: JobConfig,
    lock: Mapping[str, str],
    carry: Mapping[str, str],
    form: Form,
    *,
    task: TaskColumns,
    of_task: Mapping[str, Any],
    folders: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Everything that can change an image or the row set: what the fingerprint is made of.

    Where the job runs is no part of it, and neither are places that can be moved; where images that
    rows name stand is, from form 2 on, as nothing else says which these are.

    Args:
        lock: SHA-256 of every file that loading the models reads.
        carry: types of the carried columns, as text.
        form: by whose rules; of a dataset that is planned already, its plan's.
        task: the columns of the job's task.
        of_task: what identifies the images of the job's task beside what all tasks have.
        folders: types of the columns that stand in the names of folders, where some are used.
    """
    images = {**IMAGES_OF_FORM[form.number](job, lock, carry, task), **of_task}
    if folders:
        images["source"] = {**images["source"], "folders": dict(folders)}
    return images


def _images_of_form_1(
    job: JobConfig, lock: Mapping[str, str], carry: Mapping[str, str], _task: TaskColumns
) -> dict[str, Any]:
    pipeline = pipeline_name(job.task, job.model.engine)
    return {
        "model": identify_model(job.model, split_lock(lock)[0], pipeline),
        "scheduler": identify_scheduler(job.scheduler),
        "call": identify_call(job.call),
        "image": identify_encoding(job.image),
        "seed": job.seed,
        "num_images_per_prompt": job.num_images_per_prompt,
        "batch_size": job.batch_size,
        "num_threads": job.num_threads,
        "source": {
            "columns": dict(job.source.columns),
            "carry": dict(carry),
            "max_prompt_chars": job.source.max_prompt_chars,
            "long_prompts": job.source.long_prompts,
            **_max_side(job),
            **identify_text(job.source),
        },
    }


def _images_of_form_2(
    job: JobConfig, lock: Mapping[str, str], carry: Mapping[str, str], task: TaskColumns
) -> dict[str, Any]:
    """Only what the task makes use of: guidance is nothing to a job that has no prompts."""
    is_guided, has_prompts = "guidance_scale" in task.fields, "prompt" in task.fields
    scheduler, call = identify_scheduler(job.scheduler), identify_call(job.call)
    prompts = {name: getattr(job.source, name) for name in ("max_prompt_chars", "long_prompts")}
    return {
        "task": job.task,
        "model": identify_model(job.model, split_lock(lock)[0], job.model.engine),
        "scheduler": {
            name: value
            for name, value in scheduler.items()
            if is_guided or not name.startswith("guidance")
        },
        "call": {name: value for name, value in call.items() if name in task.fields},
        "image": identify_encoding(job.image),
        "seed": job.seed,
        "num_images_per_prompt": job.num_images_per_prompt,
        "batch_size": job.batch_size,
        "num_threads": job.num_threads,
        "source": {
            "columns": dict(job.source.columns),
            "carry": dict(carry),
            **(prompts if has_prompts else {}),
            **({"image_root": job.source.image_root} if task.has_image else {}),
            **_max_side(job),
            **identify_text(job.source),
        },
    }


def _max_side(job: JobConfig) -> dict[str, Any]:
    """Which rows are rejected, where a job says so; a plan of a job that does not has no word."""
    return {} if job.source.max_side is None else {"max_side": job.source.max_side}


IMAGES_OF_FORM = {1: _images_of_form_1, 2: _images_of_form_2}

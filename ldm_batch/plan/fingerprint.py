"""What identifies the images of a job: the document that its fingerprint is made of.

Pure. Fields that are added to a job enter by the rules of its plan's form, so that plans of earlier
versions keep their fingerprint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ldm_batch.config import JobConfig, ModelConfig, has_second_stage
from ldm_batch.generate.models import split_lock
from ldm_batch.identity import Form

MODEL_FIELDS = ("pipeline", "dtype", "decode_dtype", "channels_last", "attention", "compile")
MODEL_PLACES = ("path", "repo_id", "revision", "device")
"""Where the model is: its files say what it is."""
SCHEDULER_FIELDS = (
    "name",
    "settings",
    "guidance_interval",
    "guidance_rescale",
    "cache_interval",
)
CALL_FIELDS = (
    "num_inference_steps",
    "guidance_scale",
    "eta",
    "height",
    "width",
    "negative_prompt",
)
ENCODING_FIELDS = ("format", "mark")
"""The fields that every fingerprint has held since form 1; see `_section`."""


def images_document(
    job: JobConfig, lock: Mapping[str, str], carry: Mapping[str, str], form: Form
) -> dict[str, Any]:
    """Everything that can change an image or the row set: what the fingerprint is made of.

    Where the job runs is no part of it, and neither are places that can be moved.

    Args:
        lock: SHA-256 of every file that loading the models reads.
        carry: types of the carried columns, see `carry_schema`.
        form: by whose rules; of a dataset that is planned already, its plan's.
    """
    return IMAGES_OF_FORM[form.number](job, lock, carry)


def _images_of_form_1(
    job: JobConfig, lock: Mapping[str, str], carry: Mapping[str, str]
) -> dict[str, Any]:
    first, second = split_lock(lock)
    return {
        "model": _model_section(job.model, first),
        "scheduler": _section(job.scheduler, SCHEDULER_FIELDS),
        "call": _section(job.call, CALL_FIELDS),
        "image": _section(job.image, ENCODING_FIELDS),
        "seed": job.seed,
        "num_images_per_prompt": job.num_images_per_prompt,
        "batch_size": job.batch_size,
        "num_threads": job.num_threads,
        "source": {
            "columns": dict(job.source.columns),
            "carry": dict(carry),
            "max_prompt_chars": job.source.max_prompt_chars,
            "long_prompts": job.source.long_prompts,
        },
        **_upscale_document(job, second),
    }


IMAGES_OF_FORM = {1: _images_of_form_1}


def _section(section: Any, always: Sequence[str], never: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of a section as a fingerprint holds them.

    Those that form 1 began with always stand in it; one that was added later only where it is not
    at its default, so that plans from before it keep their fingerprint.
    """
    default = type(section)()
    added = [
        field.name
        for field in dataclasses.fields(section)
        if field.name not in (*always, *never)
        and getattr(section, field.name) != getattr(default, field.name)
    ]
    values = dataclasses.asdict(section)
    return {name: values[name] for name in (*always, *added)}


def _model_section(model: ModelConfig, files: Mapping[str, str]) -> dict[str, Any]:
    return _section(model, MODEL_FIELDS, MODEL_PLACES) | {"files": dict(files)}


def _upscale_document(job: JobConfig, second: Mapping[str, str]) -> dict[str, Any]:
    """What the fingerprint of a job that enlarges images, alone or after making them, has more."""
    upscale, source = job.upscale, job.source
    document: dict[str, Any] = {}
    if source.kind == "images":
        document["input_images"] = {
            "max_image_bytes": source.max_image_bytes,
            "max_image_pixels": source.max_image_pixels,
            "alpha": upscale.alpha,
            "background": upscale.background,
        }
    if has_second_stage(job):
        document["second_stage"] = {
            "model": _model_section(upscale.model, second),
            "scheduler": _section(upscale.scheduler, SCHEDULER_FIELDS),
            "num_inference_steps": upscale.num_inference_steps,
            "eta": upscale.eta,
            "keep_low_resolution": upscale.keep_low_resolution,
        }
    if document:
        document["tiles"] = {"size": upscale.tile_size, "overlap": upscale.tile_overlap}
    return document

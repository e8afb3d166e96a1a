"""A job in words: what identifies its images, what it ran on, and the command that resumes it.

Pure; must not know plans, stores or workers.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm_batch.config import JobConfig, ModelConfig, has_second_stage, source_uris
from ldm_batch.generate.models import split_lock
from ldm_batch.identity import Form
from ldm_batch.storage import absolute

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
IMAGE_FIELDS = ("format", "mark")
"""The fields that every fingerprint has held since form 1; see `_section`."""


def resume_command(job: JobConfig, overrides: Sequence[str]) -> str:
    """The command that goes on with this job from any folder, without the choice of shards."""
    dropped = ("shards=", "overwrite=", "dry_run=", "source.uri=", "sink.uri=")
    kept = [_without_values(t) for t in overrides if not t.lstrip("+").startswith(dropped)]
    uris = source_uris(job.source)
    source = _quoted(uris[0]) if len(uris) == 1 else f"[{','.join(map(_quoted, uris))}]"
    places = [f"source.uri={source}", f"sink.uri={_quoted(str(job.sink.uri))}"]
    return shlex.join(["python", "-m", "ldm_batch.run", *kept, *places])


def _without_values(override: str) -> str:
    """An override as it may be recorded: environment variables by their names."""
    name, _, value = override.partition("=")
    has_variables = "cluster.runtime_env" in name and "env_vars" in override
    return f"{name}=..." if has_variables and value else override


def _quoted(value: str) -> str:
    """A value as Hydra's override grammar reads it back."""
    if all(c.isalnum() or c in "/_-.:@" for c in value):
        return value
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def anchor(job: JobConfig) -> JobConfig:
    """The job with all its local paths independent of the working directory."""
    root = job.source.image_root
    return dataclasses.replace(
        job,
        source=dataclasses.replace(
            job.source,
            uri=[absolute(uri) for uri in source_uris(job.source)],
            image_root=root if root is None else absolute(root),
        ),
        sink=dataclasses.replace(job.sink, uri=absolute(str(job.sink.uri))),
        model=_anchor_model(job.model),
        upscale=dataclasses.replace(job.upscale, model=_anchor_model(job.upscale.model)),
    )


def _anchor_model(model: ModelConfig) -> ModelConfig:
    if model.path is None or model.path.startswith("demo:"):
        return model
    return dataclasses.replace(model, path=str(Path(model.path).expanduser().absolute()))


def model_name(model: ModelConfig) -> str:
    if model.pipeline == "random_pixels":
        return model.pipeline
    if model.path is None:
        return f"{model.repo_id}@{model.revision}"
    return model.path if model.path.startswith("demo:") else Path(model.path).name


def recorded_config(job: JobConfig) -> dict[str, Any]:
    """The resolved job as a plan stores it: of environment variables the names only."""
    config = dataclasses.asdict(job)
    environment = config["cluster"]["runtime_env"]
    if isinstance(environment.get("env_vars"), dict):
        environment["env_vars"] = dict.fromkeys(environment["env_vars"], "(not recorded)")
    return config


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
        "image": _section(job.image, IMAGE_FIELDS),
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

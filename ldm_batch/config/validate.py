"""Checks of a job before anything starts: every bad value by its field, and what was meant.

Knows only the configuration's own fields; must not look at files or models.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from ldm_batch.config.bounds import one_of, suggest, whole_or_auto, within
from ldm_batch.config.cluster import check_cluster
from ldm_batch.config.job import (
    ALPHA_POLICIES,
    ATTENTIONS,
    DTYPES,
    ETA_RANGE,
    GUIDANCE_RANGE,
    IMAGE_FORMATS,
    LONG_PROMPT_POLICIES,
    PIPELINES,
    SIDE_MULTIPLE,
    SIDE_RANGE,
    SOURCE_KINDS,
    STEPS_RANGE,
    CallConfig,
    JobConfig,
    ModelConfig,
    S3Config,
    SchedulerConfig,
    has_second_stage,
    input_columns,
    output_columns,
    parse_colour,
)
from ldm_batch.errors import JobError

SECRET_WORDS = ("secret", "password", "token", "credential", "access_key", "api_key")
SECRET_IN_URL = re.compile(r"\w+://[^/@\s]*:[^/@\s]*@|[?&](X-Amz-Signature|Signature|sig)=", re.I)


def validate(job: JobConfig) -> None:
    """Check every value of a job.

    Raises:
        JobError: names every field with a bad value, one line each, and what it may be.
    """
    problems = [
        *_check_names(job),
        *_check_numbers(job),
        *_check_call(job.call),
        *check_cluster(job.cluster),
        *_check_source(job),
        *_check_model("model", job.model),
        *_check_sampling("scheduler", job.scheduler),
        *_check_switches("model", job.model, job.scheduler),
        *_check_switches("upscale.model", job.upscale.model, job.upscale.scheduler),
        *_check_upscale(job),
        *_check_s3("source", job.source.s3),
        *_check_s3("sink", job.sink.s3),
        *(f"{path}: refused, {why}" for path, why in _find_forbidden(job)),
    ]
    if job.sink.uri is None:
        problems.append("sink.uri: not set; name the folder of the dataset, e.g. sink.uri=out/cats")
    if job.overwrite and not job.shards:
        problems.append("overwrite: needs the shards to make again, e.g. shards=[17]")
    if problems:
        raise JobError("\n".join(problems))


def _check_names(job: JobConfig) -> Iterator[str]:
    if not job.name or not all(c.isalnum() or c in "_-." for c in job.name):
        yield f"name: {job.name!r} may hold letters, digits, '_', '-' and '.'"
    for path, model in (("model", job.model), ("upscale.model", job.upscale.model)):
        yield from one_of(f"{path}.pipeline", model.pipeline, PIPELINES)
        yield from one_of(f"{path}.dtype", model.dtype, DTYPES)
        if model.decode_dtype is not None:
            yield from one_of(f"{path}.decode_dtype", model.decode_dtype, DTYPES)
        yield from one_of(f"{path}.attention", model.attention, ATTENTIONS)
        yield from one_of(f"{path}.device", model.device, ("auto", "cpu", "cuda"))
    yield from one_of("source.kind", job.source.kind, SOURCE_KINDS)
    yield from one_of("upscale.alpha", job.upscale.alpha, ALPHA_POLICIES)
    yield from one_of("image.format", job.image.format, IMAGE_FORMATS)
    yield from one_of("source.long_prompts", job.source.long_prompts, LONG_PROMPT_POLICIES)


def _check_numbers(job: JobConfig) -> Iterator[str]:
    yield from within("seed", job.seed, 0, 2**63 - 1)
    yield from within("num_images_per_prompt", job.num_images_per_prompt, 1, 1000)
    yield from _check_batch_size(job)
    yield from within("num_threads", job.num_threads, 1, 1024)
    yield from whole_or_auto("rows_per_shard", job.rows_per_shard, 1_000_000)
    yield from within("max_object_bytes", job.max_object_bytes, 64 * 1024, 4 * 1024**3)
    yield from within("max_rejected_fraction", job.max_rejected_fraction, 0, 1)
    yield from within("source.max_prompt_chars", job.source.max_prompt_chars, 1, 1_000_000)
    yield from within("source.max_image_bytes", job.source.max_image_bytes, 1, 2**30)
    yield from within("source.max_image_pixels", job.source.max_image_pixels, 1, 2**26)
    for index in job.shards:
        yield from within("shards", index, 0, 10**9)


def _check_batch_size(job: JobConfig) -> Iterator[str]:
    yield from whole_or_auto("batch_size", job.batch_size, 4096)
    if job.batch_size == "auto" and job.model.pipeline == "super_resolution":
        yield "batch_size: 'auto' measures text to image only; give a number, e.g. 16"


def _check_call(call: CallConfig) -> Iterator[str]:
    yield from within("call.num_inference_steps", call.num_inference_steps, *STEPS_RANGE)
    yield from within("call.guidance_scale", call.guidance_scale, *GUIDANCE_RANGE)
    yield from within("call.eta", call.eta, *ETA_RANGE)
    for name, pixels in (("call.height", call.height), ("call.width", call.width)):
        yield from within(name, pixels, *SIDE_RANGE)
        if pixels is not None and pixels % SIDE_MULTIPLE:
            yield f"{name}: {pixels} is not a multiple of {SIDE_MULTIPLE}"


def _check_source(job: JobConfig) -> Iterator[str]:
    source = job.source
    known = input_columns(source)
    uris = source.uri if isinstance(source.uri, list) else [source.uri]
    if source.uri is None or not uris:
        yield "source.uri: not set; name a Parquet file, a glob, a folder, or a list of these"
    elif not all(isinstance(uri, str) and uri for uri in uris):
        yield f"source.uri: {source.uri!r} is not a path or a list of paths"
    for name in source.columns:
        if name not in known:
            yield f"source.columns.{name}: unknown field{suggest(name, known)}"
    if source.columns.get(known[0], known[0]) is None:
        yield f"source.columns.{known[0]}: null, but every job needs {source.kind}"
    for name in source.carry:
        if name in ("image", "low_resolution") or name in output_columns(job):
            yield f"source.carry: {name!r} is already a column of the output"
    repeated = {name for name in source.carry if source.carry.count(name) > 1}
    if repeated:
        yield f"source.carry: {sorted(repeated)} named twice"


def _check_model(path: str, model: ModelConfig) -> Iterator[str]:
    if model.pipeline == "random_pixels":
        return
    if model.path is None and model.repo_id is None:
        yield (
            f"{path}.path: not set; name a local folder, or set {path}.repo_id and {path}.revision"
        )
    if model.path is not None and model.repo_id is not None:
        yield f"{path}.path: set together with {path}.repo_id; keep one of the two"
    if model.path is None and model.repo_id is not None and not is_commit_sha(model.revision):
        yield (
            f"{path}.revision: {model.revision!r} is not a full commit sha (40 hexadecimal "
            "digits); a branch or tag can change between two runs"
        )


def _check_switches(path: str, model: ModelConfig, scheduler: SchedulerConfig) -> Iterator[str]:
    if model.compile and scheduler.cache_interval > 1:
        yield f"{path}.compile: cannot be combined with a cache_interval above 1"


def _check_sampling(path: str, scheduler: SchedulerConfig) -> Iterator[str]:
    interval = scheduler.guidance_interval
    if len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= 1:
        yield f"{path}.guidance_interval: {interval} is not [start, stop] within 0 and 1"
    yield from within(f"{path}.guidance_rescale", scheduler.guidance_rescale, 0, 1)
    yield from within(f"{path}.cache_interval", scheduler.cache_interval, 1, 100)


def _check_upscale(job: JobConfig) -> Iterator[str]:
    upscale, kind = job.upscale, job.source.kind
    if (job.model.pipeline == "super_resolution") != (kind == "images"):
        fitting = "images" if kind == "prompts" else "prompts"
        yield (
            f"source.kind: {kind!r} does not go with model.pipeline={job.model.pipeline}; "
            f"choose source={fitting} or another model"
        )
    yield from within("upscale.num_inference_steps", upscale.num_inference_steps, *STEPS_RANGE)
    yield from within("upscale.eta", upscale.eta, *ETA_RANGE)
    yield from within("upscale.tile_size", upscale.tile_size, 32, 4096)
    yield from within("upscale.tile_overlap", upscale.tile_overlap, 0, upscale.tile_size // 2)
    if upscale.tile_size % 32:
        yield f"upscale.tile_size: {upscale.tile_size} is not a multiple of 32"
    try:
        parse_colour(upscale.background)
    except ValueError:
        yield f"upscale.background: {upscale.background!r} is not a colour such as '#ffffff'"
    if upscale.alpha == "keep" and job.image.format == "jpeg":
        yield "upscale.alpha: 'keep' needs an image.format that holds alpha: webp or png"
    if not has_second_stage(job):
        return
    if job.model.pipeline != "text_to_image":
        yield f"upscale.model: set, but model.pipeline={job.model.pipeline} has no second stage"
    if upscale.model.pipeline != "super_resolution":
        yield f"upscale.model.pipeline: {upscale.model.pipeline!r} is not 'super_resolution'"
    yield from _check_model("upscale.model", upscale.model)
    yield from _check_sampling("upscale.scheduler", upscale.scheduler)


def _check_s3(section: str, s3: S3Config) -> Iterator[str]:
    if s3.endpoint is not None and not s3.endpoint.startswith(("http://", "https://")):
        yield f"{section}.s3.endpoint: {s3.endpoint!r} is not a URL like https://host:port"
    yield from within(f"{section}.s3.retry_s", s3.retry_s, 0, 3600)


def is_commit_sha(revision: str | None) -> bool:
    """Tell whether a hub revision is pinned for good."""
    return revision is not None and len(revision) == 40 and set(revision) <= set("0123456789abcdef")


def _find_forbidden(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Find code (`_target_`) and secrets at any depth of a document."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in fields(value)}
    if isinstance(value, dict):
        for key, inner in value.items():
            here = f"{path}.{key}" if path else str(key)
            if str(key).startswith("_") and str(key).endswith("_"):
                yield here, "a configuration holds values, never code"
            elif any(word in str(key).lower() for word in SECRET_WORDS):
                yield here, "secrets do not belong in a configuration; use the environment"
            else:
                yield from _find_forbidden(inner, here)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _find_forbidden(inner, f"{path}[{i}]")
    elif isinstance(value, str) and SECRET_IN_URL.search(value):
        yield path, "a URL with credentials in it; use the environment"

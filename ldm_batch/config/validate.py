"""The check of a whole job before anything starts: every section, and what must go together.

Knows only the configuration's own fields; must not look at files or models.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import fields, is_dataclass

from ldm_batch.columns import TaskColumns
from ldm_batch.config.bounds import refuse
from ldm_batch.config.call import check_call
from ldm_batch.config.cluster import check_cluster
from ldm_batch.config.job import JobConfig, check_own_fields
from ldm_batch.config.model import check_model, check_scheduler, check_switches
from ldm_batch.config.s3 import check_s3
from ldm_batch.config.source import check_source, source_uris
from ldm_batch.config.storage import check_storage
from ldm_batch.config.upscale import check_upscale
from ldm_batch.errors.redact import holds_secret, is_secret_name

UPSCALE_SECTION = "upscale."


def validate(
    job: JobConfig, columns: TaskColumns, *, models: Collection[str], more: Iterable[str] = ()
) -> None:
    """Check every value of a job.

    Args:
        columns: of its task.
        models: sections of the models that it needs: nothing, `upscale.`, or both.
        more: problems that its task and its engine found.

    Raises:
        JobError: names every field with a bad value, one line each, and what it may be.
    """
    upscale, has_second = job.upscale, UPSCALE_SECTION in models
    refuse(
        [
            *check_own_fields(job),
            *check_model("model", job.model, is_needed="" in models),
            *check_scheduler("scheduler", job.scheduler),
            *check_switches("model", job.model, job.scheduler),
            *check_call(job.call, columns),
            *check_upscale(upscale),
            *check_model("upscale.model", upscale.model, is_needed=has_second),
            *(check_scheduler("upscale.scheduler", upscale.scheduler) if has_second else ()),
            *check_switches("upscale.model", upscale.model, upscale.scheduler),
            *check_source(job.source, columns),
            *check_s3("source.s3", job.source.s3),
            *check_s3("sink.s3", job.sink.s3),
            *_check_storage(job),
            *check_cluster(job.cluster),
            *_check_together(job),
            *more,
            *(f"{path}: refused, {why}" for path, why in find_forbidden(job)),
        ]
    )


def _check_storage(job: JobConfig) -> Iterator[str]:
    """Problems of the options of both stores."""
    source, sink = job.source, job.sink
    places = [*source_uris(source), source.image_root]
    yield from check_storage("source.storage.", source.storage, source.s3, places)
    yield from check_storage("sink.storage.", sink.storage, sink.s3, [sink.uri])


def _check_together(job: JobConfig) -> Iterator[str]:
    """Problems of sections that do not go with each other."""
    if job.upscale.alpha == "keep" and job.image.format == "jpeg":
        yield "upscale.alpha: 'keep' needs an image.format that holds alpha: webp or png"
    for section, model in (("model", job.model), (f"{UPSCALE_SECTION}model", job.upscale.model)):
        if model.device == "cuda" and job.cluster.gpus_per_worker == 0:
            yield (
                f"{section}.device: 'cuda', but cluster.gpus_per_worker: 0 gives a worker no GPU; "
                "use 1, or a fraction"
            )


def find_forbidden(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Find code (`_target_`) and secrets at any depth of a document."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in fields(value)}
    if isinstance(value, dict):
        for key, inner in value.items():
            here = f"{path}.{key}" if path else str(key)
            if str(key).startswith("_") and str(key).endswith("_"):
                yield here, "a configuration holds values, never code"
            elif is_secret_name(str(key)) and not _is_token(here):
                yield here, "secrets do not belong in a configuration; use the environment"
            else:
                yield from find_forbidden(inner, here)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from find_forbidden(inner, f"{path}[{i}]")
    elif isinstance(value, str) and holds_secret(value):
        yield path, "a URL with credentials in it; use the environment"


def _is_token(path: str) -> bool:
    """Tell whether a field may say where credentials are found, which is checked beside it."""
    return path in ("source.storage.token", "sink.storage.token", "storage.token")

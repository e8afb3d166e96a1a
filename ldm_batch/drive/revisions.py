"""Which commit of a hub repository a job draws by, where it names none.

The plan's if there is one, else what the repository's main is today; from then on it is part of the
job. Must not know what a repository holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ldm_batch.config import JobConfig, ModelConfig
from ldm_batch.diffusion.models.fetch import resolve_revision
from ldm_batch.generate.choose import Choice, choose


def with_revisions(
    chosen: Choice,
    load_planned: Callable[[], Mapping[str, Any] | None],
    tell: Callable[[str], None],
) -> Choice:
    """The job with every hub model pinned to a commit.

    Args:
        load_planned: gives the document of the stored plan, if there is one to go on with.
        tell: is told what was found.

    Raises:
        JobError: there is no plan, and the hub does not say.
    """
    job = chosen.job
    for section in (stage.section for stage in chosen.stages):
        model = _model(job, section)
        if model.path is not None or model.repo_id is None or model.revision is not None:
            continue
        planned = load_planned()
        revision = None if planned is None else _planned(planned, section, model.repo_id)
        if revision is None:
            revision = resolve_revision(model.repo_id)
            tell(f"{section}model: {model.repo_id} at its main of today, {revision}")
        else:
            tell(f"{section}model: {model.repo_id} at the plan's commit, {revision}")
        job = _with_model(job, section, dataclasses.replace(model, revision=revision))
    return choose(job) if job is not chosen.job else chosen


def _planned(planned: Mapping[str, Any], section: str, repo_id: str) -> str | None:
    """The commit that a plan's images are drawn by, if they are drawn by this repository."""
    config = planned.get("config", {})
    model = (config.get("upscale", {}) if section else config).get("model") or {}
    return model.get("revision") if model.get("repo_id") == repo_id else None


def _model(job: JobConfig, section: str) -> ModelConfig:
    return job.upscale.model if section else job.model


def _with_model(job: JobConfig, section: str, model: ModelConfig) -> JobConfig:
    if not section:
        return dataclasses.replace(job, model=model)
    return dataclasses.replace(job, upscale=dataclasses.replace(job.upscale, model=model))

"""What a plan records of a job beside its fingerprint: where things are, and how models are called.

Must not know stores or workers.
"""

from __future__ import annotations

import dataclasses
import platform
import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm_batch.config import (
    ClusterConfig,
    JobConfig,
    ModelConfig,
    S3Config,
    parse_loras,
    source_uris,
)
from ldm_batch.errors import JobError
from ldm_batch.storage import absolute, is_text
from ldm_batch.versions import decisive_differences


def anchor(job: JobConfig) -> JobConfig:
    """The job with all its local paths independent of the working directory.

    Raises:
        JobError: the path of the working directory cannot be written in UTF-8.
    """
    root = job.source.image_root
    if not is_text(absolute("")):
        raise JobError(
            f"the path of this folder is no text in UTF-8, {absolute('')!a}, which no plan "
            "could record; work in another, or rename it"
        )
    return dataclasses.replace(
        job,
        source=dataclasses.replace(
            job.source,
            uri=[absolute(uri) for uri in source_uris(job.source)],
            image_root=root if root is None else _plain_folder(root),
            s3=_anchor_s3(job.source.s3),
        ),
        sink=dataclasses.replace(
            job.sink, uri=absolute(str(job.sink.uri)), s3=_anchor_s3(job.sink.s3)
        ),
        cluster=_anchor_cluster(job.cluster),
        model=_anchor_model(job.model),
        upscale=dataclasses.replace(job.upscale, model=_anchor_model(job.upscale.model)),
    )


def _plain_folder(uri: str) -> str:
    """The one spelling of a folder, which is part of what identifies images."""
    scheme, separator, path = absolute(uri.removeprefix("file://")).rpartition("://")
    return scheme + separator + posixpath.normpath(path)


def _anchor_s3(s3: S3Config) -> S3Config:
    file = s3.ca_bundle
    return s3 if file is None else dataclasses.replace(s3, ca_bundle=absolute(file))


def _anchor_cluster(cluster: ClusterConfig) -> ClusterConfig:
    folder = cluster.runtime_env.get("working_dir")
    if not isinstance(folder, str) or not folder:
        return cluster
    environment = {**cluster.runtime_env, "working_dir": absolute(folder)}
    return dataclasses.replace(cluster, runtime_env=environment)


def _anchor_model(model: ModelConfig) -> ModelConfig:
    if model.loras:
        loras = parse_loras("model.loras", model.loras)
        model = dataclasses.replace(
            model,
            loras=[
                one if one.path is None else dataclasses.replace(one, path=absolute(one.path))
                for one in loras
            ],
        )
    if model.path is None or model.path.startswith("demo:"):
        return model
    return dataclasses.replace(model, path=absolute(model.path))


def model_name(model: ModelConfig) -> str:
    """The model as the column `model` names it."""
    if model.path is None:
        return f"{model.repo_id}@{model.revision}"
    return model.path if model.path.startswith("demo:") else Path(model.path).name


def planned_model_names(document: Mapping[str, Any], now: Mapping[str, str]) -> dict[str, str]:
    """The models as a dataset's column `model` names them, whatever their folders are called now.

    Args:
        document: of the plan; one of form 1 does not store them, but the job that it began with.
        now: what they are called now, by section.
    """
    if "models" in document:
        return {**now, **document["models"]}
    config = document.get("config", {})
    sections = {"": config.get("model"), "upscale.": config.get("upscale", {}).get("model")}
    places = {
        section: ModelConfig(**{name: model[name] for name in ("path", "repo_id", "revision")})
        for section, model in sections.items()
        if model
    }
    named = {s: model_name(place) for s, place in places.items() if place.path or place.repo_id}
    return {**now, **{section: name for section, name in named.items() if section in now}}


def recorded_config(job: JobConfig) -> dict[str, Any]:
    """The resolved job as a plan stores it: of environment variables the names only."""
    config = dataclasses.asdict(job)
    environment = config["cluster"]["runtime_env"]
    if isinstance(environment.get("env_vars"), dict):
        environment["env_vars"] = dict.fromkeys(environment["env_vars"], "(not recorded)")
    return config


def refuse_other_environment(planned: Mapping[str, str] | None, now: Mapping[str, str]) -> None:
    """Raise a JobError where images were made on something else so far; None: anything will do."""
    if differing := decisive_differences(planned or {}, now):
        raise JobError(
            f"strict_environment: the dataset was made with {'; '.join(differing)} on "
            f"{platform.node()}; install what it was made with, or set strict_environment=false, "
            "and images may differ in their last bits"
        )

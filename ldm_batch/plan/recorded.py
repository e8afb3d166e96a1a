"""What a plan records of a job beside its fingerprint: where things are, and the command to resume.

Must not know stores or workers.
"""

from __future__ import annotations

import dataclasses
import platform
import posixpath
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm_batch.config import JobConfig, ModelConfig, parse_loras, source_uris
from ldm_batch.errors import JobError
from ldm_batch.storage import absolute
from ldm_batch.versions import decisive_differences


def resume_command(job: JobConfig, overrides: Sequence[str]) -> str:
    """The command that goes on with this job from any folder, without the choice of shards."""
    dropped = ("shards=", "overwrite=", "dry_run=", "plan_again=", "source.uri=", "sink.uri=")
    kept = [_without_values(t) for t in overrides if not t.lstrip("+").startswith(dropped)]
    uris = source_uris(job.source)
    source = _quoted(uris[0]) if len(uris) == 1 else f"[{','.join(map(_quoted, uris))}]"
    places = [f"source.uri={source}", f"sink.uri={_quoted(str(job.sink.uri))}"]
    return shlex.join(["python", "-m", "ldm_batch.run", *kept, *places])


def settings_of(job: JobConfig, base: JobConfig) -> list[str]:
    """What a command says to make a job of another one: FIELD=VALUE for each that differs."""
    before = dict(_leaves(base))
    return [
        f"{'++' if isinstance(value, dict) else ''}{path}={_as_override(value)}"
        for path, value in _leaves(job)
        if value != before[path]
    ]


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Fields that are no sections, dotted, and their values."""
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def _as_override(value: Any) -> str:
    """A value as Hydra's override grammar reads it back, of the same type."""
    if value is None:
        return "null"
    if isinstance(value, bool | int | float):
        return str(value).lower()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _as_override({n: v for n, v in dataclasses.asdict(value).items() if v is not None})
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{_quoted(str(k))}:{_as_override(v)}' for k, v in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_as_override, value))}]"
    text = str(value)
    is_plain = text[:1].isalpha() or text[:1] == "/"
    if is_plain and text.lower() not in ("null", "true", "false", "inf", "nan"):
        return _quoted(text)
    return _in_quotes(text)


def _without_values(override: str) -> str:
    """An override as it may be recorded: environment variables by their names."""
    name, _, value = override.partition("=")
    has_variables = "cluster.runtime_env" in name and "env_vars" in override
    return f"{name}=..." if has_variables and value else override


def _quoted(value: str) -> str:
    """A value as Hydra's override grammar reads it back."""
    if all((c.isascii() and c.isalnum()) or c in "/_-.:@" for c in value):
        return value
    return _in_quotes(value)


def _in_quotes(value: str) -> str:
    """Backslashes mean themselves there, but before a quote and at the end."""
    escaped = re.sub(r"(\\*)(?='|\Z)", r"\1\1", value)
    return "'" + escaped.replace("'", "\\'") + "'"


def anchor(job: JobConfig) -> JobConfig:
    """The job with all its local paths independent of the working directory."""
    root = job.source.image_root
    return dataclasses.replace(
        job,
        source=dataclasses.replace(
            job.source,
            uri=[absolute(uri) for uri in source_uris(job.source)],
            image_root=root if root is None else _plain_folder(root),
        ),
        sink=dataclasses.replace(job.sink, uri=absolute(str(job.sink.uri))),
        model=_anchor_model(job.model),
        upscale=dataclasses.replace(job.upscale, model=_anchor_model(job.upscale.model)),
    )


def _plain_folder(uri: str) -> str:
    """The one spelling of a folder, which is part of what identifies images."""
    scheme, separator, path = absolute(uri.removeprefix("file://")).rpartition("://")
    return scheme + separator + posixpath.normpath(path)


def _anchor_model(model: ModelConfig) -> ModelConfig:
    if model.loras:
        loras = parse_loras("model.loras", model.loras)
        model = dataclasses.replace(
            model,
            loras=[
                one if one.path is None else dataclasses.replace(one, path=_anchored(one.path))
                for one in loras
            ],
        )
    if model.path is None or model.path.startswith("demo:"):
        return model
    return dataclasses.replace(model, path=_anchored(model.path))


def _anchored(path: str) -> str:
    return str(Path(path).expanduser().absolute())


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

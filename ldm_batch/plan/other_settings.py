"""What is said where a job would go on with a dataset that was planned otherwise.

Must not know what a setting does to an image, only that it may.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ldm_batch import identity
from ldm_batch.errors import JobError
from ldm_batch.plan.recorded import planned_model_names
from ldm_batch.plan.stored import PLAN_AGAIN
from ldm_batch.storage import Store

MAX_NAMED = 10
"""Settings, or files of a model, that one message names."""
STAGES = {"": "model", "upscale.": "second_stage.model"}
"""Section of a model in a job -> where it stands in what identifies images."""


def refuse_other_fingerprint(
    planned: Mapping[str, Any], document: Mapping[str, Any], store: Store
) -> None:
    """Refuse to go on with a plan that was made with other settings, naming what differs.

    Raises:
        JobError: of another model or task in a sentence, else with a line for each setting.
    """
    if planned["fingerprint"] == document["fingerprint"]:
        return
    is_empty = not store.names(identity.DATA_FOLDER)
    again = f" {PLAN_AGAIN}" * is_empty
    now = document["models"]
    before, after = _drawn(planned, planned_model_names(planned, now)), _drawn(document, now)
    if before != after and _is_other_model(planned["images"], document["images"]):
        is_so = "is planned for images" if is_empty else "holds a dataset"
        raise JobError(
            f"sink.uri: {store.root} {is_so} made by {before}, this job draws by {after}; name "
            f"another sink.uri, or choose the planned model.{again}"
        )
    lines = list(_differing(planned["images"], document["images"]))
    if len(lines) > MAX_NAMED:
        lines[MAX_NAMED:] = [f"and {len(lines) - MAX_NAMED} more"]
    raise JobError(
        f"sink.uri: {store.root} was planned with other settings, its images would not match:\n  "
        + "\n  ".join(lines)
        + f"\nUse the planned settings, or write to a new sink.{again}"
    )


def _drawn(document: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """The task and the models of a plan in words."""
    stages = [section for section in STAGES if _stage(document["images"], section)]
    models = " and ".join(names.get(section, "a model without a name") for section in stages)
    pipeline = _stage(document["images"], "")["pipeline"]  # of form 1 task and engine in one
    task = document["images"].get("task", pipeline)
    return f"{models} ({task})"


def _is_other_model(planned: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Tell whether something else draws, by its files or by what it is; a folder may be renamed."""
    stages = [[_stage(images, section) for section in STAGES] for images in (planned, now)]
    of_plan, of_job = (
        [(stage.get("pipeline"), stage.get("files")) for stage in each] for each in stages
    )
    return of_plan != of_job or planned.get("task") != now.get("task")


def _stage(images: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    """What identifies a model among what identifies images; empty where there is none."""
    found: Any = images
    for name in STAGES[section].split("."):
        found = found.get(name, {})
    stage: Mapping[str, Any] = found
    return stage


def _differing(planned: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What differs, a line each; the files of a model on one."""
    for section, place in STAGES.items():
        before, after = (_stage(images, section).get("files", {}) for images in (planned, now))
        names = {
            name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
        }
        if names:
            listed = ", ".join(sorted(names)[:MAX_NAMED]) + ", ..." * (len(names) > MAX_NAMED)
            yield f"{place}.files: {len(names)} of {len({*before, *after})} are others: {listed}"
    files = tuple(f"{place}.files" for place in STAGES.values())
    for line in identity.differing_fields(planned, now):
        if not line.startswith(files):
            yield line

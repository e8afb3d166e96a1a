"""What identifies images: every field of a job is in the fingerprint, or known to change none."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from ldm_batch.config import JobConfig, LoraConfig, ModelConfig, UpscaleConfig
from ldm_batch.generate.choose import choose
from ldm_batch.identity import FORMS, fingerprint
from ldm_batch.plan.fingerprint import images_document

BY_DIFFUSERS = ModelConfig(engine="diffusers")
JOBS = {
    "text": JobConfig(),
    "images": JobConfig(task="super_resolution"),
    "chained": JobConfig(upscale=UpscaleConfig(model=ModelConfig(path="x"))),
    "changed": JobConfig(task="image_to_image", model=BY_DIFFUSERS),
    "repainted": JobConfig(task="inpainting", model=BY_DIFFUSERS),
    "prompted": JobConfig(task="super_resolution", model=BY_DIFFUSERS),
}
PLACES = {
    *(f"{section}.{name}" for section in ("model", "upscale.model") for name in (
        "path", "repo_id", "revision", "variant", "device",
    )),
    *(f"{section}.s3.{name}" for section in ("source", "sink") for name in (
        "endpoint", "region", "anonymous", "path_style", "ca_bundle", "retry_s",
    )),
    "source.uri",
    "source.storage",
    "sink.uri",
    "sink.storage",
}  # fmt: skip
"""Where things are: models and inputs are known by their content."""
HOW_MUCH = {
    "name",
    "rows_per_shard",
    "max_object_bytes",
    "max_rejected_fraction",
    "shards",
    "overwrite",
    "plan_again",
    "strict_environment",
    "dry_run",
    "source.allow_touched",
    "sink.allow_unconditional",
}
"""How much is made at once, or at all."""
OLDER_NAMES = {"model.pipeline", "upscale.model.pipeline", "source.kind"}
ONE_ENGINE = {"upscale.model.engine"}
"""Any other than `ldm` is refused."""
OF_FORM_2 = {
    "text": "941f7a50a27cd8947f0bf71be2289f9af85210e7e4a8a39fc44f3a28763662f7",
    "images": "e49edcc1373aa45feff16172a57620d16ea919a72df6f34811ab1b672c6a00fc",
    "chained": "ebff8ae116c0ba268448eb4fd91e214dbc22f77d9daf16ae0eb33794de76e3a0",
    "changed": "cb7f5bb2a7609b301b548347c8149325ea3d5fce1942dab9abf3304353c02282",
    "repainted": "8e019587dea165652c68870340ba6a2be26e075a8b71a632b39bae3cb6cf2a45",
    "prompted": "6a2cc8240b6b28aeea99a5a1075cd1125a07268d1581a9d81f5b3547dc5ed683",
}
CARRIED = {"source.carry", "source.carry_parent"}
"""The columns that are carried are in it, by name and type."""
NOT_IN_FORM = {1: {"source.image_root"}, 2: set[str]()}
OF_PROMPTS = [
    *("call.guidance_scale", "call.negative_prompt", "call.height", "call.width"),
    *("source.max_prompt_chars", "source.long_prompts"),
    *("scheduler.guidance_rescale", "scheduler.guidance_interval"),
]
"""What a job without prompts has no use for."""


def paths(section: Any, before: str = "") -> Iterator[str]:
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from paths(value, f"{before}{field.name}.")
        else:
            yield f"{before}{field.name}"


def with_other(section: Any, path: str) -> Any:
    """A copy with another value in one place."""
    name, _, rest = path.partition(".")
    value = getattr(section, name)
    if rest:
        return dataclasses.replace(section, **{name: with_other(value, rest)})
    if isinstance(value, bool):
        other: Any = not value
    elif isinstance(value, (int, float)):
        other = value + 1
    elif name == "loras":
        other = [LoraConfig("a.safetensors", 0.8)]
    elif isinstance(value, dict):
        other = {"a": 1}
    elif isinstance(value, list):
        other = [*value, 1]
    else:
        other = f"{value}x"
    return dataclasses.replace(section, **{name: other})


def document(job: JobConfig, like: JobConfig, form: int) -> dict[str, Any]:
    """The document of a job, by the task of one that is like it but for a value."""
    task = choose(like).task
    of_task = task.identify(job, {})
    return images_document(job, {}, {}, FORMS[form], task=task.columns, of_task=of_task)


def identifying(form: int) -> set[str]:
    """Fields that change the document of some kind of job."""
    return {
        path
        for job in JOBS.values()
        for path in paths(job)
        if document(with_other(job, path), job, form) != document(job, job, form)
    }


@pytest.mark.parametrize("form", FORMS)
def test_every_field_identifies_images_or_changes_none(form: int) -> None:
    """A new field stands in the document, or in one of the lists above: nowhere is no choice."""
    everything = {path for path in paths(JobConfig()) if not path.startswith("cluster.")}
    known = PLACES | HOW_MUCH | OLDER_NAMES | ONE_ENGINE | CARRIED | NOT_IN_FORM[form]
    assert everything - identifying(form) == known


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", JOBS)
def test_what_a_kind_of_job_does_not_use_changes_nothing_of_it(name: str, form: int) -> None:
    job = JOBS[name]
    changed = with_other(job, "upscale.tile_size")
    is_used = name in ("images", "chained")
    assert (document(changed, job, form) != document(job, job, form)) == is_used


@pytest.mark.parametrize("path", OF_PROMPTS)
def test_of_a_job_without_prompts_their_settings_identify_nothing(path: str) -> None:
    job = JOBS["images"]
    changed = with_other(job, path)
    assert document(changed, job, 2) == document(job, job, 2)
    assert document(changed, job, 1) != document(job, job, 1)


@pytest.mark.parametrize("name", JOBS)
def test_fingerprints_of_form_2_never_change(name: str) -> None:
    """A field that is added later must not enter where it is at its default."""
    assert fingerprint(document(JOBS[name], JOBS[name], 2)) == OF_FORM_2[name]

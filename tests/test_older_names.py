"""Names of earlier versions are read through one table, alone or together, and never against each
other."""

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from commands import run, write_prompts

from ldm_batch.config import JobConfig, ModelConfig, SourceConfig, UpscaleConfig
from ldm_batch.config.older import TASKS_AND_ENGINES, pipeline_name, with_new_names
from ldm_batch.errors import JobError


def named(pipeline: str | None = None, kind: str | None = None, **new: str) -> JobConfig:
    engine = new.pop("engine", "ldm")
    job = JobConfig(model=ModelConfig(engine=engine, pipeline=pipeline), **new)  # type: ignore[arg-type]
    return replace(job, source=SourceConfig(kind=kind))


@pytest.mark.parametrize(
    ("job", "task", "engine"),
    [
        (named(), "text_to_image", "ldm"),
        (named("text_to_image", "prompts"), "text_to_image", "ldm"),
        (named("super_resolution", "images"), "super_resolution", "ldm"),
        (named("random_pixels", "prompts"), "text_to_image", "random_pixels"),
        (named("super_resolution"), "super_resolution", "ldm"),
        (named("random_pixels"), "text_to_image", "random_pixels"),
        (named(kind="images"), "super_resolution", "ldm"),
        (named(kind="prompts"), "text_to_image", "ldm"),
        (named(kind="prompts", engine="random_pixels"), "text_to_image", "random_pixels"),
        (named(kind="images", task="super_resolution"), "super_resolution", "ldm"),
    ],
)
def test_they_mean_what_they_meant(job: JobConfig, task: str, engine: str) -> None:
    new = with_new_names(job)
    assert (new.task, new.model.engine) == (task, engine)
    assert (new.model.pipeline, new.source.kind) == (None, None)
    assert with_new_names(new) == new


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (named("super_resolution", "prompts"), "source.kind: 'prompts' does not go with model."),
        (named("txt2img"), "model.pipeline: unknown value 'txt2img'; known: random_pixels, "),
        (named(kind="pictures"), "source.kind: unknown value 'pictures'; known: images, prompts"),
        (
            named(kind="prompts", task="super_resolution"),
            "source.kind: 'prompts' does not go with task=super_resolution",
        ),
        (
            named(kind="images", engine="random_pixels"),
            "source.kind: 'images' does not go with model.engine=random_pixels; leave",
        ),
    ],
)
def test_what_they_never_meant_is_told(job: JobConfig, message: str) -> None:
    with pytest.raises(JobError, match=message):
        with_new_names(job)


def test_the_second_stage_was_super_resolution() -> None:
    stage = UpscaleConfig(model=ModelConfig(pipeline="super_resolution", path="x"))
    assert with_new_names(JobConfig(upscale=stage)).upscale.model == ModelConfig(path="x")
    wrong = replace(stage, model=ModelConfig(pipeline="text_to_image", path="x"))
    with pytest.raises(JobError, match=r"upscale\.model\.pipeline: 'text_to_image' is not"):
        with_new_names(JobConfig(upscale=wrong))


def test_fingerprints_of_form_1_keep_the_old_name() -> None:
    for (pipeline, _), (task, engine) in TASKS_AND_ENGINES.items():
        assert pipeline_name(task, engine) == pipeline
    assert pipeline_name("inpainting", "ldm") == "inpainting"
    assert pipeline_name("inpainting", "random_pixels") == "random_pixels:inpainting"


def test_a_command_of_yesterday_goes_on(tmp_path: Path) -> None:
    write_prompts(tmp_path, 1, 30)
    job = ("conf=demo", "cluster=in_process", "source.uri=in", "sink.uri=out")
    old = ("model.pipeline=random_pixels", "source.kind=prompts")
    ended = run(tmp_path, *job, *old, "call.num_inference_steps=1")
    assert ended.code == 0, ended
    assert "30/30 rows" in ended.out
    table = pq.read_table(tmp_path / "out/data/00000.parquet", columns=["model"])
    assert set(table["model"].to_pylist()) == {"random_pixels"}
    again = run(tmp_path, *job, "model=random_pixels", "call.num_inference_steps=1")
    assert "0 to do" in again.out

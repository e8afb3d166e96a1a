"""The table of columns, and what is made of it: calls, checks, records, schemas."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ldm_batch.columns import ARGUMENTS, COLUMNS, By, json_schema
from ldm_batch.config import CallConfig, JobConfig, ModelConfig, SourceConfig, UpscaleConfig
from ldm_batch.config.call import check_call
from ldm_batch.errors import JobError
from ldm_batch.generate.choose import TASKS, choose, validate_job
from ldm_batch.generate.then_upscale import RECORDED
from ldm_batch.records import Call

Make = Callable[..., Any]


def test_every_argument_is_in_the_call_and_in_a_jobs_defaults() -> None:
    """Adding one is a line in the table and one in each of these."""
    assert {field.name for field in dataclasses.fields(Call)} == set(ARGUMENTS)
    brought = {column.name for column in COLUMNS.values() if column.by is By.CALL}
    assert {field.name for field in dataclasses.fields(CallConfig)} == brought
    for name in brought:
        assert getattr(CallConfig(), name) == COLUMNS[name].default


@pytest.mark.parametrize("name", TASKS)
def test_a_task_names_columns_that_there_are(name: str) -> None:
    columns = TASKS[name].columns
    assert {*columns.fields, *columns.recorded, *columns.images, *RECORDED} <= {
        *COLUMNS,
        "low_resolution",
    }
    assert all(pa.type_for_alias(kind) for kind in columns.types.values())
    assert set(json_schema(columns.fields)["properties"]) == set(columns.fields)


def test_bounds_are_those_of_the_defaults() -> None:
    assert all(COLUMNS[name].low is not None for name in ARGUMENTS)
    for column in COLUMNS.values():
        assert (column.low is None) == (column.high is None)
        if column.default is not None and column.low is not None:
            assert column.high is not None
            assert column.low <= column.default <= column.high
        assert column.meaning.endswith(".")


def recorded(**changes: Any) -> bool:
    return "guidance_rescale" in choose(JobConfig(**changes)).task.columns.recorded


def test_a_later_column_is_recorded_where_it_is_used() -> None:
    assert not recorded()
    assert not recorded(source=SourceConfig(columns={"guidance_rescale": None}))
    assert recorded(source=SourceConfig(columns={"guidance_rescale": "phi"}))
    assert recorded(source=SourceConfig(columns={"guidance_rescale": ""}))
    assert recorded(call=CallConfig(guidance_rescale=0.0))


def test_an_argument_that_a_task_has_no_use_for_is_refused() -> None:
    columns = TASKS["super_resolution"].columns
    given = CallConfig(guidance_rescale=0.5, guidance_scale=3.0)
    assert list(check_call(given, columns)) == [
        "call.guidance_rescale: this task has no use for it; leave it out"
    ]
    assert list(check_call(given, TASKS["text_to_image"].columns)) == []


def test_a_carried_column_is_no_argument() -> None:
    """Whatever it is called: an image is made again by what the job recorded alone."""
    chosen = choose(JobConfig())
    record = dict.fromkeys(chosen.task.columns.recorded, 1) | {"guidance_rescale": "a note"}
    assert chosen.task.request_again is not None
    assert chosen.task.request_again(record, chosen.task.columns).call.guidance_rescale is None
    used = choose(JobConfig(call=CallConfig(guidance_rescale=0.1))).task
    assert used.request_again is not None
    record["guidance_rescale"] = 0.5
    assert used.request_again(record, used.columns).call.guidance_rescale == 0.5


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (
            JobConfig(upscale=UpscaleConfig(model=ModelConfig(engine="nonsense"))),
            "upscale.model.engine: unknown value 'nonsense'",
        ),
        (
            JobConfig(
                model=ModelConfig(engine="random_pixels"),
                upscale=UpscaleConfig(model=ModelConfig(path="x")),
            ),
            r"upscale\.model: set, but random_pixels enlarges nothing",
        ),
        (
            JobConfig(task="super_resolution", model=ModelConfig(engine="random_pixels")),
            "model.engine: task=super_resolution, but random_pixels enlarges nothing",
        ),
    ],
)
def test_an_engine_that_cannot_is_refused(job: JobConfig, message: str) -> None:
    with pytest.raises(JobError, match=message):
        validate_job(job)


def make_rows(folder: Path, job: JobConfig, make_worker: Make) -> list[dict[str, Any]]:
    worker, plan = make_worker(job)
    worker.make_shard(plan.shards[0])
    rows: list[dict[str, Any]] = pq.read_table(folder / "data/00000.parquet").to_pylist()
    return rows


def test_a_later_column_is_read_only_where_it_is_named(
    tmp_path: Path, write_parquet: Make, make_job: Make, make_worker: Make
) -> None:
    """Plans from before it was known may stand on inputs that have a column of this name."""
    phis = [0.5, None, 2.0]
    source = write_parquet(tmp_path / "a.parquet", prompt=["a"] * 3, guidance_rescale=phis)
    plain = make_rows(tmp_path / "plain", make_job(source, tmp_path / "plain"), make_worker)
    assert "guidance_rescale" not in plain[0]
    assert len(plain) == 3
    named = make_job(
        source, tmp_path / "named", source__columns={"guidance_rescale": "guidance_rescale"}
    )
    rows = make_rows(tmp_path / "named", named, make_worker)
    assert [row["guidance_rescale"] for row in rows] == [0.5, None]  # the third is out of range

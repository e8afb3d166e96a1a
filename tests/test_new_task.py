"""What a new task takes: one module, one line of the table, one YAML; here a toy.

A row of it is an id and a size; the engine is the one without models. The rest of the program,
which must not ask what kind of job it is, plans it, reads it, makes it, commits it and proves it.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ldm_batch.columns import TaskColumns
from ldm_batch.commands.verify.regenerate import Sample
from ldm_batch.commands.verify.verification import verify
from ldm_batch.config import JobConfig
from ldm_batch.drive import drive_job
from ldm_batch.errors import JobError
from ldm_batch.generate import choose
from ldm_batch.generate.task import Task, nothing_to_check
from ldm_batch.generate.text_to_image import identify, make_request, origin, plan_image
from ldm_batch.read.rows import RowContext, RowPlace, parse_all_carried, parse_arguments, parse_seed
from ldm_batch.records import Call, PlannedImage, PromptCount, Request, Row
from ldm_batch.run.compose import compose_jobs
from ldm_batch.storage import Store

# The module


ARGUMENTS = ("num_inference_steps", "height", "width")
ABOUT_IMAGE = ("image_format", "image_sha256", "pixel_sha256", "made_as")
COLUMNS = TaskColumns(
    fields=("id", "seed", *ARGUMENTS),
    recorded=(
        *("key", "image_index", "seed", *ARGUMENTS, *ABOUT_IMAGE),
        *("input_file", "input_row", "fingerprint"),
    ),
)


def parse_row(values: Mapping[str, Any], place: RowPlace, context: RowContext) -> Row:
    call = Call(**parse_arguments(values, context.call, ARGUMENTS))
    seed = parse_seed(values, context.form)
    return place.row({}, call, seed=seed, carry=parse_all_carried(values))


def request_again(record: Mapping[str, Any], _columns: TaskColumns) -> Request:
    call = Call(**{name: record[name] for name in ARGUMENTS})
    return Request(inputs={}, seed=record["seed"], call=call)


def record(_image: PlannedImage, _count: PromptCount, _low: str | None) -> dict[str, Any]:
    return {}


TOY = Task(
    name="toy",
    columns=COLUMNS,
    check=nothing_to_check,
    stages=lambda _job: [],
    identify=identify,
    parse_row=parse_row,
    plan_image=plan_image,
    seed_of=lambda form: form.image_seed,
    make_request=make_request,
    request_again=request_again,
    load=None,
    origin=origin,
    record=record,
)

# The YAML


YAML = "# @package _global_\n# An id becomes an image of random pixels.\ntask: toy\n"


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobConfig:
    """Seven rows in three shards, one of them too large; the task chosen by its own YAML."""
    monkeypatch.setitem(choose.TASKS, TOY.name, TOY)  # the line of the table
    (tmp_path / "conf/task").mkdir(parents=True)
    (tmp_path / "conf/task/toy.yaml").write_text(YAML)
    sides = [8, 16, 8, 8, None, 4104, 8]
    table = pa.table({"id": [f"n{i}" for i in range(7)], "height": sides, "topic": ["x"] * 7})
    pq.write_table(table, tmp_path / "in.parquet")
    settings = [
        *("task=toy", "model.engine=random_pixels", "cluster=in_process", "batch_size=2"),
        *("call.width=8", "rows_per_shard=3", "source.carry=[topic]", "max_rejected_fraction=1"),
        *(f"source.uri={tmp_path}/in.parquet", f"sink.uri={tmp_path}/out", "name=toy"),
    ]
    [composed] = compose_jobs(settings, folder=tmp_path / "conf")
    return composed.job


def test_a_new_task_is_made_and_proved(job: JobConfig) -> None:
    result = drive_job(job, overrides=[], out=io.StringIO())
    assert (result.num_rows, result.num_images) == (7, 6)
    assert result.rejected == {"out_of_range": 1}
    table = pq.read_table(f"{job.sink.uri}/data")
    assert table.column_names == ["image", *COLUMNS.recorded, "topic"]
    assert table["key"].to_pylist() == ["n0", "n1", "n2", "n3", "n4", "n6"]
    assert table["height"].to_pylist() == [8, 16, 8, 8, 8, 8]
    verified = verify(Store(str(job.sink.uri)), Sample(num_images=6))
    assert verified.problems == []
    assert verified.regenerated is not None
    assert verified.regenerated.num_equal == 6


def test_an_engine_refuses_what_it_does_not_draw(job: JobConfig) -> None:
    job.model.engine = "ldm"
    with pytest.raises(JobError, match=r"model\.engine: task=toy has no model that ldm could load"):
        choose.validate_job(job)

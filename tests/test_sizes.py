"""How large images and objects may get: refused at planning, or the row that asks is rejected."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ldm_batch import identity
from ldm_batch.config import JobConfig, ModelConfig, UpscaleConfig
from ldm_batch.errors import JobError
from ldm_batch.generate.choose import choose
from ldm_batch.plan.cut import rows_per_shard
from ldm_batch.plan.sizes import refuse_too_large
from ldm_batch.read.images import largest_asked

Make = Callable[..., Any]


def rejected(sink: Path) -> dict[str, str]:
    paths = Path(sink, identity.REJECTED_FOLDER).glob("*.parquet")
    return {row["key"]: row["message"] for path in paths for row in pq.read_table(path).to_pylist()}


def test_a_row_asks_for_no_more_than_max_side(
    tmp_path: Path, write_parquet: Make, make_job: Make, make_worker: Make
) -> None:
    source = write_parquet(
        tmp_path / "in/a.parquet",
        prompt=["a", "b", "c", "d"],
        id=[*"wxyz"],
        height=[8, 32, None, 24],
        width=[16, 8, 16, 16],
    )
    job = make_job(source, tmp_path / "out", source__max_side=16, call__height=24)
    worker, plan = make_worker(job)
    worker.make_shard(plan.shards[0])
    images = pq.read_table(tmp_path / "out" / "data").to_pylist()
    sizes = {image["key"]: (image["height"], image["width"]) for image in images}
    assert sizes == {"w": (8, 16), "y": (24, 16)}  # what the job itself says is no row's
    told = rejected(tmp_path / "out")
    assert told["x"].startswith("height 32 is more than 16")
    assert told["z"].startswith("height 24 is more than 16")


def test_max_side_is_of_what_is_stored() -> None:
    chained = JobConfig(upscale=UpscaleConfig(model=ModelConfig(path="x")))
    columns = choose(chained).task.columns
    assert largest_asked(chained, columns) == 16383 // 4  # of WebP
    chained.source.max_side = 1024
    assert largest_asked(chained, columns) == 256
    assert largest_asked(chained, choose(JobConfig()).task.columns) == 1024
    chained.source.max_side = 100_000
    assert largest_asked(chained, columns) == 16383 // 4


def test_an_image_is_no_larger_than_max_side_when_it_is_enlarged() -> None:
    job = JobConfig(task="super_resolution")
    job.source.max_side = 64
    assert largest_asked(job, choose(job).task.columns) == 16


@pytest.mark.parametrize("name", ["height", "width"])
def test_a_call_that_its_format_does_not_take_is_refused(name: str) -> None:
    job = JobConfig(upscale=UpscaleConfig(model=ModelConfig(path="x")))
    setattr(job.call, name, 4096)
    columns = choose(job).task.columns
    told = rf"call.{name}: 4096 pixels makes 16384 when it is enlarged, more than the 16383 that"
    with pytest.raises(JobError, match=told):
        refuse_too_large(job, columns, {}, (64, 64))
    refuse_too_large(job, columns, {name: name}, (64, 64))  # rows say it, each its own
    job.image.format = "png"
    refuse_too_large(job, columns, {}, (64, 64))
    job.image.format, job.call.height, job.call.width = "webp", None, None
    with pytest.raises(JobError, match="4104 pixels"):
        refuse_too_large(job, columns, {}, (4104, 64))


def test_a_refused_size_stores_nothing(
    tmp_path: Path, write_parquet: Make, make_job: Make, plan_job: Make
) -> None:
    source = write_parquet(tmp_path / "in/a.parquet", prompt=["a"])
    job = make_job(source, tmp_path / "out", call__height=4096, call__width=4096)
    plan_job(job)  # without a second stage it fits
    assert not (tmp_path / "out").exists()


def test_carried_columns_count_in_what_an_object_takes(
    tmp_path: Path, write_parquet: Make, make_job: Make, plan_job: Make
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 100_000), dtype=np.uint8)
    columns = {"prompt": [str(i) for i in range(64)], "blob": [row.tobytes() for row in noise]}
    source = write_parquet(tmp_path / "in/a.parquet", **columns)
    changes = {"rows_per_shard": 64, "max_object_bytes": 1_000_000, "batch_size": 1}
    first = plan_job(make_job(source, tmp_path / "out", **changes)).shards[0]
    assert first.num_rows == 1_000_000 // (8 * 8 * 3 * 105 // 100 + 16 * 1024)
    carrying = make_job(source, tmp_path / "out", source__carry=["blob"], **changes)
    plan = plan_job(carrying)
    assert all(s.num_rows * 100_000 < 1_000_000 for s in plan.shards)
    with pytest.raises(JobError, match=r"100[0-9]{3} bytes of carried columns each"):
        plan_job(
            make_job(source, tmp_path / "out", source__carry=["blob"], max_object_bytes=70_000)
        )
    assert rows_per_shard(carrying, (8, 8)) == first.num_rows


def test_a_parents_column_is_carried_under_one_name(
    tmp_path: Path, write_parquet: Make, make_job: Make, make_worker: Make, plan_job: Make
) -> None:
    """The input's own `key` and its `parent_key` would both be named `parent_key`."""
    source = write_parquet(tmp_path / "in/a.parquet", prompt=["a"], parent_key=["grandparent"])
    job = make_job(source, tmp_path / "own", source__carry=["parent_key"], image__format="png")
    worker, plan = make_worker(job)
    worker.make_shard(plan.shards[0])
    changes = {"task": "super_resolution", "model__engine": "ldm"}
    changes |= {"model__path": "demo:super_resolution", "source__carry": ["parent_key"]}
    with pytest.raises(JobError, match=r"own 'key' is carried along as 'parent_key' anyway"):
        plan_job(make_job(tmp_path / "own" / "data", tmp_path / "out", **changes))
    plan = plan_job(
        make_job(tmp_path / "own" / "data", tmp_path / "out", source__carry_parent=False, **changes)
    )
    assert plan.document["images"]["source"]["carry"] == {"parent_key": "string"}

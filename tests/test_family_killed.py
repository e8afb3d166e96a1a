"""A job by one of diffusers' own pipelines, killed in the middle and resumed to the same bytes."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import digests, finish, kill, objects, run, start, wait_until
from test_family import SD
from test_family import model as model
from test_family_task_jobs import hash_of
from test_family_task_jobs import rows as rows
from test_family_tasks import CHANGE


@pytest.mark.long
def test_a_killed_job_is_resumed_to_the_same_bytes(
    model: Callable[[str], Path], rows: Callable[..., str], tmp_path: Path
) -> None:
    shutil.copytree(model(SD), tmp_path / "model")
    shutil.copy(rows(SD, CHANGE), tmp_path / "in.parquet")
    job = ("conf=img2img_sd15", "model=local", "model.engine=diffusers", "model.path=model")
    job = (*job, "source.uri=in.parquet", "cluster=in_process", "batch_size=2", "rows_per_shard=1")
    whole = run(tmp_path, *job, "sink.uri=whole", "call.num_inference_steps=40")
    assert (whole.code, whole.err) == (0, "")
    driver = start(tmp_path, *job, "sink.uri=out", "call.num_inference_steps=40")
    wait_until(lambda: len(objects(tmp_path)) >= 1, driver)
    kill(driver.pid)
    assert finish(driver).code == -9
    assert 1 <= len(objects(tmp_path)) < 6
    ended = run(tmp_path, *job, "sink.uri=out", "call.num_inference_steps=40")
    assert (ended.code, ended.err) == (0, "")
    reference = {
        path.name: hash_of(path.read_bytes()) for path in (tmp_path / "whole/data").iterdir()
    }
    assert digests(tmp_path) == reference
    checked = run(tmp_path, "verify", "out", "--regenerate", "2", module="ldm_batch")
    assert checked.code == 0, checked.out + checked.err
    assert "2 with the same bytes" in checked.out

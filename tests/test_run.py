"""The command as a user gives it: composition, its mistakes, what it prints, what it leaves."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import MACHINERY, digests, objects, run, start, write_prompts
from PIL import Image

from ldm_batch.identity import numbered_seed

IN_PROCESS = "cluster=in_process"
ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_prompts(tmp_path, num_files=1, rows_per_file=50)
    return tmp_path


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sorce.uri=x", "sorce: no such field; did you mean 'source'?"),
        ("+foo=1", "foo: no such field"),
        ("+model._target_=os.system", "model._target_: refused, a configuration holds values"),
        ("source.columns.prompt=captoin", "no column 'captoin' for prompt"),
    ],
)
def test_a_mistake_ends_in_one_message(folder: Path, override: str, message: str) -> None:
    ended = run(folder, *MACHINERY, IN_PROCESS, override)
    assert ended.code == 2, ended
    assert ended.err.startswith("error: ")
    assert message in ended.err
    assert "Traceback" not in ended.err
    assert objects(folder) == []


@pytest.mark.long
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("scheduler.settings.prediction_tpe=x", "DDIMScheduler has no such setting"),
        ("model.path=demo:super_resolution", "needs a LDMTextToImagePipeline"),
    ],
)
def test_what_cannot_work_is_found_before_a_plan_is_stored(
    folder: Path, override: str, message: str
) -> None:
    for dry_run in ("true", "false"):
        job = ("source.uri=in", "sink.uri=out", IN_PROCESS, override, f"dry_run={dry_run}")
        ended = run(folder, *job)
        assert (ended.code, message in ended.err) == (2, True), ended
        assert not (folder / "out").exists()


def test_nothing_but_the_dataset_is_left(folder: Path) -> None:
    assert run(folder, *MACHINERY, IN_PROCESS).code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["in", "out"]
    assert sorted(path.name for path in (folder / "out").iterdir()) == [".ldm_batch", "data"]
    meta = folder / "out" / ".ldm_batch"
    assert sorted(path.name for path in meta.iterdir()) == ["plan", "plan.json", "receipts", "runs"]


def test_dry_run_prints_the_plan_and_writes_nothing(folder: Path) -> None:
    ended = run(folder, *MACHINERY, IN_PROCESS, "dry_run=true")
    assert ended.code == 0
    assert "plan: 1 files, 50 rows, 3 shards; 0 done, 3 to do (50 rows)" in ended.out
    assert not (folder / "out").exists()


def test_named_shards_and_overwrite(folder: Path) -> None:
    assert run(folder, *MACHINERY, IN_PROCESS, "shards=[0,2]").code == 0
    assert sorted(digests(folder)) == ["00000.parquet", "00002.parquet"]
    before, times = digests(folder), [p.stat().st_mtime_ns for p in objects(folder)]
    again = run(folder, *MACHINERY, IN_PROCESS, "shards=[2]", "overwrite=true")
    assert (again.code, "1 to do" in again.out) == (0, True)
    assert digests(folder) == before
    after = [p.stat().st_mtime_ns for p in objects(folder)]
    assert (after[0] == times[0], after[1] > times[1]) == (True, True)


def test_sweep_runs_one_job_per_value_and_leaves_no_folders(folder: Path) -> None:
    ended = run(
        folder,
        "conf=machinery",
        "source.uri=in",
        IN_PROCESS,
        "sink.uri=out_${seed}",
        "seed=1,2",
        "-m",
    )
    assert ended.code == 0, ended
    assert sorted(path.name for path in folder.iterdir()) == ["in", "out_1", "out_2"]


def test_show_configuration_and_help(folder: Path) -> None:
    shown = run(folder, "conf=txt2img_1m", "--cfg", "job")
    assert (shown.code, "num_inference_steps: 50" in shown.out) == (0, True)
    helped = run(folder, "--help")
    assert (helped.code, "txt2img_1m" in helped.out) == (0, True)
    assert sorted(path.name for path in folder.iterdir()) == ["in"]


def test_output_that_nobody_reads_is_no_traceback(folder: Path) -> None:
    process = start(folder, "--cfg", "job")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    process.wait()


def test_a_crash_between_commit_and_receipt_costs_no_images(folder: Path) -> None:
    assert run(folder, *MACHINERY, IN_PROCESS).code == 0
    receipt = folder / "out/.ldm_batch/receipts/00001.json"
    before = json.loads(receipt.read_text())
    receipt.unlink()
    (folder / "out/data/00000.parquet").unlink()
    assert "1 to do" in run(folder, *MACHINERY, IN_PROCESS).out
    after = json.loads(receipt.read_text())
    same = ("num_rows", "num_images", "rejected", "object_sha256", "object_bytes")
    assert [after[name] for name in same] == [before[name] for name in same]


def test_new_files_append_shards(folder: Path) -> None:
    assert run(folder, *MACHINERY, IN_PROCESS).code == 0
    before = digests(folder)
    pq.write_table(pa.table({"prompt": ["new"] * 5}), folder / "in" / "00_new.parquet")
    ended = run(folder, *MACHINERY, IN_PROCESS)
    assert (ended.code, "1 shards appended" in ended.out) == (0, True)
    assert digests(folder).items() > before.items()
    assert sorted(digests(folder))[-1] == "00003.parquet"


def test_prompts_become_pictures_with_provenance(tmp_path: Path) -> None:
    rows = {
        "caption": ["a red circle on a blue background", None, "a green square", "x " * 200],
        "id": ["a", "b", "c", "d"],
        "seed": [7, 8, None, 9],
        "guidance_scale": [2.0, 2.0, 1.0, 2.0],
        "extra": [1, 2, 3, 4],
    }
    pq.write_table(pa.table(rows), tmp_path / "in.parquet")
    job = (
        "source.uri=in.parquet",
        "sink.uri=out",
        IN_PROCESS,
        "source.columns.prompt=caption",
        "source.carry=[extra]",
        "num_images_per_prompt=2",
        "call.num_inference_steps=2",
        "batch_size=4",
        "max_rejected_fraction=1",
    )
    ended = run(tmp_path, *job)
    assert ended.code == 0, ended
    (path,) = objects(tmp_path)
    table = pq.read_table(path).to_pylist()
    assert [(r["key"], r["image_index"], r["extra"]) for r in table] == [
        ("a", 0, 1), ("a", 1, 1), ("c", 0, 3), ("c", 1, 3), ("d", 0, 4), ("d", 1, 4),
    ]  # fmt: skip
    assert [r["seed"] for r in table[:2]] == [7, numbered_seed(7, 1)]
    assert [r["prompt_truncated"] for r in table] == [False] * 4 + [True] * 2
    images = [np.asarray(Image.open(io.BytesIO(r["image"]["bytes"]))) for r in table]
    assert {image.shape for image in images} == {(64, 64, 3)}
    assert len({image.tobytes() for image in images}) == 6
    (rejected,) = (tmp_path / "out/.ldm_batch/rejected").glob("00000-*.parquet")
    [row] = pq.read_table(rejected).to_pylist()
    assert (row["key"], row["reason"], row["row"]["caption"]) == ("b", "null_prompt", None)
    before = digests(tmp_path)
    path.unlink()
    assert run(tmp_path, *job).code == 0
    assert digests(tmp_path) == before


@pytest.mark.long
def test_batch_size_is_measured_once_and_then_the_plans(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["a red circle", "a star"]}), tmp_path / "in.parquet")
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    job = [
        sys.executable,
        "-m",
        "ldm_batch.run",
        "source.uri=in.parquet",
        "sink.uri=out",
        IN_PROCESS,
    ]
    job += ["rows_per_shard=1", "call.num_inference_steps=2", "batch_size=auto"]
    for shard in (0, 1):
        subprocess.run([*job, f"shards=[{shard}]"], check=True, cwd=tmp_path, env=environment)
    plan = json.loads((tmp_path / "out/.ldm_batch/plan.json").read_text())
    (measured,) = json.loads((tmp_path / "cache/ldm_batch/batch_sizes.json").read_text()).values()
    assert plan["images"]["batch_size"] == measured
    assert len(objects(tmp_path)) == 2


def test_an_interruption_that_python_ignores_comes_again() -> None:
    program = (
        "import signal; from ldm_batch.run import command\n"
        "class Late:\n"
        "    def __del__(self): raise KeyboardInterrupt\n"
        "command._interrupt_again_when_ignored()\n"
        "try:\n"
        "    Late()\n"
        "    signal.sigtimedwait([], 60)\n"
        "except KeyboardInterrupt:\n"
        "    print('heard')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == ("heard\n", "")

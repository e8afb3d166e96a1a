"""The trade-off command: a table, a plot and a contact sheet from a job's own prompts."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ldm_batch.commands.tradeoff import command as tradeoff
from ldm_batch.commands.tradeoff.measure import run_interleaved
from ldm_batch.commands.tradeoff.show import format_table
from ldm_batch.config import (
    CallConfig,
    ClusterConfig,
    JobConfig,
    ModelConfig,
    SinkConfig,
    SourceConfig,
)
from ldm_batch.demo import tradeoff as demo
from ldm_batch.drive import run_job
from ldm_batch.records import Fault, Reason

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, of numpy

PROMPTS = ["a red circle on a blue background", None, "a small blue star on a red background"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.parquet"
    pq.write_table(pa.table({"text": PROMPTS}), path)
    return path


def test_the_command_on_a_prompt_file(prompts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    arguments = [
        *(str(prompts), "--column", "text", "--output", str(folder)),
        *("--schedulers", "ddim,euler", "--steps", "1,2", "--reference", "ddim:2"),
    ]
    demo.main(arguments)
    with (folder / "tradeoff.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["setting"] for row in rows] == ["ddim 2", "ddim 1", "euler 1", "euler 2"]
    assert float(rows[0]["distance"]) == 0
    assert all(0 < float(row["distance"]) < 0.5 for row in rows[1:])
    assert all(0 <= float(row["right"]) <= 1 for row in rows)
    sheet = Image.open(folder / "tradeoff_sheet.png")
    assert sheet.width > 4 * 96
    assert sheet.height > 2 * 96
    assert Image.open(folder / "tradeoff.png").width > 100


def test_a_planned_dataset_names_its_own_job(prompts: Path, tmp_path: Path) -> None:
    sink = tmp_path / "dataset"
    job = JobConfig(seed=7, batch_size=2, max_rejected_fraction=1)
    job.model = ModelConfig(path="demo:text_to_image")
    job.call = CallConfig(num_inference_steps=2, guidance_scale=2.0)
    job.source = SourceConfig(uri=str(prompts), columns={"prompt": "text"})
    job.sink = SinkConfig(uri=str(sink))
    job.cluster = ClusterConfig(executor="in_process")
    assert run_job(job, out=io.StringIO()) == 0
    options = tradeoff.make_parser().parse_args([str(sink), "--presets"])
    planned, form = tradeoff.job_of(str(sink), options)
    assert (planned.model, planned.scheduler, planned.call) == (job.model, job.scheduler, job.call)
    assert (planned.seed, planned.batch_size) == (7, 2)
    assert planned.source.columns == job.source.columns
    rows = tradeoff.sample_rows(planned, form, 10)
    assert [row.inputs["prompt"] for row in rows] == [PROMPTS[0], PROMPTS[2]]
    labels = [setting.label for setting in tradeoff.settings_of(options, planned)]
    assert labels == ["reference", "balanced", "fast"]
    made = pq.read_table(sink / "data" / "00000.parquet").to_pylist()
    seeds = [request.seed for request in tradeoff.requests_of(rows, planned, form)]
    assert seeds == [row["seed"] for row in made]


def test_trouble_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        tradeoff.main([str(tmp_path / "nothing.parquet"), "--output", str(tmp_path)])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(SystemExit):
        tradeoff.main([str(tmp_path), "--steps", "two"])


def test_every_way_sees_every_batch() -> None:
    seen: dict[str, list[int]] = {"a": [], "b": []}

    def way(name: str):
        def generate(requests):
            seen[name].append(len(requests))
            return [np.zeros((2, 2, 3), np.uint8)] * len(requests)

        return generate

    runs = run_interleaved({"a": way("a"), "b": way("b")}, [None] * 5, 2)
    assert seen["a"] == seen["b"] == [1, 2, 2, 1]
    assert all(len(images) == 5 for images, _, _ in runs.values())


def test_faults_stop_the_comparison() -> None:
    fault = Fault(Reason.NOT_FINITE, "not finite")
    with pytest.raises(tradeoff.JobError, match="not finite"):
        run_interleaved({"a": lambda requests: [fault]}, [None], 1)


def test_other_prompts_are_not_judged() -> None:
    assert demo.share_right([np.zeros((64, 64, 3), np.uint8)], ["an astronaut"]) is None


def test_table_is_aligned() -> None:
    table = format_table([("ddim 50", "1.0", "1.0", "1.00x", "0.0000", "0.5")])
    lines = table.splitlines()
    assert len({len(line) for line in lines[:3]}) == 1
    assert json.dumps(lines[2]).count("|") == 7

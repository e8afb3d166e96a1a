"""Other people's readers see images and records, and nothing that is not data."""

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.dataset as pads
import pytest
from PIL import Image

Make = Callable[..., Any]
LOAD = """
import sys
from datasets import load_dataset
kind, place = sys.argv[1:]
if kind == "folder":
    data = load_dataset(place)
else:
    data = load_dataset("parquet", data_files=place + "/data/*.parquet")
train = data["train"]
print(list(data), train.column_names[:2], train.num_rows, type(train.features["image"]).__name__)
for row in train:
    image = row["image"]
    print(row["prompt"], image.size, image.mode, row["seed"], image.getpixel((0, 0)))
"""


@pytest.fixture(scope="module")
def sink(
    tmp_path_factory: pytest.TempPathFactory,
    write_parquet: Make,
    make_job: Make,
    make_worker: Make,
) -> Path:
    """Five images, two rejected rows, a shard without an image, receipts, a plan, a readme."""
    folder = tmp_path_factory.mktemp("dataset")
    prompts = ["a", "b", None, "", None, None, "c", "d", "e"]
    source = write_parquet(folder / "a.parquet", prompt=prompts)
    worker, plan = make_worker(make_job(source, folder / "out", rows_per_shard=3))
    for shard in plan.shards:
        worker.make_shard(shard)
    (folder / "out/README.md").write_text("# A dataset\n")
    return folder / "out"


@pytest.mark.parametrize("kind", ["files", "folder"])
def test_datasets_gives_decoded_images_and_nothing_else(
    sink: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    command = [sys.executable, "-c", LOAD, kind, str(sink)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    first, *rows = ended.stdout.splitlines()
    assert first == "['train'] ['image', 'key'] 5 Image"
    images = pads.dataset(sink / "data").to_table(columns=["image", "prompt", "seed"]).to_pylist()
    expected = []
    for row in images:
        image = Image.open(io.BytesIO(row["image"]["bytes"]))
        corner = image.getpixel((0, 0))
        expected.append(f"{row['prompt']} {image.size} {image.mode} {row['seed']} {corner}")
    assert rows == expected


@pytest.mark.parametrize("place", ["", "data"])
def test_pyarrow_reads_the_folder(sink: Path, place: str) -> None:
    """Below the sink as below its data: what is hidden is left out."""
    dataset = pads.dataset(sink / place, format="parquet", exclude_invalid_files=True)
    assert dataset.to_table(columns=["prompt"])["prompt"].to_pylist() == list("abcde")


def test_duckdb_reads_the_objects(sink: Path) -> None:
    query = f"""
        select prompt, octet_length(image.bytes) > 0, image.path, seed
        from read_parquet('{sink}/data/*.parquet') order by key
    """
    rows = duckdb.sql(query).fetchall()
    assert [(row[0], row[1]) for row in rows] == [(prompt, True) for prompt in "abcde"]
    assert rows[0][2] == "00000-000000.webp"
    assert all(0 <= row[3] < 2**64 for row in rows)


def test_nothing_but_objects_stands_in_data(sink: Path) -> None:
    names = ["00000.parquet", "00001.parquet", "00002.parquet"]
    assert sorted(path.name for path in (sink / "data").iterdir()) == names
    assert sorted(path.name for path in sink.iterdir()) == [".ldm_batch", "README.md", "data"]

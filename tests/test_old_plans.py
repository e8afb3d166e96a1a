"""Datasets of earlier code stay datasets: their fingerprint, keys, seeds and bytes, for ever."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from commands import Ended, digests, objects, run

from ldm_batch.config import CallConfig, JobConfig
from ldm_batch.generate.text_to_image import TEXT_TO_IMAGE
from ldm_batch.identity import FORMS, NEWEST_FORM
from ldm_batch.plan.fingerprint import images_document
from ldm_batch.versions import versions

FIXTURES = Path(__file__).parent / "fixtures" / "form_1"
PLANNED_AT = 1_795_000_000
"""Time stamp of every input file when it was planned, seconds since the epoch."""
PIXELS = [
    *["conf=machinery", "name=pixels", "source.uri=in", "sink.uri=out", "seed=5", "batch_size=4"],
    *["num_images_per_prompt=2", "rows_per_shard=8", "source.carry=[topic]"],
    *["call.guidance_scale=3.0", "max_rejected_fraction=1"],
]
COMMON = [
    *["cluster=in_process", "seed=11", "batch_size=2", "scheduler=ddim", "max_rejected_fraction=1"]
]
SMALL = ["call.num_inference_steps=2", "rows_per_shard=4"]
TEXT = [
    *SMALL,
    *["call.guidance_scale=2.0", "call.height=null", "call.width=null", "source.uri=in"],
    *["model=local", "model.path=model/text_to_image"],
]
TINY = {
    "text": ["conf=txt2img_1m", *TEXT, "num_images_per_prompt=2"],
    "large": [
        *["conf=upscale_1m", *SMALL, "source.uri=text/data", "call.eta=0.5"],
        *["model=local_upscale", "model.path=model/super_resolution"],
    ],
    "chained": [
        *["conf=txt2img_1m", *TEXT, "+model@upscale.model=local_upscale"],
        "upscale.model.path=model/super_resolution",
        *["upscale.num_inference_steps=2", "upscale.keep_low_resolution=true"],
    ],
}
IDENTITY = ("key", "image_index", "seed", "input_file", "input_row", "fingerprint")


def copy(name: str, where: Path) -> Path:
    """A copy of a fixture whose input files are as old as they were."""
    folder = Path(shutil.copytree(FIXTURES / name, where / name))
    for path in [*folder.glob("in/*"), *folder.glob("text/data/*")]:
        os.utime(path, (PLANNED_AT, PLANNED_AT))
    return folder


def forget(dataset: Path, *indices: int) -> None:
    """Remove shards with all that tells of them, as if they had never been made."""
    for index in indices:
        (dataset / "data" / f"{index:05d}.parquet").unlink()
        (dataset / ".ldm_batch" / "receipts" / f"{index:05d}.json").unlink()
        (dataset / ".ldm_batch" / "rejected" / f"{index:05d}.parquet").unlink(missing_ok=True)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("*")) for row in pq.read_table(path).to_pylist()]


def plan_of(dataset: Path) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads((dataset / ".ldm_batch" / "plan.json").read_text())
    return plan


def without_encoding(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what another version of Pillow may write otherwise."""
    return {name: value for name, value in row.items() if name not in ("image", "image_sha256")}


def assert_same_dataset(folder: Path) -> None:
    """Objects are the fixture's, byte for byte where the versions that write them are the same."""
    original = FIXTURES / "pixels"
    plan = plan_of(folder / "out")
    assert plan == plan_of(original / "out")
    made, planned = rows(folder / "out" / "data"), rows(original / "out" / "data")
    assert [without_encoding(row) for row in made] == [without_encoding(row) for row in planned]
    rejected = "out/.ldm_batch/rejected"
    assert rows(folder / rejected) == rows(original / rejected)
    planned_with, here = plan["environment"]["versions"], versions()
    if all(planned_with[name] == here[name] for name in ("pillow", "pyarrow")):
        assert digests(folder) == digests(original)


def assert_done(ended: Ended) -> None:
    assert ended.code == 0, ended.err + ended.out


@pytest.mark.parametrize("cluster", [["cluster=in_process"], ["cluster.num_workers=2"]])
def test_new_code_finishes_what_old_code_began(tmp_path: Path, cluster: list[str]) -> None:
    folder = copy("pixels", tmp_path)
    forget(folder / "out", 0, 2, 4, 6)
    assert_done(run(folder, *PIXELS, *cluster))
    assert_same_dataset(folder)


def test_a_shard_made_again_is_the_same(tmp_path: Path) -> None:
    folder = copy("pixels", tmp_path)
    again = [path.stat().st_mtime_ns for path in objects(folder)]
    assert_done(run(folder, *PIXELS, "cluster=in_process", "shards=[0,1,5]", "overwrite=true"))
    renewed = [path.stat().st_mtime_ns for path in objects(folder)]
    assert [i for i, (a, b) in enumerate(zip(again, renewed, strict=True)) if a != b] == [0, 1, 5]
    assert_same_dataset(folder)


def test_other_settings_are_refused_still(tmp_path: Path) -> None:
    ended = run(copy("pixels", tmp_path), *PIXELS, "cluster=in_process", "image.mark=false")
    assert ended.code == 2
    assert "image.mark: planned true, now false" in ended.err


@pytest.mark.parametrize("name", TINY)
def test_a_model_keeps_fingerprint_keys_and_seeds(tmp_path: Path, name: str) -> None:
    folder = copy("tiny", tmp_path)
    planned = rows(folder / name / "data")
    forget(folder / name, *range(len(list((folder / name / "data").glob("*")))))
    assert_done(run(folder, *TINY[name], *COMMON, f"name={name}", f"sink.uri={name}"))
    made = rows(folder / name / "data")
    own = [column for column in made[0] if column in (*IDENTITY, "upscale_seed")]
    assert len(own) >= len(IDENTITY)
    assert [[row[c] for c in own] for row in made] == [[row[c] for c in own] for row in planned]
    assert list(made[0]) == list(planned[0])
    assert plan_of(folder / name) == plan_of(FIXTURES / "tiny" / name)


def test_a_new_plan_says_its_form(tmp_path: Path) -> None:
    folder = copy("pixels", tmp_path)
    assert_done(run(folder, *PIXELS, "cluster=in_process", "sink.uri=new"))
    assert "fingerprint_form" not in plan_of(folder / "out")
    assert plan_of(folder / "new")["fingerprint_form"] == NEWEST_FORM.number


def test_a_form_of_the_future_is_refused(tmp_path: Path) -> None:
    folder = copy("pixels", tmp_path)
    path = folder / "out" / ".ldm_batch" / "plan.json"
    path.write_text(json.dumps({**plan_of(folder / "out"), "fingerprint_form": 99}))
    ended = run(folder, *PIXELS, "cluster=in_process")
    assert ended.code == 2
    assert "made by another version of ldm_batch" in ended.err


@dataclass
class LaterCall(CallConfig):
    """The call's arguments of a version that knows one more."""

    sharpness: float = 0.0


def test_a_later_field_enters_only_where_it_is_used() -> None:
    def document(call: CallConfig) -> dict[str, Any]:
        job, task = JobConfig(call=call), TEXT_TO_IMAGE.columns
        return images_document(job, {}, {}, FORMS[1], task=task, of_task={})

    assert document(LaterCall()) == document(CallConfig())
    assert document(LaterCall(sharpness=0.5))["call"] == {
        **document(CallConfig())["call"],
        "sharpness": 0.5,
    }

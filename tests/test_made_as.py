"""An image that was made otherwise than planned says so, and is made so again."""

import dataclasses
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from test_upscale_jobs import make_job as make_large
from test_upscale_jobs import png_of, rows_of, some_pngs, write

from ldm_batch.commands.verify.regenerate import Comparison, Sample
from ldm_batch.commands.verify.verification import EXIT_RIGHT, EXIT_WRONG, Verification, verify
from ldm_batch.config import CallConfig, ImageConfig, JobConfig, ModelConfig, UpscaleConfig
from ldm_batch.dataset import open_dataset
from ldm_batch.drive import run_job
from ldm_batch.generate.random_pixels import RandomPixels
from ldm_batch.identity import receipt_path
from ldm_batch.made_as import (
    MadeAs,
    count_made_as,
    describe_made_as,
    how_made,
    parse_made_as,
    with_made_as,
)
from ldm_batch.records import Fault, Made, Reason
from ldm_batch.storage import Store
from ldm_batch.write.encode import encode_image, sha256
from ldm_batch.write.receipt import read_receipt

MODELS = Path(__file__).parent / "fixtures" / "form_1" / "tiny" / "model"
STAGES = st.builds(MadeAs, st.none() | st.integers(1, 4096), st.booleans())


# The text of the column


@given(STAGES, st.none() | STAGES)
def test_a_text_says_all_of_it(first: MadeAs, second: MadeAs | None) -> None:
    how = dataclasses.replace(first, upscale=second)
    assert str(parse_made_as(str(how))) == str(how)
    nothing = second is None or second == MadeAs()
    assert parse_made_as(str(how)) == dataclasses.replace(how, upscale=None if nothing else second)


def test_its_words() -> None:
    second = MadeAs(is_float32=True)
    assert str(MadeAs(4, upscale=second)) == "batch_size=4 upscale:float32"
    assert str(MadeAs(8, True, MadeAs(2, True))) == (
        "batch_size=8 float32 upscale:batch_size=2 upscale:float32"
    )
    assert str(MadeAs()) == str(MadeAs(upscale=MadeAs())) == ""


@pytest.mark.parametrize(
    "text",
    [
        *(" ", "float16", "float32 batch_size=4", "batch_size=0", "batch_size=04", "batch_size=-1"),
        *("batch_size=4  float32", "float32 float32", "batch_size=4 batch_size=2", "upscale:"),
        *("upscale:float32 float32", "upscale:upscale:float32", "batch_size=٤", "None"),
        *("batch_size=8", "upscale:batch_size=8", "batch_size=99999999999999999999"),
    ],
)
def test_what_no_image_can_have_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="none that an image can have"):
        parse_made_as(text, planned_rows=8)


def test_pictures_as_planned_are_left_alone() -> None:
    pixels, fault = np.zeros((1, 1, 3), np.uint8), Fault(Reason.NOT_FINITE, "")
    assert how_made(pixels) == how_made(fault) == how_made(Made(pixels)) == MadeAs()
    assert with_made_as(fault, MadeAs(2)) is fault
    made = with_made_as(Made(pixels, columns={"prompt_tokens": 3}), MadeAs(2))
    assert made.columns == {"prompt_tokens": 3, "made_as": "batch_size=2"}
    assert how_made(made) == MadeAs(2)


def test_what_is_told_of_many() -> None:
    texts = ["", "float32", None, "batch_size=2", "", "batch_size=2", "no words of ours", b"x"]
    counts = count_made_as(texts)
    assert counts == {"float32": 1, "batch_size=2": 2}
    assert describe_made_as(counts) == ["2 images made as batch_size=2", "1 image made as float32"]


# Datasets


class SmallMemory:
    """A device on which model calls of more than some rows fail, from a number of calls on."""

    def __init__(
        self, patch: pytest.MonkeyPatch, network: type, max_rows: int = 99, after: int = 0
    ) -> None:
        self.num_calls = 0
        self.seen: set[tuple[int, torch.dtype]] = set()
        """Rows and dtype of all calls."""
        whole = network.forward

        def forward(unet: Any, rows: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.num_calls += 1
            self.seen.add((len(rows), rows.dtype))
            if len(rows) > max_rows and self.num_calls > after:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
            return whole(unet, rows, *args, **kwargs)

        patch.setattr(network, "forward", forward)


@pytest.fixture
def device() -> Iterator[pytest.MonkeyPatch]:
    """What happens to the device while a dataset is made, undone by `undo`."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def make_text(folder: Path, num_rows: int, **changes: Any) -> JobConfig:
    """Two steps of a tiny model without guidance: two model calls for a batch of four."""
    source = write(folder / "p.parquet", prompt=[f"a red circle {i}" for i in range(num_rows)])
    job = make_large(str(MODELS / "text_to_image"), source, folder / "out", **changes)
    return dataclasses.replace(
        job, task="text_to_image", call=CallConfig(num_inference_steps=2, height=None, width=None)
    )


def made_by(job: JobConfig) -> list[dict[str, Any]]:
    assert run_job(job, out=io.StringIO()) == 0
    return rows_of(Path(str(job.sink.uri)) / "data")


def verified(job: JobConfig, num_images: int) -> Verification:
    return verify(Store(str(job.sink.uri)), Sample(num_images))


def assert_made_again(job: JobConfig, num_images: int) -> None:
    """The same bytes, each image made as it was made."""
    found = verified(job, num_images)
    assert (found.problems, found.exit_code) == ([], EXIT_RIGHT)
    assert found.regenerated is not None
    assert (found.regenerated.num_images, found.regenerated.num_equal) == (num_images, num_images)


def notes_of(job: JobConfig, shard: int = 0) -> list[str]:
    """Notes of a shard's receipt on how images were made; those of a rebuilt one are the same."""
    store = Store(str(job.sink.uri))
    fingerprint = open_dataset(store).plan.fingerprint
    live = read_receipt(store, shard, fingerprint)
    store.remove(receipt_path(f"{shard:05d}"))
    rebuilt = read_receipt(store, shard, fingerprint)
    assert rebuilt.notes[0] == "rebuilt from the object"
    notes = [note for note in live.notes if " made as " in note]
    assert list(rebuilt.notes[1:]) == notes
    return notes


def test_images_before_and_after_memory_ran_out(tmp_path: Path, device: Any) -> None:
    job = make_text(tmp_path, 11, num_images_per_prompt=1)
    SmallMemory(device, UNet2DConditionModel, max_rows=2, after=2)
    made = made_by(job)
    assert [row["made_as"] for row in made] == [""] * 4 + ["batch_size=2"] * 7
    assert notes_of(job) == ["7 images made as batch_size=2"]
    device.undo()
    watched = SmallMemory(device, UNet2DConditionModel)
    assert_made_again(job, 11)
    assert watched.seen == {(4, torch.float32), (2, torch.float32)}
    found = verified(job, 0)
    assert found.made_as == {"batch_size=2": 7}
    assert found.notes == ["7 images made as batch_size=2"]


def test_as_planned_there_is_nothing_to_say(tmp_path: Path) -> None:
    job = make_text(tmp_path, 3)
    made = made_by(job)
    assert [row["made_as"] for row in made] == [""] * 3
    assert notes_of(job) == []
    table = pq.read_table(tmp_path / "out" / "data" / "00000.parquet")
    assert table.schema.field("made_as").type == "string"


def test_a_shape_that_never_fits_is_told_of_every_shard(tmp_path: Path, device: Any) -> None:
    job = make_text(tmp_path, 8, rows_per_shard=4)
    SmallMemory(device, UNet2DConditionModel, max_rows=1, after=0)
    assert {row["made_as"] for row in made_by(job)} == {"batch_size=1"}
    assert [notes_of(job, shard) for shard in (0, 1)] == [["4 images made as batch_size=1"]] * 2
    device.undo()
    assert_made_again(job, 8)


def test_out_of_memory_where_an_image_is_made_again_is_no_damage(
    tmp_path: Path, device: Any
) -> None:
    job = make_text(tmp_path, 4)
    made_by(job)
    SmallMemory(device, UNet2DConditionModel, max_rows=2, after=0)
    found = verified(job, 4)
    assert found.exit_code == EXIT_RIGHT, found.problems
    assert found.regenerated is not None
    counts = (found.regenerated.num_equal, found.regenerated.num_within_tolerance)
    assert sum(counts) == 4


@pytest.mark.parametrize("way", ["", "batch_size=2"])
@pytest.mark.parametrize("is_same_device", [True, False])
def test_last_bits_may_differ_only_where_they_must(way: str, is_same_device: bool) -> None:
    before = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    raw = encode_image(before, "webp")
    record = {"image": {"bytes": raw, "path": "a.webp"}, "image_sha256": sha256(raw)}
    near, far = before.copy(), 255 - before
    near[0, 0] ^= 1
    comparison = Comparison(JobConfig(image=ImageConfig(format="webp")), "cpu")
    for name, pixels in (("near", near), ("far", far), ("equal", before)):
        made = Made(pixels, columns={"made_as": way} if way else {})
        comparison.add(name, record, made, is_same_device=is_same_device)
    found = comparison.result()
    may_differ = bool(way) or not is_same_device
    assert [problem.split(":")[0] for problem in found.problems] == (
        ["far"] if may_differ else ["near", "far"]
    )
    assert (found.num_images, found.num_equal) == (3, 1)
    assert found.num_within_tolerance == may_differ


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both tiny models with activations that are beyond float16, and not beyond float32."""
    folder = Path(shutil.copytree(MODELS, tmp_path_factory.mktemp("overflow") / "model"))
    for name in ("text_to_image", "super_resolution"):
        path = folder / name / "unet" / "diffusion_pytorch_model.safetensors"
        weights = {key: value.float() for key, value in load_file(path).items()}
        weights["time_embedding.linear_1.weight"] *= 1e6
        save_file(weights, path)
    return folder


def test_float32_is_told(tmp_path: Path, overflowing: Path, device: Any) -> None:
    job = make_text(tmp_path, 6)
    path = str(overflowing / "text_to_image")
    job = dataclasses.replace(job, model=ModelConfig(path=path, dtype="float16"))
    SmallMemory(device, UNet2DConditionModel, max_rows=2, after=4)
    made = made_by(job)
    ways = Counter(row["made_as"] for row in made)
    assert ways == {"float32": 4, "batch_size=2 float32": 2}
    assert notes_of(job) == ["2 images made as batch_size=2 float32", "4 images made as float32"]
    device.undo()
    watched = SmallMemory(device, UNet2DConditionModel)
    assert_made_again(job, 6)
    assert watched.seen == {(4, torch.float32), (2, torch.float32)}


def test_super_resolution_in_tiles_and_in_float32(
    tmp_path: Path, overflowing: Path, device: Any
) -> None:
    """The pipeline in float32 has a shape of its own, and says its own."""
    source = write(tmp_path / "in.parquet", image=some_pngs(6))
    for dtype, folder, after in (("float32", MODELS, 1), ("float16", overflowing, 0)):
        model = str(folder / "super_resolution")
        job = make_large(model, source, tmp_path / dtype, rows_per_shard=3, call__eta=1.0)
        job = dataclasses.replace(job, model=dataclasses.replace(job.model, dtype=dtype))
        SmallMemory(device, UNet2DModel, max_rows=1, after=after)
        made = made_by(job)
        device.undo()
        ways = [row["made_as"] for row in made]
        if dtype == "float32":
            assert ways[0] == ""
            assert ways[-1] == "batch_size=1"
        else:
            assert ways == ["batch_size=1 float32"] * 6
        with pytest.MonkeyPatch.context() as patch:
            watched = SmallMemory(patch, UNet2DModel)
            assert_made_again(job, 6)
        rows = {1, 4} if dtype == "float32" else {1}
        assert watched.seen == {(num, torch.float32) for num in rows}


def test_large_images_are_made_in_tiles_of_fewer_rows(tmp_path: Path, device: Any) -> None:
    source = write(tmp_path / "in.parquet", image=[png_of(40, 70), png_of(70, 40)])
    tiles = {"upscale__tile_size": 32, "upscale__tile_overlap": 8}
    job = make_large(str(MODELS / "super_resolution"), source, tmp_path / "out", **tiles)
    SmallMemory(device, UNet2DModel, max_rows=3, after=0)
    assert [row["made_as"] for row in made_by(job)] == ["batch_size=2"] * 2
    device.undo()
    assert_made_again(job, 2)


def test_each_stage_is_told_by_itself(tmp_path: Path, overflowing: Path, device: Any) -> None:
    job = make_text(tmp_path, 6)
    large = ModelConfig(path=str(overflowing / "super_resolution"), dtype="float16")
    second = UpscaleConfig(model=large, num_inference_steps=1, keep_low_resolution=True)
    job = dataclasses.replace(job, upscale=second)
    SmallMemory(device, UNet2DConditionModel, max_rows=2, after=2)
    made = made_by(job)
    assert [row["made_as"] for row in made] == [
        *["upscale:float32"] * 4,
        *["batch_size=2 upscale:float32"] * 2,
    ]
    assert len(notes_of(job)) == 2
    device.undo()
    assert_made_again(job, 6)


def test_both_stages_in_fewer_rows(tmp_path: Path, device: Any) -> None:
    job = make_text(tmp_path, 4)
    second = UpscaleConfig(model=ModelConfig(path=str(MODELS / "super_resolution")))
    second = dataclasses.replace(second, num_inference_steps=1)
    job = dataclasses.replace(job, upscale=second)
    SmallMemory(device, UNet2DConditionModel, max_rows=2, after=0)
    SmallMemory(device, UNet2DModel, max_rows=1, after=0)
    assert {row["made_as"] for row in made_by(job)} == {"batch_size=2 upscale:batch_size=1"}
    device.undo()
    small, large = (SmallMemory(device, unet) for unet in (UNet2DConditionModel, UNet2DModel))
    assert_made_again(job, 4)
    assert (small.seen, large.seen) == ({(2, torch.float32)}, {(1, torch.float32)})


# What a dataset says is checked


def change_first(sink: Path, **values: Any) -> None:
    """Change the first image's record and leave its object as whole as it was."""
    path = sink / "data" / "00000.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    changed = [{**rows[0], **values}, *rows[1:]]
    pq.write_table(table.from_pylist(changed, schema=table.schema), path, write_page_checksum=True)
    (sink / ".ldm_batch" / "receipts" / "00000.json").unlink()


@pytest.mark.parametrize("text", ["batch_size=4", "batch_size=100000", "float16", None])
def test_a_way_that_cannot_be_is_wrong_and_is_not_tried(tmp_path: Path, text: Any) -> None:
    job = make_text(tmp_path, 3)
    made_by(job)
    change_first(tmp_path / "out", made_as=text)
    found = verified(job, 3)
    assert found.exit_code == EXIT_WRONG
    assert f"row 0, image 0: made_as {str(text)!r} is none that an image can" in found.problems[0]
    assert "p.parquet#0 #0: not made again: made_as" in found.problems[1]
    assert found.regenerated is not None
    assert (found.regenerated.num_equal, found.regenerated.num_not_made) == (2, 1)
    assert found.made_as == {}


def test_another_image_is_wrong_however_it_says_that_it_was_made(tmp_path: Path) -> None:
    job = make_text(tmp_path, 2)
    [first, second] = made_by(job)
    other = {name: second[name] for name in ("image", "image_sha256", "pixel_sha256")}
    change_first(tmp_path / "out", made_as="batch_size=1", **other)
    found = verified(job, 2)
    assert found.exit_code == EXIT_WRONG
    assert "made again it differs by" in found.problems[0]
    assert first["image_sha256"] != second["image_sha256"]


class Halved(RandomPixels):
    """A pipeline that says of every second image that memory ran out."""

    def generate(self, requests: Any) -> Any:
        drawn = super().generate(requests)
        return [with_made_as(p, MadeAs(2)) if i % 2 else p for i, p in enumerate(drawn)]


def test_receipts_count_what_is_stored(
    tmp_path: Path, write_parquet: Callable[..., str], make_job: Any, make_worker: Any
) -> None:
    source = write_parquet(tmp_path / "a.parquet", prompt=["a"] * 7)
    worker, plan = make_worker(make_job(source, tmp_path / "out"), Halved())
    receipt = worker.make_shard(plan.shards[0])
    assert receipt.notes == ("3 images made as batch_size=2",)
    path = tmp_path / "out" / ".ldm_batch" / "receipts" / "00000.json"
    assert json.loads(path.read_text())["notes"] == list(receipt.notes)
    path.unlink()
    rebuilt = read_receipt(Store(str(tmp_path / "out")), 0, plan.fingerprint)
    assert rebuilt.notes == ("rebuilt from the object", "3 images made as batch_size=2")
    [image] = rows_of(tmp_path / "out" / "data")[:1]
    assert Image.open(io.BytesIO(image["image"]["bytes"])).size == (8, 8)

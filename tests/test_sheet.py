"""A picture of a dataset's first images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldm_batch.commands import sheet
from ldm_batch.commands.sheet import draw_sheet, first_images, write_contact_sheet
from ldm_batch.errors import JobError
from ldm_batch.storage import Store

Make = Callable[..., Any]


@pytest.fixture
def sink(tmp_path: Path, write_parquet: Make, make_job: Make, make_worker: Make) -> str:
    """Ten images in shards of 4, 0, 4 and 2."""
    prompts = [f"prompt {i}" for i in range(4)] + [""] * 4 + [f"prompt {i}" for i in range(4, 10)]
    source = write_parquet(tmp_path / "a.parquet", prompt=prompts)
    worker, plan = make_worker(make_job(source, tmp_path / "out", rows_per_shard=4))
    for shard in reversed(plan.shards):
        worker.make_shard(shard)
    return str(tmp_path / "out")


@pytest.mark.parametrize("num_images", [1, 4, 5, 10, 100])
def test_the_first_images_come_in_order(sink: str, num_images: int) -> None:
    prompts = [prompt for _, prompt in first_images(Store(sink), num_images)]
    assert prompts == [f"prompt {i}" for i in range(min(num_images, 10))]


def test_other_files_are_left_out(sink: str) -> None:
    Path(sink, "data/notes.txt").write_bytes(b"x")
    assert len(list(first_images(Store(sink), 100))) == 10


@pytest.mark.parametrize(
    ("num_images", "size"), [(1, (144, 188)), (8, (1096, 188)), (9, (1096, 376))]
)
def test_a_sheet_has_rows_of_eight(num_images: int, size: tuple[int, int]) -> None:
    red = Image.new("RGB", (64, 64), "red")
    sheet = draw_sheet([(red, "a red square")] * num_images)
    assert sheet.size == size
    assert sheet.getpixel((72, 72)) == (255, 0, 0)


def test_every_shape_fits_its_place() -> None:
    shapes = [(64, 64), (256, 8), (8, 256), (1, 1000)]
    images = [(Image.new("RGB", shape, "blue"), "word " * 200) for shape in shapes]
    pixels = np.asarray(draw_sheet(images))
    assert (pixels[:, :8] == 255).all()
    assert ((pixels == (0, 0, 255)).all(-1).any(0)).sum() > 200


def test_the_command_writes_a_picture(
    sink: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sheet.png"
    sheet.main([sink, "--output", str(path), "--images", "3"])
    assert capsys.readouterr().out == f"{path}\n"
    assert Image.open(path).size == (416, 188)


def test_a_sink_without_images_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(JobError, match="no dataset here"):
        write_contact_sheet(Store(str(tmp_path)), tmp_path / "a.png", 9)
    with pytest.raises(SystemExit, match="2"):
        sheet.main([str(tmp_path)])
    assert f"error: {tmp_path}: no dataset here" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--images", "0"], ["--images", "-1"], ["--images", "x"]])
def test_a_number_of_images_that_is_none(
    sink: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        sheet.main([sink, *arguments])
    assert "--images" in capsys.readouterr().err


def test_a_place_that_cannot_be_written(sink: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        sheet.main([sink, "--output", "/gone/sheet.png"])
    assert (
        "error: --output: /gone/sheet.png cannot be written: No such file or directory"
        in capsys.readouterr().err
    )


def test_a_damaged_object_is_told(sink: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(sink, "data/00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(SystemExit, match="2"):
        sheet.main([sink])
    assert "data/00000.parquet: cannot be read" in capsys.readouterr().err

"""An image made from another one is made again from that very one, or not at all, and told why."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import encode
from PIL import Image
from test_super_resolution import picture
from test_upscale_jobs import make_job, png_of, write

from ldm_batch.commands.verify import command
from ldm_batch.commands.verify.regenerate import Sample
from ldm_batch.commands.verify.verification import EXIT_RIGHT, EXIT_WRONG, verify
from ldm_batch.drive import run_job
from ldm_batch.storage import Store
from ldm_batch.write.encode import sha256

MODEL = Path(__file__).parent / "fixtures" / "form_1" / "tiny" / "model" / "super_resolution"


@pytest.fixture
def by_path(tmp_path: Path) -> Path:
    """Four images that were made from files, two images of each row's in two shards."""
    (tmp_path / "in").mkdir()
    for i in range(4):
        (tmp_path / "in" / f"{i}.png").write_bytes(png_of(6, 8, i))
    paths = [f"{i}.png" for i in range(4)]
    source = write(tmp_path / "in" / "a.parquet", image=paths, id=list("abcd"))
    job = make_job(str(MODEL), source, tmp_path / "out", rows_per_shard=2)
    assert run_job(job, out=io.StringIO()) == 0
    return tmp_path


def regenerated(folder: Path) -> tuple[list[str], int, int]:
    """Problems, and how many of four images were made again and how many came out the same."""
    found = verify(Store(str(folder / "out")), Sample(4))
    assert found.exit_code == (EXIT_WRONG if found.problems else EXIT_RIGHT)
    assert found.regenerated is not None
    assert found.regenerated.num_not_made == 4 - found.regenerated.num_images
    return found.problems, found.regenerated.num_images, found.regenerated.num_equal


def test_inputs_that_are_what_they_were(by_path: Path) -> None:
    assert regenerated(by_path) == ([], 4, 4)


def test_another_image_in_its_place_is_told_and_the_others_are_made(by_path: Path) -> None:
    before, now = png_of(6, 8, 1), png_of(6, 8, 99)
    (by_path / "in" / "1.png").write_bytes(now)
    assert regenerated(by_path) == (
        [
            "data/00000.parquet: b #0: not made again: its input 1.png (row 1 of a.parquet) is "
            f"another one: it has SHA-256 {sha256(now)[:12]}..., was made from "
            f"{sha256(before)[:12]}...; put back the file that it was made from"
        ],
        3,
        3,
    )
    (by_path / "in" / "1.png").write_bytes(before)
    assert regenerated(by_path) == ([], 4, 4)


def test_the_same_pixels_in_another_file_are_another_file(by_path: Path) -> None:
    with Image.open(by_path / "in" / "2.png") as image:
        again = encode(image, "PNG", compress_level=0)
    (by_path / "in" / "2.png").write_bytes(again)
    [problem], *counts = regenerated(by_path)
    assert "c #0: not made again: its input 2.png (row 2 of a.parquet) is another one" in problem
    assert counts == [3, 3]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda path: path.unlink(), "no file at its path"),
        (lambda path: path.write_bytes(b""), ""),
        (lambda path: path.write_bytes(b"no image"), ""),
        (lambda path: path.write_bytes(path.read_bytes()[:40]), ""),
    ],
    ids=["gone", "empty", "none", "cut"],
)
def test_what_is_no_image_any_more_is_told(
    by_path: Path, change: Callable[[Path], Any], reason: str
) -> None:
    change(by_path / "in" / "3.png")
    [problem], *counts = regenerated(by_path)
    start, _, end = problem.partition(" is no usable image any more: ")
    assert start == (
        "data/00001.parquet: d #0: not made again: its input 3.png (row 3 of a.parquet)"
    )
    assert reason in end
    assert end.endswith("; put back the file that it was made from")
    assert counts == [3, 3]


def test_bytes_in_the_table_are_held_to_it_too(tmp_path: Path) -> None:
    """One pixel of one image is changed in the Parquet file, whose footer stays as it was."""
    images = [encode(Image.fromarray(picture(6, 8, i)), "BMP") for i in range(4)]
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.parquet"
    table = pa.table({"image": pa.array(images, pa.binary()), "id": list("abcd")})
    options = {"use_dictionary": False, "write_statistics": False, "compression": "NONE"}
    pq.write_table(table, path, **options)
    job = make_job(str(MODEL), path, tmp_path / "out", rows_per_shard=2)
    assert run_job(job, out=io.StringIO()) == 0
    raw, changed = path.read_bytes(), images[2][:-1] + bytes([images[2][-1] ^ 1])
    assert raw.count(images[2]) == 1
    path.write_bytes(raw.replace(images[2], changed))
    [problem], *counts = regenerated(tmp_path)
    assert problem == (
        "data/00001.parquet: c #0: not made again: its input (row 2 of a.parquet) is another one: "
        f"it has SHA-256 {sha256(changed)[:12]}..., was made from {sha256(images[2])[:12]}...; put "
        "back the file that it was made from"
    )
    assert counts == [3, 3]


@pytest.mark.parametrize("is_gone", [True, False])
def test_a_table_that_is_gone_or_another_one_is_told(by_path: Path, is_gone: bool) -> None:
    path = by_path / "in" / "a.parquet"
    path.unlink()
    if not is_gone:
        write(path, image=["1.png"], id=["a"])
    problems, *counts = regenerated(by_path)
    assert len(problems) == 4
    assert all("not made again: its row cannot be read again: " in p for p in problems)
    assert all("a.parquet" in p for p in problems)
    assert counts == [0, 0]


def test_without_regenerating_no_input_is_read(
    by_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            command.main([str(by_path / "out"), *arguments])
        return int(str(ended.value.code)), capsys.readouterr().out

    (by_path / "in" / "0.png").unlink()
    assert call()[0] == EXIT_RIGHT
    code, shown = call("--regenerate", "4")
    assert code == EXIT_WRONG
    assert "made again on cpu: 3 images, 3 with the same bytes, 0 of another device or" in shown
    assert "shape within tolerance; 1 could not be made\n" in shown
    assert "  wrong: data/00000.parquet: a #0: not made again: its input 0.png" in shown
    code, shown = call("--regenerate", "4", "--json")
    found = json.loads(shown)
    assert (code, found["exit_code"], found["regenerated"]["num_not_made"]) == (1, 1, 1)
    with pytest.raises(SystemExit):
        command.main(["--help"])
    assert "Reads the dataset, and none of its inputs." in " ".join(capsys.readouterr().out.split())


def test_records_that_point_elsewhere_are_wrong_and_break_nothing(by_path: Path) -> None:
    path = by_path / "out" / "data" / "00000.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    changed = [{**rows[0], "input_row": 77}, {**rows[1], "image_index": 5}]
    pq.write_table(table.from_pylist(changed, schema=table.schema), path, write_page_checksum=True)
    (by_path / "out" / ".ldm_batch" / "receipts" / "00000.json").unlink()
    problems, *counts = regenerated(by_path)
    assert any("a #0: not made again: row 77 is not of its shard" in p for p in problems)
    assert any("b #5: not made again: its row has no image 5" in p for p in problems)
    assert counts == [2, 2]

"""A dataset proves itself: what is whole and right passes, and every kind of damage is named."""

import io
import json
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from s3_server import BUCKET

from ldm_batch.commands.verify import command
from ldm_batch.commands.verify.regenerate import Sample
from ldm_batch.commands.verify.verification import EXIT_INCOMPLETE, EXIT_RIGHT, EXIT_WRONG, verify
from ldm_batch.config import ImageConfig, JobConfig, S3Config, SinkConfig
from ldm_batch.dataset import rows_of
from ldm_batch.drive import run_job
from ldm_batch.errors import JobError
from ldm_batch.identity import FORMS, Form
from ldm_batch.storage import Store
from ldm_batch.write.encode import sha256

PROMPTS = [f"row {i}" if i % 7 else None for i in range(30)]


@pytest.fixture
def job(
    tmp_path: Path, write_parquet: Callable[..., str], make_job: Callable[..., JobConfig]
) -> JobConfig:
    """30 rows, 5 of them rejected, in 3 shards of two images per row."""
    source = write_parquet(tmp_path / "in.parquet", prompt=PROMPTS)
    return make_job(source, tmp_path / "out", rows_per_shard=10, num_images_per_prompt=2)


@pytest.fixture
def store(job: JobConfig) -> Store:
    assert run_job(job, out=io.StringIO()) == 0
    return Store(str(job.sink.uri))


def path_of(store: Store, name: str = "data/00001.parquet") -> Path:
    return Path(store.root, name)


def rewrite(store: Store, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    """Change the rows of the second object and write it as whole as it was."""
    path = path_of(store)
    table = pq.read_table(path)
    changed = pa.Table.from_pylist(change(table.to_pylist()), schema=table.schema)
    pq.write_table(changed, path, write_page_checksum=True)
    path_of(store, ".ldm_batch/receipts/00001.json").unlink()


def change_first(**values: Any) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    return lambda rows: [{**rows[0], **values}, *rows[1:]]


def problems(store: Store) -> str:
    found = verify(store)
    assert found.exit_code == EXIT_WRONG
    return "\n".join(found.problems)


def test_a_whole_dataset_is_right(store: Store) -> None:
    found = verify(store, Sample(8))
    assert (found.exit_code, found.problems, found.missing, found.failed) == (
        EXIT_RIGHT,
        [],
        [],
        {},
    )
    assert (found.num_rows, found.num_images, found.rejected) == (30, 50, {"null_prompt": 5})
    assert (found.num_verified, found.num_own_seeds) == (3, 0)
    assert found.regenerated is not None
    assert (found.regenerated.num_images, found.regenerated.num_equal) == (8, 8)


def test_a_missing_shard_is_no_damage(store: Store) -> None:
    path_of(store).unlink()
    found = verify(store)
    assert (found.exit_code, found.missing, found.num_rows) == (EXIT_INCOMPLETE, [1], 20)
    path_of(store, ".ldm_batch/failures").mkdir(exist_ok=True)
    path_of(store, ".ldm_batch/failures/00001.json").write_text('{"message": "no memory"}')
    found = verify(store)
    assert (found.exit_code, found.missing, found.failed) == (EXIT_INCOMPLETE, [], {1: "no memory"})


def test_an_object_of_another_shard_is_noticed(store: Store) -> None:
    path_of(store).write_bytes(path_of(store, "data/00002.parquet").read_bytes())
    found = problems(store)
    assert "its shard is 00002, planned 00001" in found
    assert "is not of rows 10 to 19 of in.parquet" in found


def test_an_object_of_another_program_is_named(store: Store) -> None:
    for metadata in (None, {"pandas": "{}"}):
        table = pa.table({"a": [1]}).replace_schema_metadata(metadata)
        pq.write_table(table, path_of(store))
        found = problems(store)
        assert "data/00001.parquet: is no object of this dataset (it is not ours)" in found


def test_what_does_not_belong_there_is_named(store: Store) -> None:
    for name in ("00003.parquet", "notes.txt"):
        path_of(store, f"data/{name}").write_bytes(b"x")
    found = problems(store)
    assert "data/00003.parquet: belongs to no planned shard" in found
    assert "data/notes.txt: belongs to no planned shard" in found


def test_no_flipped_bit_goes_unnoticed(store: Store) -> None:
    path = path_of(store)
    good, dice = path.read_bytes(), random.Random(0)
    for _ in range(40):
        bad = bytearray(good)
        bad[dice.randrange(len(bad))] ^= 1 << dice.randrange(8)
        path.write_bytes(bad)
        assert "data/00001.parquet" in problems(store)


def test_a_truncated_object_is_noticed(store: Store) -> None:
    path_of(store).write_bytes(path_of(store).read_bytes()[:-100])
    assert "data/00001.parquet: damaged" in problems(store)


def test_a_lost_row_is_noticed(store: Store) -> None:
    rewrite(store, lambda rows: rows[2:])
    assert "1 rows neither made nor rejected, the first is 10" in problems(store)


def test_a_lost_image_of_a_row_is_noticed(store: Store) -> None:
    rewrite(store, lambda rows: rows[:-1])
    assert "17 images of 9 rows" in problems(store)


def test_a_row_that_stands_twice_is_noticed(store: Store) -> None:
    rewrite(store, lambda rows: rows[:2] + rows)
    assert "row 10, image 0: stands twice or out of order" in problems(store)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"key": "other"}, "row 10, image 1: does not follow the image before it"),
        ({"input_row": 3}, "is not of rows 10 to 19 of in.parquet"),
        ({"input_file": "b.parquet"}, "is not of rows 10 to 19 of in.parquet"),
        ({"fingerprint": "0" * 64}, "has another fingerprint than the plan"),
        ({"image_sha256": "0" * 64}, "its bytes are not those of image_sha256"),
        ({"pixel_sha256": "0" * 64}, "its pixels are not those of pixel_sha256"),
        ({"height": 16}, "has shape (8, 8, 3), not 16 x 8"),
        (
            {"image": {"bytes": b"x", "path": "a"}, "image_sha256": sha256(b"x")},
            "cannot be decoded",
        ),
    ],
)
def test_a_changed_record_is_noticed(store: Store, change: dict[str, Any], problem: str) -> None:
    rewrite(store, change_first(**change))
    assert problem in problems(store)


def test_a_seed_that_is_nobodys_is_noticed(store: Store) -> None:
    rewrite(store, lambda rows: [rows[0], {**rows[1], "seed": 5}, *rows[2:]])
    assert "row 10, image 1: has seed 5, which is neither derived" in problems(store)
    assert verify(store).num_own_seeds == 1


def test_an_image_that_is_not_what_its_record_makes_is_noticed(store: Store) -> None:
    """Every hash is right, only making it again tells."""

    def forge(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), "red").save(buffer, "WEBP", lossless=True)
        raw = buffer.getvalue()
        pixels = sha256(Image.open(io.BytesIO(raw)).convert("RGB").tobytes())
        image = {"bytes": raw, "path": rows[0]["image"]["path"]}
        forged = {"image": image, "image_sha256": sha256(raw), "pixel_sha256": pixels}
        return [{**row, **forged} for row in rows]

    rewrite(store, forge)
    assert verify(store).exit_code == EXIT_RIGHT
    found = verify(store, Sample(20))
    assert found.exit_code == EXIT_WRONG
    assert "made again it differs by" in found.problems[0]


def test_damaged_records_are_named(store: Store) -> None:
    [rejected] = path_of(store, ".ldm_batch/rejected").glob("00001-*.parquet")
    rejected.unlink()
    path_of(store, ".ldm_batch/receipts/00002.json").write_text("{")
    found = problems(store)
    assert "data/00001.parquet: the record of its rejected rows is missing" in found
    assert "data/00002.parquet: its receipt is damaged" in found


def test_own_seeds_and_jpeg(
    tmp_path: Path, write_parquet: Callable[..., str], make_job: Callable[..., JobConfig]
) -> None:
    source = write_parquet(tmp_path / "in.parquet", prompt=["a", "b"], seed=[2**63 - 1, None])
    image = ImageConfig(format="jpeg", mark=False)
    job = make_job(source, tmp_path / "out", num_images_per_prompt=3, image=image)
    assert run_job(job, out=io.StringIO()) == 0
    found = verify(Store(str(job.sink.uri)), Sample(6))
    assert (found.exit_code, found.num_images, found.num_own_seeds) == (EXIT_RIGHT, 6, 3)
    assert found.regenerated is not None
    assert found.regenerated.num_equal == 6


@pytest.mark.parametrize("form", FORMS.values(), ids=lambda form: f"form {form.number}")
def test_seeds_that_rows_bring_are_known_by_the_plans_form(
    tmp_path: Path,
    write_parquet: Callable[..., str],
    make_job: Callable[..., JobConfig],
    monkeypatch: pytest.MonkeyPatch,
    form: Form,
) -> None:
    """Rows with neighbouring seeds: the second image of one has the next one's only in form 1."""
    own = [("a", 7), ("b", 8), ("c", None), ("d", 2**63 - 1)]
    keys, seeds = zip(*own, strict=True)
    source = write_parquet(tmp_path / "in.parquet", prompt=keys, seed=seeds, id=keys)
    job = make_job(source, tmp_path / "out", num_images_per_prompt=3, rows_per_shard=2, seed=4)
    with monkeypatch.context() as patch:
        for module in [m for name, m in sys.modules.items() if name.startswith("ldm_batch")]:
            if hasattr(module, "NEWEST_FORM"):
                patch.setattr(module, "NEWEST_FORM", form)
        assert run_job(job, out=io.StringIO()) == 0
    store = Store(str(job.sink.uri))
    expected = [form.image_seed(4, key, i, seed) for key, seed in own for i in range(3)]
    made = [row for i in range(2) for row in rows_of(store, i)]
    assert [row["seed"] for row in made] == expected
    if form.number == 1:
        assert [row["seed"] for row in made[:6]] == [7, 8, 9, 8, 9, 10]
        assert "made_as" not in made[0]
    found = verify(store, Sample(12))
    assert (found.exit_code, found.problems, found.num_own_seeds) == (EXIT_RIGHT, [], 9)
    assert found.num_shared_seeds == (4 if form.number == 1 else 0)
    assert [note.split(" (")[0] for note in found.notes] == (
        ["4 images have a seed that another image has, too"] if form.number == 1 else []
    )
    other = FORMS[3 - form.number]
    seed = other.image_seed(4, "c", 1, made[6]["seed"])
    rewrite(store, lambda rows: [rows[0], {**rows[1], "seed": seed}, *rows[2:]])
    assert f"row 2, image 1: has seed {seed}, which is neither derived" in problems(store)


def test_no_room_for_a_copy_is_not_the_datasets_fault(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(JobError, match=r"data/0000\d.parquet cannot be verified, .* set TMPDIR to"):
        verify(store)


def test_no_dataset_cannot_be_verified(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="no dataset here"):
        verify(Store(str(tmp_path)))


def test_the_command(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    def call(*arguments: str) -> int:
        with pytest.raises(SystemExit) as ended:
            command.main(arguments)
        return int(str(ended.value.code))

    assert call(store.root, "--regenerate", "3") == 0
    shown = capsys.readouterr().out
    assert "30 = 25 with images + 5 rejected; images: 50, 0 with seeds of their own" in shown
    assert "made again on cpu: 3 images, 3 with the same bytes" in shown
    path_of(store).unlink()
    assert call(store.root, "--json") == 3
    assert json.loads(capsys.readouterr().out)["missing"] == [1]
    path_of(store, "data/00000.parquet").write_bytes(b"x")
    assert call(store.root) == 1
    assert "wrong: data/00000.parquet: damaged" in capsys.readouterr().out
    assert call(f"{store.root}/nothing") == 2
    assert call(store.root, "--regenerate", "-3") == 2
    assert "--regenerate: -3 is not a number of images" in capsys.readouterr().err


def test_a_plan_whose_config_is_damaged_is_told(store: Store) -> None:
    path = path_of(store, ".ldm_batch/plan.json")
    document = json.loads(path.read_text())
    document["config"]["model"] = None
    path.write_text(json.dumps(document))
    with pytest.raises(JobError, match=r"plan\.json: config\.model is damaged: None is no section"):
        verify(store)


def test_on_s3(job: JobConfig, s3: S3Config) -> None:
    uri = f"s3://{BUCKET}/out"
    there = replace(job, num_images_per_prompt=1, sink=SinkConfig(uri=uri, s3=s3))
    assert run_job(there, out=io.StringIO()) == 0
    store = Store(uri, s3)
    found = verify(store, Sample(5))
    assert (found.exit_code, found.num_rows, found.num_images) == (EXIT_RIGHT, 30, 25)
    raw = bytearray(store.read("data/00002.parquet") or b"")
    raw[len(raw) // 2] ^= 1
    store.publish("data/00002.parquet", bytes(raw), exclusive=False)
    assert "data/00002.parquet" in problems(store)

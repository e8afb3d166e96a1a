"""Jobs that enlarge images: any input, every row accounted for, one job of two stages or two."""

import dataclasses
import io
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import run
from PIL import Image
from s3_server import BUCKET
from test_decode import BOMBS, ODD_FILES, png
from test_super_resolution import picture, plain_diffusers

from ldm_batch.config import (
    CallConfig,
    ClusterConfig,
    JobConfig,
    ModelConfig,
    S3Config,
    SinkConfig,
    SourceConfig,
    UpscaleConfig,
)
from ldm_batch.drive import run_job
from ldm_batch.errors import JobError
from ldm_batch.generate.choose import validate_job as validate
from ldm_batch.generate.then_upscale import shared_components
from ldm_batch.identity import numbered_seed
from ldm_batch.read.row_files import leads_out, resolve_path
from ldm_batch.storage import Store

NOWHERE = io.StringIO()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A super-resolution pipeline of random weights."""
    where = tmp_path_factory.mktemp("upscale") / "tiny"
    plain_diffusers().save_pretrained(where)
    return str(where)


def make_job(model: str, source: Path, sink: Path, **changes: Any) -> JobConfig:
    """One step of the tiny model; `section__field=value` changes a section."""
    job = JobConfig(
        task="super_resolution",
        model=ModelConfig(path=model),
        call=CallConfig(num_inference_steps=1),
        source=SourceConfig(uri=str(source)),
        sink=SinkConfig(uri=str(sink)),
        cluster=ClusterConfig(executor="in_process"),
        batch_size=4,
        max_rejected_fraction=1.0,
    )
    for path, value in changes.items():
        section, _, name = path.rpartition("__")
        if section:
            value = dataclasses.replace(getattr(job, section), **{name: value})
        job = dataclasses.replace(job, **{section or name: value})
    return job


def write(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def do(job: JobConfig) -> list[dict[str, Any]]:
    """Run a job to its end and return the rows of its dataset."""
    assert run_job(job, out=NOWHERE) == 0
    return rows_of(Path(str(job.sink.uri)) / "data")


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("*")) for row in pq.read_table(path).to_pylist()]


def rejections_of(sink: Path) -> dict[str, str]:
    return {row["key"]: row["reason"] for row in rows_of(sink / ".ldm_batch" / "rejected")}


def image_of(row: dict[str, Any], column: str = "image") -> Image.Image:
    return Image.open(io.BytesIO(row[column]["bytes"]))


def png_of(height: int, width: int, seed: int = 0) -> bytes:
    return png(Image.fromarray(picture(height, width, seed)))


def some_pngs(num: int) -> list[bytes]:
    return [png_of(5 + i % 6, 9 + i % 4, i) for i in range(num)]


def test_every_odd_image_becomes_one_or_is_rejected(tmp_path: Path, model: str) -> None:
    small = [data for data in ODD_FILES if len(data) < 6000]
    cut = [data[: len(data) // 2] for data in small[::9]]
    cells = [*small, *cut, None, b"", b"no image", *BOMBS.values()]
    assert len(cells) > 300
    source = write(tmp_path / "odd.parquet", image=pa.array(cells, pa.binary()))
    made = do(make_job(model, source, tmp_path / "out", rows_per_shard=150, batch_size=8))
    rejected = rejections_of(tmp_path / "out")
    assert len(made) + len(rejected) == len(cells)
    assert {row["key"] for row in made} | rejected.keys() == {
        f"odd.parquet#{i}" for i in range(len(cells))
    }
    for row in made:
        assert image_of(row).size == (4 * row["input_width"], 4 * row["input_height"])
        assert (row["width"], row["height"]) == image_of(row).size
    counts = Counter(rejected.values())
    assert counts["null_image"] == 2
    assert counts["unsupported_image"] >= 10
    assert counts["undecodable_image"] >= len(cut) // 2
    assert counts["image_too_large"] >= 3
    assert sum(counts.values()) < len(cells) / 4


def test_bytes_structs_and_paths_give_the_same_images(tmp_path: Path, model: str) -> None:
    images = some_pngs(6)
    folder = tmp_path / "in" / "pictures"
    folder.mkdir(parents=True)
    for i, data in enumerate(images):
        (folder / f"{i}.png").write_bytes(data)
    relative = [f"pictures/{i}.png" for i in range(6)]
    absolute = [f"file://{folder}/{i}.png" if i % 2 else f"{folder}/{i}.png" for i in range(6)]
    structs = [{"bytes": data, "path": "x.png"} for data in images[:3]]
    structs += [{"bytes": None, "path": path} for path in relative[3:]]
    forms = {
        "bytes": pa.array(images, pa.binary()),
        "large": pa.array(images, pa.large_binary()),
        "structs": pa.array(structs, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        "relative": pa.array(relative),
        "absolute": pa.array(absolute),
        "dictionary": pa.array(relative).dictionary_encode(),
    }
    made = {}
    for form, column in forms.items():
        source = write(tmp_path / "in" / f"{form}.parquet", image=column, id=list("abcdef"))
        made[form] = do(make_job(model, source, tmp_path / form))
    pixels = {form: [row["pixel_sha256"] for row in rows] for form, rows in made.items()}
    assert all(found == pixels["bytes"] for found in pixels.values())
    assert len(set(pixels["bytes"])) == 6
    assert [row["input_path"] for row in made["relative"]] == relative
    assert made["bytes"][0]["input_path"] is None
    assert {row["input_format"] for row in made["structs"]} == {"PNG"}


def test_paths_stay_below_their_root(tmp_path: Path, model: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png_of(4, 4))
    (tmp_path / "secret.png").write_bytes(png_of(4, 4))
    paths = ["a.png", "../secret.png", str(tmp_path / "secret.png"), "gone.png", "", None, "."]
    source = write(tmp_path / "in" / "paths.parquet", image=pa.array(paths), id=list("abcdefg"))
    made = do(make_job(model, source, tmp_path / "out"))
    assert [row["key"] for row in made] == ["a"]
    assert rejections_of(tmp_path / "out") == {
        **dict.fromkeys("bcdg", "unreadable_image"),
        **dict.fromkeys("ef", "null_image"),
    }
    made = do(make_job(model, source, tmp_path / "wide", source__image_root=str(tmp_path)))
    assert [row["key"] for row in made] == ["c"]


def test_paths_that_are_not_found_are_told_why(tmp_path: Path, model: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a b.png", "a::b.png", "c%20d.png"):
        (folder / name).write_bytes(png_of(4, 4))
    paths = [f"file://{folder}/a%20b.png", "a::b.png", f"file://{folder}/c%20d.png", "a\0b.png"]
    source = write(folder / "paths.parquet", image=pa.array([*paths, "no.png"]), id=list("abcde"))
    made = do(make_job(model, source, tmp_path / "out"))
    assert [row["key"] for row in made] == ["c"]
    rejected = rows_of(tmp_path / "out" / ".ldm_batch" / "rejected")
    messages = {row["key"]: row["message"] for row in rejected}
    assert "%20 stands for itself" in messages["a"]
    assert "holds '::'" in messages["b"]
    assert "null character" in messages["d"]
    assert messages["e"].endswith("no file at its path")


def test_images_and_dataset_in_s3(tmp_path: Path, model: str, s3: S3Config) -> None:
    store = Store(f"s3://{BUCKET}/in", s3)
    images = some_pngs(3)
    for i, data in enumerate(images):
        store.publish(f"pictures/{i}.png", data, exclusive=True)
    paths = ["pictures/0.png", f"s3://{BUCKET}/in/pictures/1.png", "gone.png", "pictures/2.png"]
    store.publish(
        "x.parquet", write(tmp_path / "x.parquet", image=paths).read_bytes(), exclusive=True
    )
    job = make_job(
        model,
        tmp_path,
        tmp_path / "out",
        source__uri=f"s3://{BUCKET}/in/x.parquet",
        source__s3=s3,
    )
    made = do(job)
    assert [row["input_path"] for row in made] == [paths[0], paths[1], paths[3]]
    assert set(rejections_of(tmp_path / "out").values()) == {"unreadable_image"}


@pytest.mark.parametrize(
    ("path", "resolved"),
    [
        ("a/b.png", "/r/a/b.png"),
        ("/r/x/../b.png", "/r/b.png"),
        ("file:///r/b.png", "/r/b.png"),
        ("../b.png", None),
        ("/rr/b.png", None),
        ("s3://r/b.png", None),
        ("x::file:///etc/passwd", None),
        ("a\0b", None),
    ],
)
def test_resolve_path(path: str, resolved: str | None) -> None:
    assert resolve_path(path, "/r/") == resolved
    assert resolve_path("a/../b.png", "s3://bucket/r") == "s3://bucket/r/b.png"
    assert resolve_path("s3://bucket/other/b.png", "s3://bucket/r") is None


@pytest.mark.parametrize(
    ("root", "path", "resolved"),
    [
        ("/a/x/../r", "b.png", "/a/r/b.png"),
        ("/a/x/../r/", "/a/r/b.png", "/a/r/b.png"),
        ("/a/x/../r", "/a/x/../r/b.png", "/a/r/b.png"),
        ("/a//./r", "b.png", "/a/r/b.png"),
        ("/a//r", "/a//r//b.png", "/a/r/b.png"),
        ("//a/r", "/a/r/b.png", "/a/r/b.png"),
        ("file:///a/x/../r", "file:///a/r/b.png", "/a/r/b.png"),
        ("/a/x/../r", "../b.png", None),
        ("/a/x/../r", "/a/x/b.png", None),
        ("/a//r", "/a/r", None),
        ("s3://b/a//r", "c/../b.png", "s3://b/a//r/b.png"),
        ("s3://b/a//r", "s3://b/a//r/b.png", "s3://b/a//r/b.png"),
        ("s3://b/a//r", "s3://b/a//r/../b.png", None),
        ("s3://b/r", "s3://b/x/../r/b.png", "s3://b/r/b.png"),
        ("s3://b/r", "s3://b/r/../rr/b.png", None),
    ],
)
def test_a_root_is_one_place_however_it_is_written(
    root: str, path: str, resolved: str | None
) -> None:
    """Of a local disk; in a store `//` is a name of its own."""
    assert resolve_path(path, root) == resolved


def test_images_beside_a_source_that_is_named_by_a_detour(tmp_path: Path, model: str) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png_of(4, 4))
    write(tmp_path / "in" / "x.parquet", image=["a.png", f"{tmp_path}/in/a.png"], id=["a", "b"])
    job = make_job(
        model, tmp_path, tmp_path / "out", source__uri=f"{tmp_path}/job/..//in/x.parquet"
    )
    assert [row["key"] for row in do(job)] == ["a", "b"]


def test_no_link_leads_out_of_the_root_and_no_file_in_the_root_folder_opens_the_disk(
    tmp_path: Path,
) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "inner").mkdir(parents=True)
    outside.mkdir()
    (root / "in.png").symlink_to(root / "inner" / "a.png")
    (root / "out.png").symlink_to(outside / "a.png")
    (root / "folder").symlink_to(outside)
    (tmp_path / "linked").symlink_to(root)
    for path, is_out in (("in.png", False), ("out.png", True), ("folder/a.png", True)):
        assert leads_out(f"{root}/{path}", str(root)) is is_out
        assert leads_out(f"{tmp_path}/linked/{path}", f"{tmp_path}/linked") is is_out
    assert not leads_out("s3://bucket/a", "s3://bucket")
    assert resolve_path("/etc/hostname", "") is None
    assert resolve_path("/etc/hostname", "/") == "/etc/hostname"


def test_shards_and_batches_do_not_change_an_image(tmp_path: Path, model: str) -> None:
    images = [*some_pngs(9), png_of(40, 70, 3), png_of(70, 40, 4)]
    source = write(tmp_path / "x.parquet", image=images)
    tiles = {"upscale__tile_size": 32, "upscale__tile_overlap": 8}
    few = do(make_job(model, source, tmp_path / "few", rows_per_shard=3, **tiles))
    many = do(make_job(model, source, tmp_path / "many", **tiles))
    assert [row["pixel_sha256"] for row in few] == [row["pixel_sha256"] for row in many]
    assert [row["image_sha256"] for row in few] == [row["image_sha256"] for row in many]


def test_a_removed_shard_comes_back_as_the_same_bytes(tmp_path: Path, model: str) -> None:
    source = write(tmp_path / "x.parquet", image=[*some_pngs(7), b"bad"])
    job = make_job(model, source, tmp_path / "out", rows_per_shard=3, call__eta=1.0)
    do(job)
    objects = {path: path.read_bytes() for path in (tmp_path / "out" / "data").iterdir()}
    assert len(objects) == 3
    (tmp_path / "out" / "data" / "00001.parquet").unlink()
    do(job)
    assert {path: path.read_bytes() for path in objects} == objects
    with pytest.raises(JobError, match=r"tiles\.size: planned 128, now 64"):
        run_job(dataclasses.replace(job, upscale=UpscaleConfig(tile_size=64)), out=NOWHERE)


def test_steps_eta_seed_and_id_by_row(tmp_path: Path, model: str) -> None:
    image = png_of(8, 8)
    source = write(
        tmp_path / "x.parquet",
        image=[image] * 5,
        id=["a", "b", "c", "d", "a"],
        seed=[7, 7, None, 7, 7],
        num_inference_steps=[2, 3, 2, 0, 2],
    )
    made = do(make_job(model, source, tmp_path / "out", num_images_per_prompt=2))
    assert [(row["key"], row["image_index"]) for row in made] == [
        (key, k) for key in "abc" for k in (0, 1)
    ]
    assert [row["seed"] for row in made][:4] == [7, numbered_seed(7, 1)] * 2
    assert [row["num_inference_steps"] for row in made] == [2, 2, 3, 3, 2, 2]
    assert len({row["pixel_sha256"] for row in made}) == 6
    reasons = [r["reason"] for r in rows_of(tmp_path / "out" / ".ldm_batch" / "rejected")]
    assert reasons == ["out_of_range", "duplicate_id"]


def test_alpha_is_kept_or_flattened(tmp_path: Path, model: str) -> None:
    image = Image.fromarray(picture(6, 8))
    image.putalpha(Image.fromarray(np.tile(np.arange(8, dtype=np.uint8) * 30, (6, 1))))
    source = write(tmp_path / "x.parquet", image=[png(image), png_of(6, 8)])
    flat = do(make_job(model, source, tmp_path / "flat"))
    assert [image_of(row).mode for row in flat] == ["RGB", "RGB"]
    assert flat[0]["input_conversions"] == "alpha_split alpha_flattened"
    assert flat[0]["input_mode"] == "RGBA"
    black = do(make_job(model, source, tmp_path / "black", upscale__background="#000000"))
    assert black[0]["pixel_sha256"] != flat[0]["pixel_sha256"]
    assert black[1]["pixel_sha256"] == flat[1]["pixel_sha256"]
    for image_format in ("webp", "png"):
        kept = do(
            make_job(
                model,
                source,
                tmp_path / image_format,
                upscale__alpha="keep",
                image__format=image_format,
            )
        )
        assert [image_of(row).mode for row in kept] == ["RGBA", "RGB"]
        pixels = np.asarray(image_of(kept[0]))
        assert pixels.shape == (24, 32, 4)
        assert (np.diff(pixels[0, :, 3].astype(int)) >= 0).all()


def test_limits_are_the_jobs(tmp_path: Path, model: str) -> None:
    source = write(tmp_path / "x.parquet", image=[png_of(9, 9), png_of(20, 20)], id=["a", "b"])
    made = do(make_job(model, source, tmp_path / "pixels", source__max_image_pixels=100))
    assert [row["key"] for row in made] == ["a"]
    assert rejections_of(tmp_path / "pixels") == {"b": "image_too_large"}
    do(make_job(model, source, tmp_path / "bytes", source__max_image_bytes=100))
    assert set(rejections_of(tmp_path / "bytes").values()) == {"image_too_large"}


@pytest.fixture(scope="module")
def two_ways(
    tmp_path_factory: pytest.TempPathFactory, model: str
) -> tuple[Path, list[dict[str, Any]], list[dict[str, Any]]]:
    """The dataset of a job of two stages, and that of two jobs after each other."""
    folder = tmp_path_factory.mktemp("two_ways")
    prompts = ["a red circle", "a small blue star", None, "a green square"]
    source = write(folder / "p.parquet", prompt=prompts, id=list("abcd"), tags=[1, 2, 3, 4])
    painted = dataclasses.replace(
        make_job(model, source, folder / "small", num_images_per_prompt=2, seed=5),
        task="text_to_image",
        model=ModelConfig(path="demo:text_to_image"),
        call=CallConfig(num_inference_steps=2, guidance_scale=2.0),
        source=SourceConfig(uri=str(source), carry=["tags"]),
    )
    second = UpscaleConfig(
        model=ModelConfig(path=model),
        num_inference_steps=3,
        eta=1.0,
        keep_low_resolution=True,
    )
    chained = dataclasses.replace(
        painted, upscale=second, sink=SinkConfig(uri=str(folder / "chained"))
    )
    do(painted)
    enlarged = make_job(model, folder / "small" / "data", folder / "large", seed=5)
    call = CallConfig(num_inference_steps=3, eta=1.0)
    return folder, do(chained), do(dataclasses.replace(enlarged, call=call))


def test_two_stages_give_the_images_of_two_jobs(two_ways: Any) -> None:
    folder, chained, large = two_ways
    assert [row["pixel_sha256"] for row in chained] == [row["pixel_sha256"] for row in large]
    assert [row["upscale_seed"] for row in chained] == [row["seed"] for row in large]
    small = rows_of(folder / "small" / "data")
    assert [row["low_resolution"]["bytes"] for row in chained] == [
        row["image"]["bytes"] for row in small
    ]
    assert [row["low_resolution_pixel_sha256"] for row in chained] == [
        row["pixel_sha256"] for row in small
    ]
    assert {image_of(row).size for row in chained} == {(256, 256)}
    assert {image_of(row, "low_resolution").size for row in chained} == {(64, 64)}
    first = chained[0]
    assert (first["height"], first["low_resolution_height"]) == (256, 64)
    assert (first["upscale_num_inference_steps"], first["upscale_eta"]) == (3, 1.0)
    assert first["upscale_model_sha256"] == large[0]["model_sha256"]
    assert first["model_sha256"] == small[0]["model_sha256"]


def test_images_of_two_stages_are_verified_by_making_them_again(two_ways: Any) -> None:
    ended = run(two_ways[0], "verify", "chained", "--regenerate", "2", module="ldm_batch")
    assert ended.code == 0, ended
    assert "2 images, 2 with the same bytes" in ended.out


def test_the_second_job_carries_the_first_ones_keys_and_columns(two_ways: Any) -> None:
    folder, _, large = two_ways
    small = rows_of(folder / "small" / "data")
    assert [row["key"] for row in large] == ["a", "a:1", "b", "b:1", "d", "d:1"]
    for before, after in zip(small, large, strict=True):
        for name in ("prompt", "guidance_scale", "tags", "prompt_tokens"):
            assert after[name] == before[name]
        for name in ("key", "seed", "fingerprint", "pixel_sha256", "input_file", "model", "height"):
            assert after[f"parent_{name}"] == before[name]
        assert after["input_sha256"] == before["image_sha256"]
    plain = make_job("x", folder, folder, source__carry_parent=False)
    assert plain.source.carry_parent is False


def test_the_third_generation_still_knows_its_grandparents(
    two_ways: Any, tmp_path: Path, model: str
) -> None:
    folder, _, large = two_ways
    shutil.copytree(folder / "large" / "data", tmp_path / "in")
    job = make_job(model, tmp_path / "in", tmp_path / "out", upscale__tile_size=64)
    huge = do(dataclasses.replace(job, call=CallConfig(num_inference_steps=1)))
    assert [row["key"] for row in huge] == ["a", "a:1:0", "b", "b:1:0", "d", "d:1:0"]
    assert huge[0]["parent_pixel_sha256"] == large[0]["pixel_sha256"]
    assert huge[0]["parent_parent_pixel_sha256"] == large[0]["parent_pixel_sha256"]
    assert huge[0]["prompt"] == large[0]["prompt"]
    assert image_of(huge[0]).size == (1024, 1024)


def test_low_resolution_images_are_dropped_by_default(
    two_ways: Any, tmp_path: Path, model: str
) -> None:
    folder, chained, _ = two_ways
    job = make_job(model, folder / "p.parquet", tmp_path / "out", seed=5, num_images_per_prompt=2)
    made = do(
        dataclasses.replace(
            job,
            task="text_to_image",
            model=ModelConfig(path="demo:text_to_image"),
            call=CallConfig(num_inference_steps=2, guidance_scale=2.0),
            source=SourceConfig(uri=str(folder / "p.parquet")),
            upscale=UpscaleConfig(model=job.model, num_inference_steps=3, eta=1.0),
        )
    )
    assert "low_resolution" not in made[0]
    assert [row["pixel_sha256"] for row in made] == [row["pixel_sha256"] for row in chained]


def test_components_that_two_models_have_in_common() -> None:
    first = {"unet/a": "1", "vqvae/config.json": "2", "vqvae/w": "3", "scheduler/x": "4"}
    second = {**first, "unet/a": "9"}
    model = ModelConfig(path="x")
    assert shared_components((first, second), (model, ModelConfig(path="y"))) == ["vqvae"]
    assert shared_components((first, second), (model, ModelConfig(dtype="float16"))) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source__kind": "prompts"}, "source.kind: 'prompts' does not go with"),
        ({"source__columns": {"prompt": "x"}}, "source.columns.prompt: unknown field"),
        ({"source__columns": {"image": None}}, "null, but every row must have one"),
        ({"source__carry": ["input_sha256"]}, "already a column of the output"),
        ({"upscale__tile_size": 50}, "upscale.tile_size: 50 is not a multiple of 32"),
        ({"upscale__tile_overlap": 100}, "upscale.tile_overlap"),
        ({"upscale__background": "white"}, "upscale.background: 'white' is not a colour"),
        ({"upscale__alpha": "drop"}, "upscale.alpha: unknown value"),
        ({"upscale__alpha": "keep", "image__format": "jpeg"}, "needs an image.format that holds"),
        ({"upscale__eta": 2.0}, "upscale.eta"),
        ({"upscale__model": ModelConfig(path="x")}, "no second stage"),
    ],
)
def test_wrong_values_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        validate(make_job("m", Path("in"), Path("out"), **changes))


@pytest.mark.parametrize("name", ["upscale_4x", "upscale_1m", "txt2img_upscaled"])
def test_named_jobs_compose(tmp_path: Path, name: str) -> None:
    ended = run(tmp_path, f"conf={name}", "source.uri=x", "sink.uri=y", "--cfg", "job")
    assert (ended.code, ended.err) == (0, "")
    assert f"name: {name}" in ended.out


def test_the_command(tmp_path: Path, model: str) -> None:
    write(tmp_path / "in.parquet", picture=[*some_pngs(5), b"bad"])
    ended = run(
        tmp_path,
        *("conf=upscale_4x", "source.uri=in.parquet", "sink.uri=out", f"model.path={model}"),
        *("call.num_inference_steps=1", "source.columns.image=picture", "rows_per_shard=3"),
        *("cluster.num_workers=1", "max_rejected_fraction=0.5"),
    )
    assert (ended.code, ended.err) == (0, "")
    assert "5 images from 5 rows in 2 shards; 1 rows rejected" in ended.out
    assert "1 undecodable_image" in ended.out
    assert len(rows_of(tmp_path / "out" / "data")) == 5

"""Rows that bring images to diffusers' own pipelines: kept, rejected, read again, refused."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import with_chunks
from test_family import FLUX, PIXART, SD, SDXL, TEXTS
from test_family import model as model
from test_family_jobs import made, records
from test_family_task_jobs import NUMBERS, STRENGTHS, grey, hash_of, images, make, png
from test_family_task_jobs import rows as rows
from test_family_tasks import CHANGE, ENLARGE, INPAINT, UPSCALE, mask, picture

from ldm_batch.commands.verify.regenerate import Sample
from ldm_batch.commands.verify.verification import EXIT_RIGHT, verify
from ldm_batch.config import JobConfig, ModelConfig, SourceConfig
from ldm_batch.errors import JobError
from ldm_batch.storage import Store

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, of numpy


def test_what_no_mask_marks_is_stored_as_it_came(
    model: Callable[[str], Path], rows: Callable[..., str], tmp_path: Path
) -> None:
    """From half grey on is painted; the mask's digest is recorded."""
    source = rows(SDXL, INPAINT)
    job = make(model(SDXL), INPAINT, source, tmp_path / "out")
    made(job)
    told = records(job)
    for number, image in enumerate(images(job).values()):
        kept = ~mask(number)
        assert np.array_equal(image[kept], picture(number)[kept])
        assert (image != picture(number))[~kept].mean() > 0.5
    given = pq.read_table(source).to_pylist()
    hashed = {row["id"]: hash_of(row["mask"]) for row in given}
    assert {key: row["mask_sha256"] for key, row in told.items()} == hashed
    assert {row["input_sha256"] for row in told.values()} == {hash_of(r["image"]) for r in given}


BAD = {
    "other size": (picture(0), grey(mask(0)[:8]), "a", None),
    "nothing": (picture(0), grey(mask(0) & False), "a", None),
    "ones": (picture(0), png(mask(0).astype(np.uint8)), "a", None),
    "ones of 16 bits": (picture(0), png(mask(0).astype(np.uint16)), "a", None),
    "red": (picture(0), png(mask(0)[..., None] * np.array([255, 0, 0], np.uint8)), "a", None),
    "linear": (
        picture(0),
        with_chunks(png(100 * mask(0).astype(np.uint8)), gAMA=(100_000,)),
        "a",
        None,
    ),
    "transparent": (picture(0), png(np.dstack([picture(0), 255 * mask(0)]).astype("u1")), "a", 0.5),
    "no mask": (picture(0), None, "a", None),
    "no picture": (picture(0), b"GIF89a, but no picture", "a", None),
    "odd": (picture(0)[:14], grey(mask(0)[:14]), "a", None),
    "no text": (picture(0), grey(mask(0)), None, None),
    "too strong": (picture(0), grey(mask(0)), "a", 1.5),
    "too weak": (picture(0), grey(mask(0)), "a", 0.0),
    "no step": (picture(0), grey(mask(0)), "a", 0.3),
    "good": (picture(0), grey(mask(0)), "", 0.4),
}


def test_rows_that_cannot_be_are_rejected_and_kept(
    model: Callable[[str], Path], write_parquet: Callable[..., str], tmp_path: Path
) -> None:
    source = write_parquet(
        tmp_path / "in.parquet",
        id=[*BAD],
        image=[png(row[0]) for row in BAD.values()],
        mask=pa.array([row[1] for row in BAD.values()], pa.binary()),
        prompt=[row[2] for row in BAD.values()],
        strength=[row[3] for row in BAD.values()],
    )
    job = make(model(SD), INPAINT, source, tmp_path / "out", max_rejected_fraction=1.0)
    job = dataclasses.replace(job, rows_per_shard=20)
    made(job)
    assert [*records(job)] == ["good"]
    found = verify(Store(str(job.sink.uri)), Sample(1))
    assert (found.problems, found.exit_code) == ([], EXIT_RIGHT)
    [path] = Path(str(job.sink.uri), ".ldm_batch", "rejected").iterdir()
    kept = {row["key"]: row for row in pq.read_table(path).to_pylist()}
    assert {key: row["reason"] for key, row in kept.items()} == {
        "other size": "other_mask_size",
        "nothing": "empty_mask",
        "ones": "empty_mask",
        "ones of 16 bits": "empty_mask",
        "red": "empty_mask",
        "linear": "empty_mask",
        "transparent": "unsupported_image",
        "no mask": "null_image",
        "no picture": "undecodable_image",
        "odd": "out_of_range",
        "no text": "null_prompt",
        "too strong": "out_of_range",
        "too weak": "out_of_range",
        "no step": "out_of_range",
    }
    told = {key: row["message"] for key, row in kept.items()}
    assert told["other size"] == "the mask has 32x8 pixels, its image 32x16"
    empty = "the mask leaves nothing to repaint: its largest value is {} of 255, from 128 on is re"
    empty = f"{empty}painted"
    assert told["nothing"] == empty.format(127)
    assert told["ones"] == f"{empty.format(1)}; if it says 0 and 1, make that 0 and 255"
    assert told["ones of 16 bits"].endswith("65535 is white: make 0 and 1 of it 0 and 65535")
    assert "its largest value is 100 of 255" in told["linear"]  # as a picture it would be 168
    assert told["red"] == f"{empty.format(76)}; colours count by their luma, red is 76: give white"
    assert told["no mask"] == "mask: the image is null"
    assert "height: 14 is not a multiple of 8, which this model needs" in told["odd"]
    assert "strength: 0.3 of num_inference_steps=3 is no step" in told["no step"]
    cells = [kept["no picture"]["row"][name] for name in ("image", "mask")]
    assert cells == [png(picture(0)), BAD["no picture"][1]]


def test_another_mask_in_its_place_is_told(
    model: Callable[[str], Path], write_parquet: Callable[..., str], tmp_path: Path
) -> None:
    """Images and masks by their paths; one mask is another one since, and one image gone."""
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(png(picture(number)))
        (tmp_path / f"m{number}.png").write_bytes(grey(mask(number)))
    masks = [{"bytes": None, "path": f"m{number}.png"} for number in range(4)]
    source = write_parquet(
        tmp_path / "in.parquet",
        image=[f"{number}.png" for number in range(4)],
        mask=pa.array(masks, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        prompt=["a", "b", "c", "d"],
    )
    job = make(model(FLUX), INPAINT, source, tmp_path / "out")
    made(job)
    assert [row["mask_path"] for row in records(job).values()] == [f"m{n}.png" for n in range(4)]
    (tmp_path / "m1.png").write_bytes(grey(mask(6)))
    (tmp_path / "2.png").unlink()
    found = verify(Store(str(job.sink.uri)), Sample(4))
    assert found.regenerated is not None
    assert (found.regenerated.num_equal, found.regenerated.num_not_made) == (2, 2)
    changed, gone = sorted(found.regenerated.problems)
    assert "its mask m1.png (row 1 of in.parquet) is another one: it has SHA-256" in changed
    assert "its input 2.png (row 2 of in.parquet) is no usable image any more" in gone


def test_images_of_ours_become_others_by_the_prompts_they_have(
    model: Callable[[str], Path], rows: Callable[..., str], tmp_path: Path
) -> None:
    """A dataset is a source: image, key and prompt; what it says beside is carried."""
    first = make(model(SD), CHANGE, rows(SD, CHANGE), tmp_path / "first")
    made(first)
    again = make(model(SDXL), CHANGE, str(tmp_path / "first" / "data"), tmp_path / "out")
    made(again)
    told = records(again)
    assert {key: row["prompt"] for key, row in told.items()} == {
        f"row {number}": TEXTS[number] for number in NUMBERS
    }
    assert {row["strength"] for row in told.values()} == {0.8}
    assert [row["parent_strength"] for row in told.values()] == [*STRENGTHS[:5], 0.8]
    found = verify(Store(str(again.sink.uri)), Sample(2))
    assert (found.problems, found.exit_code) == ([], EXIT_RIGHT)


def test_an_edit_of_an_edit_shares_no_noise_with_it(
    model: Callable[[str], Path], rows: Callable[..., str], tmp_path: Path
) -> None:
    """All by one job seed, two images a row. Rows are read again; what is derived is no row's own
    seed, as far as the dataset says what it was derived from."""
    source, told = rows(SD, CHANGE), list[dict[str, Any]]()
    for number, carries in enumerate((True, True, False)):
        sink = tmp_path / str(number)
        more = {"num_images_per_prompt": 2} if number == 0 else {}
        columns = {"source__carry_parent": carries, "call__num_inference_steps": 2}
        job = make(model(SD), CHANGE, source, sink, **columns, **more)
        made(job)
        found = verify(Store(str(sink)), Sample(2))
        assert (found.problems, found.exit_code) == ([], EXIT_RIGHT)
        assert found.num_own_seeds == (0 if carries else 12)
        kept = sorted((sink / "data").iterdir())
        told.append(
            {row["image_sha256"]: row for p in kept for row in pq.read_table(p).to_pylist()}
        )
        source = str(sink / "data")
    seeds = [{row["seed"] for row in rows.values()} for rows in told]
    assert [len(some) for some in seeds] == [12, 12, 12]
    assert len(set.union(*seeds)) == 36
    assert {row["parent_seed"] for row in told[1].values()} == seeds[0]


def test_a_prompt_to_enlarge_by_may_be_missing(
    model: Callable[[str], Path], write_parquet: Callable[..., str], tmp_path: Path
) -> None:
    bare = write_parquet(tmp_path / "bare.parquet", image=[png(picture(1, 8, 16))], id=["a"])
    empty = {"image": [png(picture(1, 8, 16))], "id": ["a"], "prompt": pa.array([None], "string")}
    given = write_parquet(tmp_path / "given.parquet", **empty, noise_level=[20])
    jobs = [
        make(model(UPSCALE), ENLARGE, s, tmp_path / f"{n}") for n, s in enumerate((bare, given))
    ]
    for job in jobs:
        made(job)
    [one, other] = [records(job)["a"]["pixel_sha256"] for job in jobs]
    assert one == other


# Refused when it is planned


@pytest.mark.parametrize(
    ("kind", "task", "changes", "told"),
    [
        (PIXART, CHANGE, {}, f"task={CHANGE}: .* holds a PixArtSigmaPipeline, which draws text_to"),
        (SD, ENLARGE, {}, "StableDiffusionPipeline, which draws text_to_image, image_to_image, in"),
        (UPSCALE, "text_to_image", {}, "StableDiffusionUpscalePipeline, which draws super_resol"),
        (SD, CHANGE, {"call__height": 64}, "call.height: 64, but the images decide the size"),
        (SD, CHANGE, {"batch_size": "auto"}, "batch_size: 'auto' measures text to image only"),
        (SD, CHANGE, {"upscale__alpha": "keep"}, "upscale.alpha: 'keep' is for super-resolution b"),
        (UPSCALE, ENLARGE, {"upscale__alpha": "keep"}, "upscale.alpha: 'keep' is for super-resolu"),
        (UPSCALE, ENLARGE, {"upscale__tile_size": 64}, "upscale.tile_size: 64, which changes noth"),
        (
            SD,
            CHANGE,
            {"upscale__keep_low_resolution": True},
            "upscale.keep_low_resolution: True, w",
        ),
        (SD, INPAINT, {"upscale__eta": 1.0}, "upscale.eta: 1.0, which changes nothing here with"),
        (SD, CHANGE, {"call__strength": 0.1}, "call.strength: 0.1 of num_inference_steps=3 is no"),
        (SD, CHANGE, {"call__num_inference_steps": 1}, "call.strength: 0.8 of num_inference_steps"),
        (SD, CHANGE, {"call__strength": 1.1}, "call.strength: 1.1 is not between 0.001 and 1"),
        (SD, CHANGE, {"call__noise_level": 5}, "call.noise_level: this task has no use for it"),
        (UPSCALE, ENLARGE, {"call__strength": 0.5}, "call.strength: this task has no use for it"),
        (UPSCALE, ENLARGE, {"call__noise_level": 400}, "call.noise_level: 400, but this model ta"),
        (SD, CHANGE, {"call__guidance_rescale": 0.7}, "StableDiffusionImg2ImgPipeline takes none"),
        (FLUX, INPAINT, {"call__eta": 0.5}, "call.eta: 0.5, but FluxInpaintPipeline takes none"),
        (FLUX, INPAINT, {"call__negative_prompt": "bad"}, "FluxInpaintPipeline takes none"),
        (SD, CHANGE, {"model__engine": "ldm"}, "model.engine: ldm does not draw task=image_to_im"),
        (SD, INPAINT, {"image__format": "jpeg"}, "image.format: 'jpeg' changes what no mask marks"),
        (SD, INPAINT, {"model__engine": "ldm"}, "model.engine: ldm does not draw task=inpainting"),
        (SD, CHANGE, {"model__engine": "random_pixels"}, "random_pixels makes nothing of images"),
        (
            FLUX,
            CHANGE,
            {"scheduler__settings": {"stochastic_sampling": True}},
            "draws noise at every step, and FluxImg2ImgPipeline does not hand it",
        ),
        (SD, CHANGE, {"source__columns": {"prompt": None}}, "source.columns.prompt: null, but ev"),
        (SD, INPAINT, {"source__columns": {"mask": "m"}}, "no column 'm' for mask"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    kind: str,
    task: str,
    changes: dict[str, Any],
    told: str,
    model: Callable[[str], Path],
    rows: Callable[..., str],
    tmp_path: Path,
) -> None:
    source = rows(SD, INPAINT)
    job = make(model(kind), task, source, tmp_path / "out", **changes)
    with pytest.raises(JobError, match=told) as refused:
        made(job)
    assert len(str(refused.value).splitlines()) == 1
    assert not [path for path in tmp_path.rglob("out/**/*") if path.is_file()]


@pytest.mark.parametrize("missing", ["prompt", "mask"])
def test_a_column_that_every_row_needs_is_missing(
    missing: str, model: Callable[[str], Path], rows: Callable[..., str], tmp_path: Path
) -> None:
    path = tmp_path / "short.parquet"
    pq.write_table(pq.read_table(rows(SD, INPAINT)).drop_columns([missing]), path)
    job = make(model(SD), INPAINT, str(path), tmp_path / "out")
    with pytest.raises(JobError, match=f"no column '{missing}' for {missing}"):
        made(job)


def test_a_strength_of_which_nothing_is_seen_is_told(
    model: Callable[[str], Path], rows: Callable[..., str], tmp_path: Path
) -> None:
    """Models that flow round 0.8 of 3 steps up to all of them, and begin with noise alone."""
    source, told = rows(FLUX, CHANGE), []
    for number, strength in enumerate((None, 0.6, 1.0)):
        sink = tmp_path / str(number)
        job = make(model(FLUX), CHANGE, source, sink, call__strength=strength, dry_run=True)
        told.append("warning: call.strength: 0.8 of 3 steps is rounded up to all" in made(job))
    assert told == [True, False, False]


def test_our_own_model_enlarges_by_no_prompt() -> None:
    """The column exists only where a model takes it."""
    from ldm_batch.generate.choose import choose

    ours = JobConfig(task=ENLARGE, source=SourceConfig(uri="in"))
    theirs = dataclasses.replace(ours, model=ModelConfig(engine="diffusers"))
    assert "prompt" not in choose(ours).task.columns.fields
    assert choose(theirs).task.columns.needed == ("image",)
    assert {"prompt", "noise_level", "negative_prompt"} <= {*choose(theirs).task.columns.fields}

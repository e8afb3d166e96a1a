"""Jobs whose rows bring images, by diffusers' own pipelines: made, verified, resumed, enlarged."""

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_family import FLUX, NEGATIVE, SD, TEXTS
from test_family import model as model
from test_family_jobs import made, make_job, objects, records
from test_family_tasks import CHANGE, ENLARGE, HEIGHT, INPAINT, PAIRS, UPSCALE, WIDTH, mask, picture

from ldm_batch.commands.verify.regenerate import Sample
from ldm_batch.commands.verify.verification import EXIT_RIGHT, verify
from ldm_batch.config import JobConfig, ModelConfig, UpscaleConfig
from ldm_batch.diffusion.family.table import FAMILIES
from ldm_batch.storage import Store
from ldm_batch.write.encode import sha256

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, of numpy

NUMBERS = range(6)
SHORT = [
    (SD, CHANGE),
    (FLUX, CHANGE),
    (SD, INPAINT),
    ("FluxFillPipeline", INPAINT),
    (UPSCALE, ENLARGE),
]
"""What is tried as a whole job each time; the others by `make test-long`."""
STRENGTHS = (0.6, 1.0, 0.6, 0.9, 1.0, None)
"""Of each row: several calls in every shard; the last row takes the job's."""


def png(pixels: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(file, "PNG", **options)
    return file.getvalue()


def grey(marked: Any) -> bytes:
    """A mask as people draw it: just below half grey, and from there on."""
    return png(np.where(marked, 128, 127).astype(np.uint8))


def side(task: str) -> tuple[int, int]:
    return (8, 16) if task == ENLARGE else (HEIGHT, WIDTH)


@pytest.fixture
def rows(tmp_path: Path, write_parquet: Callable[..., str]) -> Callable[..., str]:
    """`rows(kind, task)` -> a table of six rows, negative prompts where the class takes them."""

    def write(kind: str, task: str, order: range = NUMBERS, **more: Any) -> str:
        columns: dict[str, Any] = {
            "id": [f"row {number}" for number in order],
            "image": [png(picture(number, *side(task))) for number in order],
            "prompt": [TEXTS[number] for number in order],
        }
        if FAMILIES[kind].tasks[task].has_strength:
            columns["strength"] = [STRENGTHS[number] for number in order]
        if task == INPAINT:
            columns["mask"] = [grey(mask(number)) for number in order]
        if FAMILIES[kind].has_negative:
            columns["negative_prompt"] = [NEGATIVE[number] for number in order]
        return write_parquet(tmp_path / f"{task}{order[0]}.parquet", **columns | more)

    return write


def make(folder: Path, task: str, source: str, sink: Path, **changes: Any) -> JobConfig:
    """Three steps of a tiny model."""
    job = make_job(folder, source, sink, task=task, call__height=None, call__width=None)
    call = dataclasses.replace(job.call, num_inference_steps=3, guidance_scale=3.0)
    job = dataclasses.replace(job, call=call)
    for path, value in changes.items():
        section, _, field = path.rpartition("__")
        if section:
            value = dataclasses.replace(getattr(job, section), **{field: value})
        job = dataclasses.replace(job, **{section or field: value})
    return job


def hash_of(data: bytes) -> str:
    return sha256(data)


def images(job: JobConfig) -> dict[str, np.ndarray]:
    """Pictures of a dataset by key."""
    found: dict[str, np.ndarray] = {}
    for path in sorted(Path(str(job.sink.uri), "data").iterdir()):
        for row in pq.read_table(path, columns=["key", "image"]).to_pylist():
            found[row["key"]] = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))
    return found


@pytest.mark.parametrize(
    ("kind", "task"),
    [*SHORT, *(pytest.param(*pair, marks=pytest.mark.long) for pair in PAIRS if pair not in SHORT)],
)
def test_a_job_is_made_verified_and_resumed(
    kind: str, task: str, model: Callable[[str], Path], rows: Callable[..., str], tmp_path: Path
) -> None:
    job = make(model(kind), task, rows(kind, task), tmp_path / "out")
    made(job)
    before, told = objects(job), records(job)
    assert len({row["pixel_sha256"] for row in told.values()}) == 6
    assert {row["prompt"] for row in told.values()} == {*TEXTS}
    scale = 4 if task == ENLARGE else 1
    size = tuple(scale * pixels for pixels in side(task))
    assert {(row["height"], row["width"]) for row in told.values()} == {size}
    assert {image.shape for image in images(job).values()} == {(*size, 3)}
    if FAMILIES[kind].tasks[task].has_strength:
        usual = 1.0 if task == INPAINT else 0.8
        assert [row["strength"] for row in told.values()] == [*STRENGTHS[:5], usual]
    else:
        assert {row["noise_level"] for row in told.values()} == {20}
    found = verify(Store(str(job.sink.uri)), Sample(3))
    assert (found.problems, found.exit_code) == ([], EXIT_RIGHT)

    (tmp_path / "out" / "data" / "00001.parquet").unlink()
    made(job)
    assert objects(job) == before


@pytest.mark.parametrize(("kind", "task"), [(SD, CHANGE), (FLUX, INPAINT), (UPSCALE, ENLARGE)])
def test_the_order_of_rows_and_shards_changes_no_image(
    kind: str, task: str, model: Callable[[str], Path], rows: Callable[..., str], tmp_path: Path
) -> None:
    """What a pipeline makes in reverse is tried of every class in test_family_tasks.py."""
    told = []
    for number, order in enumerate((NUMBERS, NUMBERS[::-1])):
        sink = tmp_path / str(number)
        job = make(model(kind), task, rows(kind, task, order), sink, rows_per_shard=4 + 2 * number)
        made(job)
        told.append({key: row["pixel_sha256"] for key, row in records(job).items()})
    assert told[0] == told[1]


@pytest.mark.parametrize(("kind", "task"), [(SD, CHANGE), (SD, INPAINT), (UPSCALE, ENLARGE)])
def test_images_are_enlarged_in_the_same_worker(
    kind: str, task: str, model: Callable[[str], Path], rows: Callable[..., str], tmp_path: Path
) -> None:
    second = UpscaleConfig(model=ModelConfig(path="demo:super_resolution"), num_inference_steps=1)
    second = dataclasses.replace(second, keep_low_resolution=True)
    job = make(model(kind), task, rows(kind, task), tmp_path / "out", upscale=second)
    made(job)
    alone = make(model(kind), task, rows(kind, task), tmp_path / "alone")
    made(alone)
    told = records(alone)
    first = {k: (r["height"], r["width"], r["pixel_sha256"]) for k, r in told.items()}
    both = records(job)
    names = ("low_resolution_height", "low_resolution_width", "low_resolution_pixel_sha256")
    assert {key: tuple(row[name] for name in names) for key, row in both.items()} == first
    assert {(row["height"], row["width"]) for row in both.values()} == {
        (4 * height, 4 * width) for height, width, _ in first.values()
    }
    found = verify(Store(str(job.sink.uri)), Sample(2))
    assert (found.problems, found.exit_code) == ([], EXIT_RIGHT)

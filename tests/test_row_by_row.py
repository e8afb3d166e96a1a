"""One row never fails its shard: what raises is found row by row; what raises for all, no row's."""

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ldm_batch import identity
from ldm_batch.columns import IMAGE
from ldm_batch.config import ModelConfig, SchedulerConfig
from ldm_batch.diffusion.super_resolution import SuperResolution
from ldm_batch.diffusion.text_to_image import TextToImage
from ldm_batch.errors import ShardError
from ldm_batch.generate.batches import generate_images
from ldm_batch.generate.random_pixels import RandomPixels
from ldm_batch.generate.super_resolution import ImagesLarger
from ldm_batch.generate.then_upscale import ThenLarger
from ldm_batch.records import Call, Fault, Outcome, PlannedImage, Request, Row
from ldm_batch.write.encode import encode_image

Make = Callable[..., Any]


class Stubborn(RandomPixels):
    """Raises where a batch holds a prompt that says so, or takes too many steps."""

    def __init__(self, error: Exception, batch_size: int = 4) -> None:
        super().__init__(batch_size)
        self.error, self.num_calls = error, 0

    def generate(self, requests: Sequence[Request]) -> list[Any]:
        self.num_calls += 1
        for request in requests:
            if "bad" in request.inputs["prompt"] or request.call.num_inference_steps == 1000:
                raise self.error
        return super().generate(requests)


@pytest.fixture
def run(tmp_path: Path, write_parquet: Make, make_job: Make, make_worker: Make) -> Make:
    """Make the one shard of the given columns; gives its images and rejections by key."""

    def make(pipeline: Any, changes: dict[str, Any] | None = None, **columns: Any) -> Any:
        source = write_parquet(tmp_path / "in/a.parquet", **columns)
        job = make_job(source, tmp_path / "out", **(changes or {}))
        worker, plan = make_worker(job, pipeline)
        [shard] = plan.shards
        receipt = worker.make_shard(shard)
        assert receipt.outcome is Outcome.COMMITTED
        return found(tmp_path / "out")

    return make


def found(sink: Path) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """Digests of the pixels of a dataset, and reasons and messages of its rejections, by key."""
    images = pq.read_table(sink / "data").to_pylist()
    paths = Path(sink, identity.REJECTED_FOLDER).glob("*.parquet")
    rejected = [row for path in paths for row in pq.read_table(path).to_pylist()]
    return (
        {image["key"]: image["pixel_sha256"] for image in images},
        {row["key"]: (row["reason"], row["message"]) for row in rejected},
    )


def test_a_row_that_raises_is_rejected_and_no_other_changes(run: Make, tmp_path: Path) -> None:
    prompts = ["a", "b", "bad", "d", "e", "bad too", "g", "h", "i"]
    ids = [*"abcdefghi"]
    images, rejected = run(
        Stubborn(IndexError("index 1000 is out of bounds")), prompt=prompts, id=ids
    )
    assert {*images} == {*"abdeghi"}
    assert {*rejected} == {*"cf"}
    reason, message = rejected["c"]
    assert reason == "out_of_range"
    assert message.endswith(
        "the pipeline does not draw it: IndexError: index 1000 is out of bounds"
    )
    for path in (tmp_path / "out", tmp_path / "in"):
        path.rename(tmp_path / f"other-{path.name}")
    alone, _ = run(RandomPixels(4), prompt=prompts, id=ids)
    assert images.items() <= alone.items()


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize(
    ("prompts", "steps"),
    [
        (["bad", "b"], None),  # the first of a shard
        (["a", "bad"], None),
        (["a", "a", "b"], [1000, 1000, 5]),  # a call of its own, and another that is drawn
        (["a", "b"], [1000, 1000]),  # none as it asks; one by the job's own numbers
        (["a"], [1000]),
    ],
)
def test_a_witness_says_whose_trouble_it_is(
    run: Make, batch_size: int, prompts: list[str], steps: list[int] | None
) -> None:
    columns = {"prompt": prompts} | ({"num_inference_steps": steps} if steps else {})
    images, rejected = run(Stubborn(ValueError("odd"), batch_size), **columns)
    num_bad = sum(p == "bad" for p in prompts) or sum(s == 1000 for s in steps or [])
    assert (len(images), len(rejected)) == (len(prompts) - num_bad, num_bad)


def test_what_raises_for_every_row_is_the_shards(run: Make) -> None:
    pipeline = Stubborn(ValueError("odd"))
    with pytest.raises(ValueError, match="odd"):
        run(pipeline, prompt=["bad"] * 12)
    assert pipeline.num_calls == 1 + 4 + 1  # the batch, its rows, and one of the next


def test_what_the_job_itself_asks_is_the_shards(run: Make) -> None:
    with pytest.raises(ValueError, match="odd"):
        run(Stubborn(ValueError("odd")), {"call__num_inference_steps": 1000}, prompt=["a", "b"])


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("out of memory"),
        MemoryError(),
        OSError(5, "Input/output error"),
        ShardError("out of memory at one image per model call"),
    ],
)
def test_what_the_machine_is_to_blame_for_is_no_rows(run: Make, error: Exception) -> None:
    pipeline = Stubborn(error)
    with pytest.raises(type(error)):
        run(pipeline, prompt=["a", "bad", "c"])
    assert pipeline.num_calls == 1


def test_a_pipeline_that_breaks_on_its_way_rejects_nothing(run: Make) -> None:
    class Breaking(RandomPixels):
        left = 2

        def generate(self, requests: Sequence[Request]) -> list[Any]:
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("cannot go on")
            return super().generate(requests)

    with pytest.raises(RuntimeError, match="cannot go on"):
        run(Breaking(1), prompt=["a", "b", "c", "d"])


STEPS = pa.array([2, 1000, 2])
"""1,000 steps are one too many for a schedule that begins at its second one."""
FROM_ONE = {"steps_offset": 1, "timestep_spacing": "leading"}


@pytest.mark.parametrize(
    "scheduler",
    ["ddim", *(pytest.param(name, marks=pytest.mark.long) for name in ("ddpm", "pndm"))],
)
def test_a_thousand_steps_of_a_text(scheduler: str, run: Make) -> None:
    pipeline = TextToImage.from_config(
        ModelConfig(path="demo:text_to_image"), SchedulerConfig(scheduler, FROM_ONE), batch_size=2
    )
    changes = {"call__height": 64, "call__width": 64}
    columns = {"prompt": ["a red circle", "a blue square", "a green circle"], "id": [*"xyz"]}
    images, rejected = run(pipeline, changes, **columns, num_inference_steps=STEPS)
    assert {*images} == {"x", "z"}
    assert "IndexError" in rejected["y"][1]


def test_a_thousand_steps_of_an_image(run: Make, larger: SuperResolution) -> None:
    changes = {
        "task": "super_resolution",
        "model__engine": "ldm",
        "model__path": "demo:super_resolution",
    }
    columns = {"image": [png(1), png(2), png(3)], "id": [*"xyz"]}
    changes |= {"call__num_inference_steps": 2}
    images, rejected = run(ImagesLarger(larger), changes, **columns, num_inference_steps=STEPS)
    assert {*images} == {"x", "z"}
    assert "IndexError" in rejected["y"][1]


def test_a_row_of_two_stages(larger: SuperResolution) -> None:
    prompts = ["a", "bad", "c"]
    two = ThenLarger(Stubborn(ValueError("odd")), larger, num_inference_steps=2, eta=0.0)
    call = Call(num_inference_steps=5, height=8, width=8)
    rows = [
        Row(index=i, input_row=i, key=p, inputs={"prompt": p}, call=call, seed=i)
        for i, p in enumerate(prompts)
    ]
    planned = [PlannedImage(row, 0, row.index, upscale_seed=row.index) for row in rows]

    def request(image: PlannedImage) -> Request:
        row = image.row
        return Request(inputs=row.inputs, seed=image.seed, call=call, upscale_seed=image.seed)

    made = dict(chain.from_iterable(generate_images(two, planned, request)))
    assert [isinstance(made[i, IMAGE], Fault) for i in range(3)] == [False, True, False]
    alone = dict(chain.from_iterable(generate_images(two, [planned[2]], request)))
    assert np.array_equal(made[2, IMAGE], alone[0, IMAGE])


@pytest.fixture(scope="module")
def larger() -> SuperResolution:
    model, scheduler = ModelConfig(path="demo:super_resolution"), SchedulerConfig("ddim", FROM_ONE)
    return SuperResolution.from_config(model, scheduler, batch_size=2)


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return encode_image(pixels, "png")

"""Rows to pixels: every image once, in batches of one call; random pixels in place of a model."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm_batch.config import JobConfig, ModelConfig
from ldm_batch.generate.batches import generate_images, make_batches, plan_images
from ldm_batch.generate.choose import choose
from ldm_batch.generate.pipeline import BatchKey
from ldm_batch.generate.random_pixels import RandomPixels
from ldm_batch.generate.task import FoundModels
from ldm_batch.generate.text_to_image import TEXT_TO_IMAGE
from ldm_batch.identity import NEWEST_FORM, numbered_seed
from ldm_batch.records import Call, PlannedImage, PromptCount, Request, Row

CALLS = [
    Call(num_inference_steps=10, guidance_scale=1.0, eta=0.0, height=8, width=8),
    Call(num_inference_steps=10, guidance_scale=1.0, eta=0.0, height=8, width=16),
    Call(num_inference_steps=20, guidance_scale=1.0, eta=0.0, height=8, width=8),
]
JOB = JobConfig(model=ModelConfig(engine="random_pixels"))


def row(number: int, call: Call = CALLS[0], seed: int | None = None) -> Row:
    return Row(
        index=number,
        input_row=number,
        key=f"key-{number}",
        inputs={"prompt": f"prompt {number}", "negative_prompt": ""},
        call=call,
        seed=seed,
    )


def plan(rows: Sequence[Row], job_seed: int = 0, num_images: int = 1) -> list[PlannedImage]:
    options = {"job_seed": job_seed, "num_images": num_images}
    return plan_images(TEXT_TO_IMAGE, rows, NEWEST_FORM, **options)


def request(image: PlannedImage) -> Request:
    return TEXT_TO_IMAGE.make_request(image, None)


def images(calls: Sequence[int]) -> list[PlannedImage]:
    return plan([row(i, CALLS[call]) for i, call in enumerate(calls)])


def equal_calls(batch_size: int) -> BatchKey:
    return lambda call: (call, batch_size)


PLANNED = st.lists(st.integers(0, 2), max_size=40).map(images)


@given(PLANNED, st.integers(1, 9))
def test_every_image_is_in_one_batch(planned: list[PlannedImage], batch_size: int) -> None:
    slots = [slot for batch in make_batches(planned, equal_calls(batch_size)) for slot in batch]
    assert sorted(slots) == list(range(len(planned)))


@given(PLANNED, st.integers(1, 9))
def test_a_batch_has_one_call_and_its_size(planned: list[PlannedImage], batch_size: int) -> None:
    for batch in make_batches(planned, equal_calls(batch_size)):
        assert len({planned[slot].row.call for slot in batch}) == 1
        assert 1 <= len(batch) <= batch_size
        assert batch == sorted(batch)


@given(PLANNED, st.integers(1, 9))
def test_batches_are_as_few_as_calls_allow(planned: list[PlannedImage], batch_size: int) -> None:
    calls = [image.row.call for image in planned]
    fewest = sum(-(-calls.count(call) // batch_size) for call in set(calls))
    assert len(make_batches(planned, equal_calls(batch_size))) == fewest


def test_a_pipeline_may_put_more_together() -> None:
    """Calls that differ in what a pipeline pads share a batch, of the size that it says."""
    together = make_batches(images([0, 1, 2, 0, 1]), lambda call: (CALLS[0], 3))
    assert together == [[0, 1, 2], [3, 4]]


def test_calls_come_as_they_first_appear() -> None:
    assert make_batches(images([1, 0, 1, 1, 2, 0]), equal_calls(2)) == [[0, 2], [3], [1, 5], [4]]


def test_images_of_a_row_follow_each_other_with_their_seeds() -> None:
    rows = [row(0), row(1, seed=40)]
    planned = plan(rows, job_seed=7, num_images=2)
    assert [(image.row, image.image_index, image.seed) for image in planned] == [
        (rows[0], 0, NEWEST_FORM.image_seed(7, "key-0", 0)),
        (rows[0], 1, NEWEST_FORM.image_seed(7, "key-0", 1)),
        (rows[1], 0, 40),
        (rows[1], 1, numbered_seed(40, 1)),
    ]


def test_a_pipeline_is_told_nothing_but_the_request() -> None:
    [image] = plan([row(3, seed=5)])
    assert request(image) == Request(
        inputs={"prompt": "prompt 3", "negative_prompt": ""}, seed=5, call=CALLS[0]
    )


@given(PLANNED, st.integers(1, 9))
def test_pixels_go_to_their_own_image(planned: list[PlannedImage], batch_size: int) -> None:
    """Whatever stands beside it in a batch: each picture is that of its own seed."""
    made = {
        slot[0]: pixels
        for drawn in generate_images(RandomPixels(batch_size), planned, request)
        for slot, pixels in drawn
    }
    assert sorted(made) == list(range(len(planned)))
    for slot, image in enumerate(planned):
        [alone] = RandomPixels().generate([request(image)])
        assert np.array_equal(made[slot], alone)


def test_a_pipeline_that_returns_too_few_is_an_error() -> None:
    class Forgetful(RandomPixels):
        def generate(self, requests: Sequence[Request]) -> list[Any]:
            return super().generate(requests)[1:]

    with pytest.raises(ValueError, match="shorter"):
        list(generate_images(Forgetful(), images([0, 0]), request))


def test_random_pixels() -> None:
    pipeline = RandomPixels()
    request = Request(inputs={"prompt": "a", "negative_prompt": ""}, seed=2**64 - 1, call=CALLS[1])
    one, same, other = pipeline.generate(
        [
            request,
            request,
            Request(inputs={"prompt": "a", "negative_prompt": ""}, seed=1, call=CALLS[1]),
        ]
    )
    assert (one.shape, one.dtype) == ((8, 16, 3), np.uint8)
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert pipeline.count_tokens(["a red cat", ""]) == [
        PromptCount(3, False),
        PromptCount(0, False),
    ]


def test_random_pixels_need_no_model() -> None:
    assert choose(JOB).find_models() == FoundModels({}, (8, 8))
    assert isinstance(choose(JOB).load({}), RandomPixels)

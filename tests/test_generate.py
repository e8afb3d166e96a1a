"""Rows to pixels: every image once, in batches of one call; random pixels in place of a model."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm_batch.config import JobConfig, ModelConfig
from ldm_batch.generate.batches import generate_images, make_batches, plan_images
from ldm_batch.generate.models import find_models, load_pipeline
from ldm_batch.generate.pipeline import BatchKey
from ldm_batch.generate.random_pixels import RandomPixels
from ldm_batch.identity import NEWEST_FORM, image_seed
from ldm_batch.records import Call, PlannedImage, PromptCount, Request, Row

CALLS = [Call(10, 1.0, 0.0, 8, 8), Call(10, 1.0, 0.0, 8, 16), Call(20, 1.0, 0.0, 8, 8)]
JOB = JobConfig(model=ModelConfig(pipeline="random_pixels"))


def row(number: int, call: Call = CALLS[0], seed: int | None = None) -> Row:
    return Row(number, number, f"key-{number}", f"prompt {number}", "", call, seed)


def images(calls: Sequence[int]) -> list[PlannedImage]:
    return plan_images([row(i, CALLS[call]) for i, call in enumerate(calls)], JOB, NEWEST_FORM)


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
    planned = plan_images(rows, replace(JOB, seed=7, num_images_per_prompt=2), NEWEST_FORM)
    assert [(image.row, image.image_index, image.seed) for image in planned] == [
        (rows[0], 0, image_seed(7, "key-0", 0)),
        (rows[0], 1, image_seed(7, "key-0", 1)),
        (rows[1], 0, 40),
        (rows[1], 1, 41),
    ]


def test_a_pipeline_is_told_nothing_but_the_request() -> None:
    [image] = plan_images([row(3, seed=5)], JOB, NEWEST_FORM)
    assert image.request == Request("prompt 3", "", 5, CALLS[0])


@given(PLANNED, st.integers(1, 9))
def test_pixels_go_to_their_own_image(planned: list[PlannedImage], batch_size: int) -> None:
    """Whatever stands beside it in a batch: each picture is that of its own seed."""
    made = {slot[0]: pixels for slot, pixels in generate_images(RandomPixels(batch_size), planned)}
    assert sorted(made) == list(range(len(planned)))
    for slot, image in enumerate(planned):
        [alone] = RandomPixels().generate([image.request])
        assert np.array_equal(made[slot], alone)


def test_a_pipeline_that_returns_too_few_is_an_error() -> None:
    class Forgetful(RandomPixels):
        def generate(self, requests: Sequence[Request]) -> list[Any]:
            return super().generate(requests)[1:]

    with pytest.raises(ValueError, match="shorter"):
        list(generate_images(Forgetful(), images([0, 0])))


def test_random_pixels() -> None:
    pipeline = RandomPixels()
    request = Request("a", "", 2**64 - 1, CALLS[1])
    one, same, other = pipeline.generate([request, request, Request("a", "", 1, CALLS[1])])
    assert (one.shape, one.dtype) == ((8, 16, 3), np.uint8)
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert pipeline.count_tokens(["a red cat", ""]) == [
        PromptCount(3, False),
        PromptCount(0, False),
    ]


def test_random_pixels_need_no_model() -> None:
    assert find_models(JOB) == ({}, (8, 8))
    assert isinstance(load_pipeline(JOB, {}), RandomPixels)

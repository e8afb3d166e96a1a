"""Checks of quality: what is unusable, what is measured, and what becomes of both in a dataset."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from ldm_batch.diffusion import quality
from ldm_batch.diffusion.quality import judge
from ldm_batch.generate.random_pixels import RandomPixels
from ldm_batch.records import Call, Fault, Made, Reason, Request, UpscaleRequest

Make = Callable[..., Any]
REQUEST = Request(inputs={}, seed=0, call=Call(num_inference_steps=1, height=4, width=4))
NOISE = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
FLAT = np.full((4, 4, 3), 7, np.uint8)


def brightness(pixels: np.ndarray, _request: Any) -> Mapping[str, Any] | Fault:
    """A check that measures, as a later one might."""
    if pixels.mean() > 250:
        return Fault(Reason.CONSTANT_IMAGE, "too bright")
    return {"prompt_tokens": int(pixels.mean())}


def test_a_picture_is_itself() -> None:
    assert judge(torch.zeros(3, 4, 4), NOISE, REQUEST) is NOISE


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_a_fault_before_any_check(value: float) -> None:
    decoded = torch.zeros(3, 4, 4)
    decoded[1, 2, 3] = value
    fault = judge(decoded, NOISE, REQUEST)
    assert isinstance(fault, Fault)
    assert fault.reason == Reason.NOT_FINITE


def test_one_colour_is_a_fault_unless_it_enlarges_one() -> None:
    fault = judge(torch.zeros(3, 4, 4), FLAT, REQUEST)
    assert fault == Fault(Reason.CONSTANT_IMAGE, "every pixel of the image is (7, 7, 7)")
    assert judge(torch.zeros(3, 4, 4), FLAT, UpscaleRequest(FLAT[:1, :1], 0, 1)) is FLAT
    assert isinstance(judge(torch.zeros(3, 4, 4), FLAT, UpscaleRequest(NOISE, 0, 1)), Fault)


def test_a_new_check_is_a_function_in_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "CHECKS", (*quality.CHECKS, brightness))
    made = judge(torch.zeros(3, 4, 4), NOISE, REQUEST)
    assert isinstance(made, Made)
    assert made.pixels is NOISE
    assert made.columns == {"prompt_tokens": int(NOISE.mean())}
    bright = np.full((4, 4, 3), 255, np.uint8)
    bright[0, 0] = 254
    assert judge(torch.zeros(3, 4, 4), bright, REQUEST) == Fault(
        Reason.CONSTANT_IMAGE, "too bright"
    )


class Measured(RandomPixels):
    """A pipeline that measures what it draws."""

    def generate(self, requests: Any) -> Any:
        drawn = super().generate(requests)
        return [Made(pixels, columns={"prompt_tokens": 77}) for pixels in drawn]


def test_what_is_measured_is_recorded(
    tmp_path: Path, write_parquet: Make, make_job: Make, make_worker: Make
) -> None:
    source = write_parquet(tmp_path / "a.parquet", prompt=["a"] * 3)
    worker, plan = make_worker(make_job(source, tmp_path / "out"), Measured())
    worker.make_shard(plan.shards[0])
    table = pq.read_table(tmp_path / "out/data/00000.parquet")
    assert table["prompt_tokens"].to_pylist() == [77] * 3

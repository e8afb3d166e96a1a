"""The noise and the dtypes of diffusers' own pipelines that draw from images: each row and task."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from test_family import SD, SDXL, pixels
from test_family import model as model
from test_family_tasks import (
    CHANGE,
    ENLARGE,
    FLOWS,
    HEIGHT,
    INPAINT,
    INPAINTING_SD,
    PAIRS,
    UPSCALE,
    WIDTH,
    draw,
    load,
    mask,
    picture,
    request,
)

from ldm_batch.config import SchedulerConfig
from ldm_batch.diffusion.family import files as family_files
from ldm_batch.diffusion.family.table import FAMILIES
from ldm_batch.diffusion.schedulers import NAMES
from ldm_batch.errors import JobError
from ldm_batch.made_as import MadeAs, how_made
from ldm_batch.records import Fault, Reason

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, of numpy

NOISY = [
    (SD, CHANGE, SchedulerConfig(name="ddim"), 1.0),
    (SD, INPAINT, SchedulerConfig(name="euler_a"), 0.0),
    (INPAINTING_SD, INPAINT, SchedulerConfig(name="ddim"), 1.0),
    (UPSCALE, ENLARGE, SchedulerConfig(name="euler_a"), 0.0),
    (UPSCALE, ENLARGE, SchedulerConfig(name="ddim"), 1.0),
    (SDXL, CHANGE, SchedulerConfig(name="dpmpp_sde"), 0.0),
    (SDXL, INPAINT, SchedulerConfig(name="ddim"), 1.0),
    ("StableDiffusionXLInpaintPipeline", INPAINT, SchedulerConfig(name="euler_a"), 0.0),
]


def test_every_class_whose_noise_is_its_own_is_tried() -> None:
    own = {(kind, task) for kind, task in PAIRS if FAMILIES[kind].has_own_noise}
    assert {(kind, task) for kind, task, *_ in NOISY} == own
    assert not [pair for pair in FLOWS if pair in own]


@pytest.mark.parametrize(("kind", "task", "scheduler", "eta"), NOISY)
def test_noise_of_every_step_is_the_images_own(
    kind: str, task: str, scheduler: SchedulerConfig, eta: float, model: Callable[[str], Path]
) -> None:
    pipeline = load(model(kind), task, scheduler)
    first = draw(pipeline, kind, task, 0, 1, 2, eta=eta)
    assert draw(pipeline, kind, task, 4, 2, 0, eta=eta)[1:] == [first[2], first[0]]
    assert draw(pipeline, kind, task, 1, eta=eta) == [first[1]]
    still = load(model(kind), task, SchedulerConfig(name="ddim"))
    assert draw(still, kind, task, 0, 1, 2) != first


@pytest.mark.parametrize("task", [CHANGE, pytest.param(INPAINT, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", NAMES)
def test_every_scheduler_of_the_list_draws_each_image_by_itself(
    name: str, task: str, model: Callable[[str], Path]
) -> None:
    pipeline = load(model(SD), task, SchedulerConfig(name=name), batch_size=2)
    call = {"eta": 0.5, "num_inference_steps": 5, "strength": 0.7}
    first = draw(pipeline, SD, task, 0, 1, **call)
    assert draw(pipeline, SD, task, 2, 0, **call)[1] == first[0]


@pytest.mark.parametrize(("kind", "task"), FLOWS)
def test_noise_that_would_leak_is_refused_by_name(
    kind: str, task: str, model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it is planned; and by the probe, were the table wrong."""
    leaking = SchedulerConfig(settings={"stochastic_sampling": True})
    pipeline = FAMILIES[kind].tasks[task].pipeline
    with pytest.raises(JobError, match=f"FlowMatchEulerDiscreteScheduler draws .* {pipeline} does"):
        load(model(kind), task, leaking)
    trusting = {**FAMILIES, kind: dataclasses.replace(FAMILIES[kind], has_own_noise=True)}
    monkeypatch.setattr(family_files, "FAMILIES", trusting)
    with pytest.raises(JobError, match=f"{pipeline} with FlowMatchEulerDiscreteScheduler drew"):
        load(model(kind), task, leaking)


# Otherwise than planned


@pytest.mark.parametrize(("kind", "task"), PAIRS)
def test_parts_may_have_dtypes_of_their_own(
    kind: str, task: str, model: Callable[[str], Path]
) -> None:
    """And keep them: SDXL's pipelines would change the VAE's for good when they encode."""
    dtypes = {"dtype": "bfloat16", "text_encoder_dtype": "float32", "decode_dtype": "float32"}
    pipeline = load(model(kind), task, vae_slicing=True, vae_tiling=True, **dtypes)
    first = draw(pipeline, kind, task, 0, 1)
    assert draw(pipeline, kind, task, 1, 0) == first[::-1]
    told = pipeline.describe()["dtypes"]
    assert {told.pop(FAMILIES[kind].denoiser)} == {"bfloat16"}
    assert {*told.values()} == {"float32"}


def test_what_half_precision_cannot_draw_is_drawn_in_float32(model: Callable[[str], Path]) -> None:
    """By the same task, and what no mask marks stays."""
    pipeline = load(model(SDXL), INPAINT, dtype="bfloat16")
    for weight in pipeline._call.loaded.pipe.vae.parameters():
        weight.data.fill_(float("nan"))
    made = pipeline.generate([request(0, SDXL, INPAINT)])
    assert [how_made(one) for one in made] == [MadeAs(is_float32=True)]
    assert pixels(made) == draw(load(model(SDXL), INPAINT), SDXL, INPAINT, 0)
    kept = ~mask(0)
    assert np.array_equal(made[0].pixels[kept], picture(0)[kept])


def test_an_image_of_one_colour_may_become_one(model: Callable[[str], Path]) -> None:
    pipeline = load(model(SD), CHANGE)
    vae = pipeline._call.loaded.pipe.vae
    decode = vae.decode
    vae.decode = lambda *a, **k: [torch.zeros_like(decode(*a, **k)[0])]
    plain, coloured = request(0, SD, CHANGE), request(1, SD, CHANGE)
    inputs = {**plain.inputs, "image": np.full((HEIGHT, WIDTH, 3), 9, np.uint8)}
    made = pipeline.generate([dataclasses.replace(plain, inputs=inputs), coloured])
    assert not isinstance(made[0], Fault)
    assert made[1] == Fault(Reason.CONSTANT_IMAGE, "every pixel of the image is (128, 128, 128)")

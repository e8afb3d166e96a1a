"""What diffusers' own pipelines make of images: every row and task of the table by a tiny model."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from test_family import (
    FLUX,
    NEGATIVE,
    PIXART,
    QWEN,
    SANA,
    SD,
    SD3,
    TEXTS,
    Z_IMAGE,
    pixels,
    rewrite,
)
from test_family import copied as copied
from test_family import model as model

from ldm_batch.config import ModelConfig, SchedulerConfig
from ldm_batch.diffusion.family.call import FamilyCall
from ldm_batch.diffusion.family.pictures import num_steps
from ldm_batch.diffusion.family.pipeline import FamilyPipeline
from ldm_batch.diffusion.family.table import FAMILIES
from ldm_batch.diffusion.models.files import lock_model
from ldm_batch.diffusion.noise import make_generator
from ldm_batch.diffusion.paste import paste
from ldm_batch.errors import JobError
from ldm_batch.records import Call, Fault, Reason, Request

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, of numpy

CHANGE, INPAINT, ENLARGE = "image_to_image", "inpainting", "super_resolution"
PAIRS = [
    (kind, task) for kind in sorted(FAMILIES) for task in FAMILIES[kind].tasks if "text" not in task
]
"""Every class and what it draws of images."""
FLOWS = [(kind, task) for kind, task in PAIRS if FAMILIES[kind].is_flow]
UPSCALE, FILL, INPAINTING_SD = (
    "StableDiffusionUpscalePipeline",
    "FluxFillPipeline",
    "StableDiffusionInpaintPipeline",
)
HEIGHT, WIDTH = 16, 32


def load(
    folder: Path,
    task: str,
    scheduler: SchedulerConfig | None = None,
    batch_size: int = 3,
    **changes: Any,
) -> FamilyPipeline:
    return FamilyPipeline.from_config(
        ModelConfig(engine="diffusers", path=str(folder), **changes),
        scheduler or SchedulerConfig(),
        task=task,
        batch_size=batch_size,
        num_threads=1,
    )


def picture(number: int, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """A slope of colours of its own, with noise."""
    noise = np.random.default_rng(number).integers(0, 60, (height, width, 3))
    slope = np.linspace(0, 190, height)[:, None, None] * ((number % 3 + 1) / 3)
    return np.uint8(slope + noise)


def mask(number: int) -> NDArray[np.bool_]:
    """A rectangle, which cuts through latents."""
    made = np.zeros((HEIGHT, WIDTH), bool)
    made[1 + number : 13, 5 : 21 + number] = True
    return made


def request(number: int, kind: str, task: str, text: str | None = None, **call: Any) -> Request:
    drawing = FAMILIES[kind].tasks[task]
    negative = NEGATIVE[number] if FAMILIES[kind].has_negative else ""
    inputs: dict[str, Any] = {"prompt": text or TEXTS[number], "negative_prompt": negative}
    height, width = (8, 16) if task == ENLARGE else (HEIGHT, WIDTH)
    inputs["image"] = picture(number, height, width)
    if task == INPAINT:
        inputs["mask"] = mask(number)
    arguments: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 3.0}
    arguments |= {"height": height, "width": width}
    arguments |= {"strength": 0.5} if drawing.has_strength else {"noise_level": 20}
    return Request(inputs=inputs, seed=2**40 + number, call=Call(**{**arguments, **call}))


def draw(pipeline: FamilyPipeline, kind: str, task: str, *numbers: int, **call: Any) -> list[bytes]:
    return pixels(pipeline.generate([request(n, kind, task, **call) for n in numbers]))


# An image is its request's alone


@pytest.mark.parametrize(("kind", "task"), PAIRS)
def test_an_image_depends_on_its_request_alone(
    kind: str, task: str, model: Callable[[str], Path]
) -> None:
    pipeline = load(model(kind), task)
    state = torch.get_rng_state()
    first = draw(pipeline, kind, task, 0, 1, 2)
    assert len(set(first)) == 3
    assert draw(pipeline, kind, task, 0, 1, 2) == first
    assert draw(pipeline, kind, task, 2, 1, 0) == first[::-1]
    assert draw(pipeline, kind, task, 4, 5, 0)[2] == first[0]
    assert draw(pipeline, kind, task, 1) == [first[1]]
    assert torch.equal(torch.get_rng_state(), state)
    one = request(1, kind, task)
    others = [dataclasses.replace(one, seed=7)]
    others += [
        dataclasses.replace(one, inputs={**one.inputs, name: value})
        for name, value in {
            "prompt": "another text",
            "image": picture(9, *one.inputs["image"].shape[:2]),
            **({"negative_prompt": "other"} if FAMILIES[kind].has_negative else {}),
            **({"mask": mask(6)} if task == INPAINT else {}),
        }.items()
    ]
    drawn = [pipeline._call.draw([other]).numpy().tobytes() for other in (one, *others)]
    assert len({*drawn}) == len(others) + 1


@pytest.mark.parametrize(("kind", "task"), PAIRS)
def test_the_last_bits_do_not_follow_the_neighbours(
    kind: str, task: str, model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before rounding: beside short texts and beside long ones, beside other pictures."""
    pipeline = load(model(kind), task)
    drawn: list[torch.Tensor] = []
    draw_rows = FamilyCall.draw

    def noting(self: FamilyCall, requests: Sequence[Request]) -> torch.Tensor:
        images = draw_rows(self, requests)
        drawn.extend(i for i, r in zip(images, requests, strict=True) if r.seed == 2**40)
        return images

    monkeypatch.setattr(FamilyCall, "draw", noting)
    for texts in (["b", "c"], ["x" * 40, "z" * 600]):
        others = [request(3 + n, kind, task, text) for n, text in enumerate(texts)]
        pipeline.generate([*others, request(0, kind, task, "a")])
        pipeline.generate([request(0, kind, task, "a"), *others])
    assert len(drawn) >= 4
    assert all(torch.equal(image, drawn[0]) for image in drawn)


@pytest.mark.parametrize(("kind", "task"), PAIRS)
def test_pixels_are_those_of_diffusers(
    kind: str, task: str, model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same call of the pipeline that diffusers itself loads, by PIL images, to the rounding of
    a pixel. Of an inpainting what the mask marks."""
    requests = [request(number, kind, task) for number in (1, 2, 4)]
    ours = np.stack(load(model(kind), task).generate(requests))
    family, drawing = FAMILIES[kind], FAMILIES[kind].tasks[task]
    theirs = getattr(diffusers, drawing.pipeline).from_pretrained(
        model(kind), use_safetensors=True, low_cpu_mem_usage=False
    )
    theirs.set_progress_bar_config(disable=True)
    call = requests[0].call
    arguments: dict[str, Any] = {
        "prompt": [r.inputs["prompt"] for r in requests],
        "negative_prompt": [r.inputs["negative_prompt"] for r in requests],
        "image": [Image.fromarray(r.inputs["image"]) for r in requests],
        "generator": [make_generator(r.seed) for r in requests],
        family.guidance: call.guidance_scale,
        "num_inference_steps": call.num_inference_steps,
        **family.fixed,
    }
    arguments |= {"strength": call.strength} if drawing.has_strength else {"noise_level": 20}
    if drawing.has_size:
        arguments |= {"height": HEIGHT, "width": WIDTH}
    if task == INPAINT:
        arguments["mask_image"] = [Image.fromarray(r.inputs["mask"]) for r in requests]
    if not family.has_negative:
        del arguments["negative_prompt"]
    if drawing.is_unshifted:  # what it does wrong, put right: see the test after this one
        shift, decode = theirs.vae.config.shift_factor, theirs.vae.decode
        monkeypatch.setattr(theirs.vae, "decode", lambda z, *a, **k: decode(z + shift, *a, **k))
    images = np.round(theirs(**arguments, output_type="np").images * 255).astype(int)
    if task == INPAINT:
        marked = np.stack([r.inputs["mask"] for r in requests])
        assert np.abs(ours.astype(int) - images)[marked].max() <= 1
    else:
        assert np.abs(ours.astype(int) - images).max() <= 1


@pytest.mark.parametrize("kind", [kind for kind, task in FLOWS if task == CHANGE])
def test_to_repaint_all_is_to_change_all(kind: str, model: Callable[[str], Path]) -> None:
    """From noise alone both draw the same, of models that flow: diffusers' inpainting by Stable
    Diffusion 3 leaves a shift out, and is put right."""
    one = request(1, kind, CHANGE, strength=1.0)
    marked = {**one.inputs, "mask": np.ones((HEIGHT, WIDTH), bool)}
    changed = pixels(load(model(kind), CHANGE).generate([one]))
    repainted = load(model(kind), INPAINT).generate([dataclasses.replace(one, inputs=marked)])
    assert pixels(repainted) == changed


@pytest.mark.parametrize(("kind", "task"), [pair for pair in PAIRS if pair[1] == INPAINT])
def test_what_no_mask_marks_stays_to_the_bit(
    kind: str, task: str, model: Callable[[str], Path]
) -> None:
    requests = [request(number, kind, task, strength=1.0) for number in range(3)]
    for made, one in zip(load(model(kind), task).generate(requests), requests, strict=True):
        kept = ~one.inputs["mask"]
        assert np.array_equal(made[kept], one.inputs["image"][kept])
        assert (made != one.inputs["image"])[~kept].mean() > 0.5


def test_pasting_takes_each_pixel_from_one_of_the_two() -> None:
    marked = mask(0)
    painted, image = picture(1), picture(2)
    made = paste(painted, image, marked)
    assert np.array_equal(made[marked], painted[marked])
    assert np.array_equal(made[~marked], image[~marked])
    assert made.dtype == np.uint8
    assert not np.shares_memory(made, image)


# How far an image is changed


@pytest.mark.parametrize(("kind", "task"), [p for p in PAIRS if p[1] != ENLARGE])
def test_steps_are_reckoned_as_the_pipeline_does(
    kind: str, task: str, model: Callable[[str], Path]
) -> None:
    pipe = load(model(kind), task)._call.loaded.pipe
    shift = {"mu": 0.5} if pipe.scheduler.config.get("use_dynamic_shifting") else {}
    for steps in (1, 2, 7, 50):
        pipe.scheduler.set_timesteps(steps, **shift)
        for strength in (0.001, 0.02, 0.29, 0.5, 0.58, 0.7, 0.9999, 1.0):
            left, reckoned = pipe.get_timesteps(steps, strength, "cpu")
            ours = num_steps(FAMILIES[kind], steps, strength)
            assert (ours, bool(ours)) == (reckoned, bool(len(left)))


@pytest.mark.parametrize(("kind", "task"), [p for p in PAIRS if p[1] != ENLARGE])
def test_the_stronger_the_farther_from_the_image(
    kind: str, task: str, model: Callable[[str], Path]
) -> None:
    """Seen in the latents that the first step is given: the model itself is one of random weights.
    A model for inpainting alone begins with noise at full strength."""
    pipeline = load(model(kind), task, batch_size=1)
    pipe, given = pipeline._call.loaded.pipe, list[torch.Tensor]()
    step = pipe.scheduler.step

    def noting(noise: Any, time: Any, latents: torch.Tensor, *a: Any, **k: Any) -> Any:
        given.append(latents)
        return step(noise, time, latents, *a, **k)

    pipe.scheduler.step = noting
    begun = []
    for strength in (0.1, 0.5, 0.9):
        given.clear()
        draw(pipeline, kind, task, 1, strength=strength, num_inference_steps=10)
        begun.append(given[0])
        assert len(given) == num_steps(FAMILIES[kind], 10, strength)
    assert torch.dist(begun[0], begun[1]) < torch.dist(begun[0], begun[2])


def test_a_strength_that_leaves_no_step_is_the_rows_fault(model: Callable[[str], Path]) -> None:
    pipeline = load(model(SD), CHANGE)
    [fault] = pipeline.generate([request(0, SD, CHANGE, strength=0.2)])
    assert isinstance(fault, Fault)
    assert fault.reason is Reason.OUT_OF_RANGE
    assert fault.message.startswith("strength: 0.2 of num_inference_steps=4 is no step at all")
    assert len(draw(pipeline, SD, CHANGE, 0, strength=0.25)) == 1


# What cannot be


@pytest.mark.parametrize(
    ("kind", "task", "told"),
    [
        (PIXART, CHANGE, "a PixArtSigmaPipeline, which draws text_to_image; of engine diffusers S"),
        (SANA, INPAINT, "a SanaPipeline, which draws text_to_image; .* FluxFillPipeline"),
        (
            SD,
            ENLARGE,
            "draws text_to_image, image_to_image, inpainting; .* StableDiffusionUpscaleP",
        ),
        (UPSCALE, "text_to_image", "which draws super_resolution; .* draw text_to_image"),
        (UPSCALE, CHANGE, "which draws super_resolution"),
        (INPAINTING_SD, CHANGE, "which draws inpainting"),
        (FILL, "text_to_image", "which draws inpainting"),
    ],
)
def test_what_a_model_does_not_draw_is_refused_by_name(
    kind: str, task: str, told: str, model: Callable[[str], Path]
) -> None:
    with pytest.raises(JobError, match=f"task={task}: .* {told}"):
        load(model(kind), task)


@pytest.mark.parametrize(
    ("kind", "task", "call", "told"),
    [
        (
            SD,
            CHANGE,
            {"height": 12},
            "height: 12 is not a multiple of 8, which this model needs; g",
        ),
        (UPSCALE, ENLARGE, {"width": 50}, "width: 50 is not a multiple of 4, which this model n"),
        (SD3, INPAINT, {"eta": 0.5}, "eta: 0.5, but StableDiffusion3InpaintPipeline has none"),
        (SD, CHANGE, {"guidance_rescale": 0.7}, "StableDiffusionImg2ImgPipeline has none"),
        (UPSCALE, ENLARGE, {"noise_level": 351}, "noise_level: 351, but this model takes 350 at"),
    ],
)
def test_what_a_row_asks_in_vain_is_its_fault(
    kind: str, task: str, call: dict[str, Any], told: str, model: Callable[[str], Path]
) -> None:
    [fault] = load(model(kind), task).generate([request(0, kind, task, **call)])
    assert isinstance(fault, Fault)
    assert fault.reason is Reason.OUT_OF_RANGE
    assert told in fault.message


def test_the_noise_of_an_image_to_enlarge_has_a_scheduler_of_its_own(
    copied: Callable[[str], Path],
) -> None:
    folder = copied(UPSCALE)
    assert "low_res_scheduler/scheduler_config.json" in lock_model(folder)
    before = draw(load(folder, ENLARGE), UPSCALE, ENLARGE, 0)
    rewrite(folder / "low_res_scheduler" / "scheduler_config.json", beta_end=0.9)
    assert draw(load(folder, ENLARGE), UPSCALE, ENLARGE, 0) != before
    rewrite(folder / "low_res_scheduler" / "scheduler_config.json", beta_schedule="none such")
    with pytest.raises(JobError, match=r"low_res_scheduler does not load as a DDPM.*none such"):
        load(folder, ENLARGE)
    rewrite(folder / "model_index.json", low_res_scheduler=["mine", "MyScheduler"])
    with pytest.raises(JobError, match="low_res_scheduler is a MyScheduler; supported are DDPM"):
        load(folder, ENLARGE)


@pytest.mark.parametrize("kind", [QWEN, Z_IMAGE, FLUX])
def test_tokens_are_counted_as_of_texts_alone(kind: str, model: Callable[[str], Path]) -> None:
    counts = load(model(kind), CHANGE).count_tokens(TEXTS)
    alone = FamilyPipeline.from_config(
        ModelConfig(engine="diffusers", path=str(model(kind))),
        SchedulerConfig(),
        task="text_to_image",
        batch_size=1,
    )
    assert counts == alone.count_tokens(TEXTS)

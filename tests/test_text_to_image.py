"""The text-to-image pipeline on the demo model: same pixels as diffusers, every image its own."""

from functools import cache

import numpy as np
import pytest
import torch
from diffusers import LDMTextToImagePipeline

from ldm_batch.config import ModelConfig, SchedulerConfig
from ldm_batch.diffusion.files import find_model
from ldm_batch.diffusion.load import load
from ldm_batch.diffusion.noise import make_generator
from ldm_batch.diffusion.text_to_image import TextToImage
from ldm_batch.records import Call, Fault, Request

DEMO = ModelConfig(path="demo:text_to_image")
PROMPTS = [
    "a red circle on a blue background",
    "a large green square left of a small yellow circle on a white background",
    "a small blue triangle",
    "a red circle on a blue background",
]
CALL = Call(num_inference_steps=4, guidance_scale=2.0, eta=0.0, height=64, width=64)


@cache
def components():
    return load(find_model(DEMO))


@cache
def pipeline(scheduler: str = "from_model", batch_size: int = 4) -> TextToImage:
    return TextToImage(components(), SchedulerConfig(name=scheduler), batch_size=batch_size)


def plain_diffusers() -> LDMTextToImagePipeline:
    plain = LDMTextToImagePipeline.from_pretrained(components().folder, use_safetensors=True)
    plain.set_progress_bar_config(disable=True)
    return plain


def requests(call: Call = CALL, first_seed: int = 0) -> list[Request]:
    return [Request(p, "", first_seed + i, call) for i, p in enumerate(PROMPTS)]


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_same_pixels_as_diffusers(guidance_scale: float) -> None:
    latents = torch.randn(4, 8, 8, 8, generator=make_generator(2**40))
    arguments = {
        "latents": latents,
        "num_inference_steps": 10,
        "guidance_scale": guidance_scale,
        "output_type": "pt",
    }
    ours = pipeline()(PROMPTS, **arguments).images
    theirs = plain_diffusers()(PROMPTS, **arguments).images
    assert (ours - theirs).abs().max() <= 1e-5
    assert np.array_equal(
        np.stack(
            [np.asarray(i) for i in pipeline()(PROMPTS, **arguments | {"output_type": "pil"})[0]]
        ),
        np.stack(
            [
                np.asarray(i)
                for i in plain_diffusers().numpy_to_pil(ours.permute(0, 2, 3, 1).numpy())
            ]
        ),
    )


def test_same_noise_as_diffusers_from_a_seed() -> None:
    arguments = {"num_inference_steps": 4, "output_type": "pt"}
    ours = pipeline()(PROMPTS, seed=7, **arguments).images
    generators = [torch.Generator().manual_seed(7 + i) for i in range(4)]
    theirs = plain_diffusers()(PROMPTS, generator=generators, **arguments).images
    assert (ours - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_an_image_does_not_depend_on_its_batch(eta: float) -> None:
    call = Call(4, 2.0, eta, 64, 64)
    together = pipeline().generate(requests(call))
    alone = [pipeline().generate([request])[0] for request in requests(call)]
    turned = pipeline().generate(requests(call)[::-1])[::-1]
    assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(together, turned, strict=True))
    assert together[0].dtype == np.uint8
    assert together[0].shape == (64, 64, 3)


def test_global_generator_is_neither_used_nor_moved() -> None:
    call = Call(4, 2.0, 1.0, 64, 64)
    torch.manual_seed(1)
    first = pipeline().generate(requests(call))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = pipeline().generate(requests(call))
    assert np.array_equal(first, second)
    assert torch.equal(state, torch.get_rng_state())


def test_seeds_that_share_their_low_32_bits_give_different_images() -> None:
    call = Call(2, 1.0, 0.0, 64, 64)
    seeds = [5, 5 + 2**32, 5 + 2**33]
    images = pipeline().generate([Request(PROMPTS[0], "", seed, call) for seed in seeds])
    assert not np.array_equal(images[0], images[1])
    assert not np.array_equal(images[1], images[2])


def test_guidance_scale_0_is_the_unconditional_image() -> None:
    arguments = {"num_inference_steps": 4, "seed": 0, "output_type": "np"}
    zero = pipeline()(PROMPTS[0], guidance_scale=0.0, **arguments).images
    null = pipeline()("", guidance_scale=1.0, **arguments).images
    assert np.array_equal(zero, null)


def test_negative_prompt_takes_the_place_of_the_null_prompt() -> None:
    arguments = {"num_inference_steps": 4, "seed": 0, "output_type": "np", "guidance_scale": 3.0}
    plain = pipeline()(PROMPTS[0], **arguments).images
    assert np.array_equal(plain, pipeline()(PROMPTS[0], negative_prompt="", **arguments).images)
    other = pipeline()(PROMPTS[0], negative_prompt=PROMPTS[2], **arguments).images
    assert np.abs(plain - other).max() > 0.05
    same = pipeline()(PROMPTS[0], negative_prompt=PROMPTS[0], **arguments).images
    unguided = pipeline()(PROMPTS[0], **arguments | {"guidance_scale": 1.0}).images
    assert np.abs(same - unguided).max() < 1e-4


def test_output_types_agree() -> None:
    arguments = {"num_inference_steps": 2, "seed": 0}
    pil = pipeline()(PROMPTS, output_type="pil", **arguments).images
    array = pipeline()(PROMPTS, output_type="np", **arguments).images
    tensor = pipeline()(PROMPTS, output_type="pt", return_dict=False, **arguments)[0]
    assert array.shape == (4, 64, 64, 3)
    assert np.array_equal(tensor.permute(0, 2, 3, 1).numpy(), array)
    assert np.array_equal(np.stack(pil), (array * 255).round().astype(np.uint8))


def test_library_images_are_the_jobs_images() -> None:
    job = pipeline().generate(requests())
    images = pipeline()(PROMPTS, seed=0, num_inference_steps=4, guidance_scale=2.0).images
    assert np.array_equal(np.stack(job), np.stack(images))


def test_num_images_per_prompt_and_batches() -> None:
    arguments = {"num_inference_steps": 2, "output_type": "np"}
    images = pipeline()(PROMPTS[:3], num_images_per_prompt=2, seed=10, **arguments).images
    assert images.shape[0] == 6
    last = pipeline()(PROMPTS[2], seed=[15], **arguments).images
    assert np.array_equal(images[5:], last)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [None]}, "prompt"),
        ({"negative_prompt": ["a", "b"]}, "2 texts for 1 prompts"),
        ({"seed": [1, 2]}, "2 seeds for 1 images"),
        ({"seed": -1}, "must be 0 to"),
        ({"seed": 1, "generator": torch.Generator()}, "not both"),
        ({"generator": [torch.Generator()] * 2}, "2 generators for 1 images"),
        ({"latents": torch.zeros(1, 4, 8, 8)}, "latents: shape"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt"),
        ({"height": 60}, "multiples of 8"),
        ({"output_type": "jpg"}, "output_type"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"eta": 2.0}, "eta"),
    ],
)
def test_wrong_arguments_are_value_errors(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline()(**{"prompt": PROMPTS[0], "num_inference_steps": 1, **arguments})


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="prompt_embeds"):
        pipeline()(PROMPTS[0], prompt_embeds=None)


def test_generate_checks_its_requests() -> None:
    with pytest.raises(ValueError, match="5 requests"):
        pipeline().generate(requests() + requests()[:1])
    with pytest.raises(ValueError, match="0 requests"):
        pipeline().generate([])
    other = Request("a", "", 0, Call(5, 2.0, 0.0, 64, 64))
    with pytest.raises(ValueError, match="same call"):
        pipeline().generate([requests()[0], other])


def test_count_tokens() -> None:
    counts = pipeline().count_tokens(["a red circle", "", "a " * 100])
    assert [c.num_tokens for c in counts] == [5, 2, 102]
    assert [c.is_truncated for c in counts] == [False, False, True]
    assert pipeline().count_tokens([]) == []


def test_faults_are_told_apart_from_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(latents: torch.Tensor) -> object:
        decoded = torch.linspace(-1, 1, 64).expand(4, 3, 64, 64).clone()
        decoded[1, 0, 5, 5] = float("inf")
        decoded[2, :, 5, 5] = float("nan")
        decoded[3] = 0.5
        return type("Output", (), {"sample": decoded})

    fresh = TextToImage(components(), SchedulerConfig(), batch_size=4)
    monkeypatch.setattr(components()["vqvae"], "decode", decode)
    good, inf, nan, constant = fresh.generate(requests(Call(1, 1.0, 0.0, 64, 64)))
    assert isinstance(good, np.ndarray)
    assert isinstance(inf, Fault)
    assert inf.reason == "not_finite"
    assert isinstance(nan, Fault)
    assert nan.reason == "not_finite"
    assert isinstance(constant, Fault)
    assert constant.reason == "constant_image"


def test_describe_is_complete_and_json() -> None:
    import json

    description = json.loads(json.dumps(pipeline().describe()))
    assert description["scheduler"] == "DDIMScheduler"
    assert description["scheduler_settings"]["prediction_type"] == "v_prediction"
    assert description["batch_size"] == 4
    assert description["device"] == "cpu"

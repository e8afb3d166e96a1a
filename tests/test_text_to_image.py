"""The text-to-image pipeline on the demo model: same pixels as diffusers, every image its own."""

import inspect
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, LDMTextToImagePipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ldm_batch.columns import ARGUMENTS
from ldm_batch.config import ModelConfig, SchedulerConfig
from ldm_batch.demo.checker import check
from ldm_batch.demo.world import caption, draw_specs
from ldm_batch.diffusion.load import load
from ldm_batch.diffusion.models.find import find_model
from ldm_batch.diffusion.noise import make_generator
from ldm_batch.diffusion.text_encoder import TextEncoder
from ldm_batch.diffusion.text_to_image import TextToImage
from ldm_batch.identity import FORMS, numbered_seed
from ldm_batch.made_as import MadeAs
from ldm_batch.records import Call, Fault, Request

DEMO = ModelConfig(path="demo:text_to_image")
PROMPTS = [
    "a red circle on a blue background",
    "a large green square left of a small yellow circle on a white background",
    "a small blue triangle",
    "a red circle on a blue background",
]
CALL = Call(num_inference_steps=4, guidance_scale=2.0, eta=0.0, height=64, width=64)
ODE_SCHEDULERS = ("pndm", "lms", "euler", "heun", "dpmpp_2m", "dpmpp_2s", "unipc", "deis")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, of numpy


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
    return [
        Request(inputs={"prompt": p, "negative_prompt": ""}, seed=first_seed + i, call=call)
        for i, p in enumerate(PROMPTS)
    ]


def test_guidance_is_a_rows_own() -> None:
    """Rows guided differently share a batch, and each comes out as among rows like itself."""
    calls = [replace(CALL, guidance_scale=scale) for scale in (1.5, 2.0, 4.0, 7.5)]
    assert len({pipeline().batch_key(call) for call in calls}) == 1
    mixed = [replace(requests()[i], call=call) for i, call in enumerate(calls)]
    together = pipeline().generate(mixed)
    for i, call in enumerate(calls):
        assert np.array_equal(together[i], pipeline().generate(requests(call))[i])
    assert len({pipeline().batch_key(replace(CALL, guidance_scale=s)) for s in (0, 1, 2)}) == 3


def test_rescaling_is_a_rows_own() -> None:
    """In a mixed batch a row has the bits of a batch like itself, and of a job that says so."""
    phis = (None, 0.0, 0.3, 0.7)
    calls = [replace(CALL, guidance_scale=4.0, guidance_rescale=phi) for phi in phis]
    assert len({pipeline().batch_key(call) for call in calls}) == 1
    mixed = [replace(requests()[i], call=call) for i, call in enumerate(calls)]
    together = pipeline().generate(mixed)
    for i, (call, phi) in enumerate(zip(calls, phis, strict=True)):
        assert np.array_equal(together[i], pipeline().generate(requests(call))[i])
        job = pipeline().with_scheduler(SchedulerConfig(guidance_rescale=phi or 0.0))
        plain = replace(call, guidance_rescale=None)
        assert np.array_equal(together[i], job.generate(requests(plain))[i])
    plain = replace(CALL, guidance_scale=4.0)
    assert not np.array_equal(together[3], pipeline().generate(requests(plain))[3])


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
    ours = pipeline()(PROMPTS, seed=[7, 8, 9, 10], **arguments).images
    generators = [torch.Generator().manual_seed(7 + i) for i in range(4)]
    theirs = plain_diffusers()(PROMPTS, generator=generators, **arguments).images
    assert (ours - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_an_image_does_not_depend_on_its_batch(eta: float) -> None:
    call = Call(num_inference_steps=4, guidance_scale=2.0, eta=eta, height=64, width=64)
    together = pipeline().generate(requests(call))
    alone = [pipeline().generate([request])[0] for request in requests(call)]
    turned = pipeline().generate(requests(call)[::-1])[::-1]
    assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(together, turned, strict=True))
    assert together[0].dtype == np.uint8
    assert together[0].shape == (64, 64, 3)


def test_global_generator_is_neither_used_nor_moved() -> None:
    call = Call(num_inference_steps=4, guidance_scale=2.0, eta=1.0, height=64, width=64)
    torch.manual_seed(1)
    first = pipeline().generate(requests(call))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = pipeline().generate(requests(call))
    assert np.array_equal(first, second)
    assert torch.equal(state, torch.get_rng_state())


def test_seeds_that_share_their_low_32_bits_give_different_images() -> None:
    call = Call(num_inference_steps=2, guidance_scale=1.0, eta=0.0, height=64, width=64)
    seeds = [5, 5 + 2**32, 5 + 2**33]
    images = pipeline().generate(
        [
            Request(inputs={"prompt": PROMPTS[0], "negative_prompt": ""}, seed=seed, call=call)
            for seed in seeds
        ]
    )
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
    images = pipeline()(PROMPTS, seed=[*range(4)], num_inference_steps=4, guidance_scale=2.0).images
    assert np.array_equal(np.stack(job), np.stack(images))


def test_library_images_are_rescaled_as_a_rows_are() -> None:
    call = replace(CALL, guidance_scale=4.0, guidance_rescale=0.7)
    taken = inspect.signature(TextToImage.__call__).parameters
    arguments = {name: getattr(call, name) for name in ARGUMENTS if name in taken}
    images = pipeline()(PROMPTS, seed=[*range(4)], **arguments).images
    assert np.array_equal(np.stack(pipeline().generate(requests(call))), np.stack(images))


def test_num_images_per_prompt_and_batches() -> None:
    arguments = {"num_inference_steps": 2, "output_type": "np"}
    images = pipeline()(PROMPTS[:3], num_images_per_prompt=2, seed=10, **arguments).images
    assert images.shape[0] == 6
    last = pipeline()(PROMPTS[2], seed=[numbered_seed(10, 5)], **arguments).images
    assert np.array_equal(images[5:], last)


def test_the_images_of_a_row_have_the_seeds_that_a_job_gives_them() -> None:
    arguments = {"num_images_per_prompt": 3, "num_inference_steps": 1, "output_type": "np"}
    images = pipeline()(PROMPTS[:2], seed=[40, 2**64 - 1], **arguments).images
    seeds = [FORMS[2].image_seed(0, "", k, own) for own in (40, 2**64 - 1) for k in range(3)]
    spread = [prompt for prompt in PROMPTS[:2] for _ in range(3)]
    one_by_one = pipeline()(spread, seed=seeds, num_inference_steps=1, output_type="np").images
    assert np.array_equal(images, one_by_one)
    as_read = {"num_inference_steps": 1, "output_type": "np"}  # by pandas, say
    first = pipeline()(PROMPTS[:1], seed=np.uint64(40), **as_read).images
    assert np.array_equal(first[0], images[0])
    both = pipeline()(PROMPTS[:2], seed=np.array([40, 2**64 - 1], np.uint64), **as_read).images
    assert np.array_equal(both[1], images[3])


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
        ({"guidance_rescale": 1.5}, "guidance_rescale=1.5: must be 0 to 1"),
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
    other = Request(
        inputs={"prompt": "a", "negative_prompt": ""},
        seed=0,
        call=Call(num_inference_steps=5, guidance_scale=2.0, eta=0.0, height=64, width=64),
    )
    with pytest.raises(ValueError, match="same call, but"):
        pipeline().generate([requests()[0], other])


def test_count_tokens() -> None:
    counts = pipeline().count_tokens(["a red circle", "", "a " * 100])
    assert [c.num_tokens for c in counts] == [5, 2, 102]
    assert [c.is_truncated for c in counts] == [False, False, True]
    assert pipeline().count_tokens([]) == []


def test_faults_are_told_apart_from_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(latents: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        decoded = torch.linspace(-1, 1, 64).expand(4, 3, 64, 64).clone()
        decoded[1, 0, 5, 5] = float("inf")
        decoded[2, :, 5, 5] = float("nan")
        decoded[3] = 0.5
        return (decoded,)

    monkeypatch.setattr(components()["vqvae"], "decode", decode)
    good, *bad = pipeline().generate(
        requests(Call(num_inference_steps=1, guidance_scale=1.0, eta=0.0, height=64, width=64))
    )
    assert isinstance(good, np.ndarray)
    assert all(isinstance(fault, Fault) for fault in bad)
    assert [fault.reason for fault in bad] == ["not_finite", "not_finite", "constant_image"]


def test_describe_is_complete_and_json() -> None:
    import json

    description = json.loads(json.dumps(pipeline().describe()))
    assert description["scheduler"] == "DDIMScheduler"
    assert description["scheduler_settings"]["prediction_type"] == "v_prediction"
    assert description["batch_size"] == 4
    assert description["device"] == "cpu"


# Property: bytes depend on the request alone


@cache
def alone(scheduler: str, eta: float, seed: int) -> bytes:
    call = Call(num_inference_steps=2, guidance_scale=2.0, eta=eta, height=64, width=64)
    request = Request(
        inputs={"prompt": PROMPTS[seed % 3], "negative_prompt": PROMPTS[2] if seed % 2 else ""},
        seed=seed,
        call=call,
    )
    return pipeline(scheduler).generate([request])[0].tobytes()


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    st.sampled_from([("ddim", 0.3), ("ddim", 1.0), ("euler_a", 0.0), ("dpmpp_sde", 0.0)]),
    st.lists(st.integers(0, 7), min_size=1, max_size=4),
)
def test_any_grouping_gives_the_same_bytes(kind: tuple[str, float], seeds: list[int]) -> None:
    scheduler, eta = kind
    call = Call(num_inference_steps=2, guidance_scale=2.0, eta=eta, height=64, width=64)
    batch = [
        Request(
            inputs={"prompt": PROMPTS[s % 3], "negative_prompt": PROMPTS[2] if s % 2 else ""},
            seed=s,
            call=call,
        )
        for s in seeds
    ]
    images = pipeline(scheduler).generate(batch)
    assert [image.tobytes() for image in images] == [alone(scheduler, eta, s) for s in seeds]


# Schedulers on the trained model


def at_many_steps(scheduler: str, steps: int) -> torch.Tensor:
    made = pipeline(scheduler, batch_size=2)(
        PROMPTS[:2], seed=3, num_inference_steps=steps, guidance_scale=2.0, output_type="pt"
    )
    return made.images


@pytest.mark.parametrize("scheduler", ODE_SCHEDULERS)
def test_ode_schedulers_land_where_ddim_does(scheduler: str) -> None:
    error = at_many_steps(scheduler, 50) - reference_images()
    assert float(error.pow(2).mean().sqrt()) < 0.03


@cache
def reference_images() -> torch.Tensor:
    return at_many_steps("ddim", 100)


@pytest.mark.parametrize("scheduler", ["ddpm", "euler_a", "dpmpp_sde"])
def test_ancestral_schedulers_are_as_good_as_ddim(scheduler: str) -> None:
    """Other pictures of the same prompts: the checker finds as many attributes right."""
    assert share_of_attributes(scheduler) > share_of_attributes("ddim") - 0.1


@cache
def share_of_attributes(scheduler: str) -> float:
    specs = draw_specs(3, 8)
    images = pipeline(scheduler, batch_size=8)(
        [caption(spec) for spec in specs], seed=0, num_inference_steps=25, guidance_scale=2.0
    ).images
    return float(np.mean([astuple(check(i, s)) for i, s in zip(images, specs, strict=True)]))


def test_diffusers_euler_does_not_land_there() -> None:
    plain = plain_diffusers()
    plain.scheduler = EulerDiscreteScheduler.from_config(plain.scheduler.config)
    generators = [make_generator(3 + i) for i in range(2)]
    images = plain(
        PROMPTS[:2],
        generator=generators,
        num_inference_steps=50,
        guidance_scale=2.0,
        output_type="pt",
    ).images
    assert float((images - reference_images()).pow(2).mean().sqrt()) > 0.03


# Half precision


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_end_to_end(dtype: str) -> None:
    half = TextToImage.from_config(replace(DEMO, dtype=dtype), SchedulerConfig(), batch_size=2)
    call = Call(num_inference_steps=3, guidance_scale=2.0, eta=0.0, height=64, width=64)
    batch = [
        Request(inputs={"prompt": PROMPTS[0], "negative_prompt": ""}, seed=0, call=call),
        Request(inputs={"prompt": PROMPTS[1], "negative_prompt": ""}, seed=1, call=call),
    ]
    images, exact = half.generate(batch), pipeline("from_model", 2).generate(batch)
    for image, right in zip(images, exact, strict=True):
        assert image.dtype == np.uint8
        assert np.abs(image.astype(float) - right).mean() < 4
    description = half.describe()
    assert description["dtype"] == dtype
    assert description["decode_dtype"] == ("float32" if dtype == "float16" else dtype)
    assert half(PROMPTS[0], seed=0, num_inference_steps=1, output_type="np").images.dtype == "f4"


def test_overflow_in_half_precision_is_made_again_in_float32(tmp_path: Path) -> None:
    """Activations of 1e6 are beyond float16; the same model in float32 has no trouble."""
    folder = Path(shutil.copytree(find_model(DEMO), tmp_path / "model"))
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights = {name: value.float() for name, value in weights.items()}
    weights["time_embedding.linear_1.weight"] *= 1e6
    save_file(weights, path)
    model = ModelConfig(path=str(folder), dtype="bfloat16")
    exact = TextToImage.from_config(
        replace(model, dtype="float32"), SchedulerConfig(), batch_size=1
    )
    half = TextToImage.from_config(replace(model, dtype="float16"), SchedulerConfig(), batch_size=1)
    request = Request(
        inputs={"prompt": PROMPTS[0], "negative_prompt": ""},
        seed=0,
        call=Call(num_inference_steps=1, guidance_scale=1.0, eta=0.0, height=64, width=64),
    )
    right, made = exact.generate([request])[0], half.generate([request])[0]
    assert isinstance(right, np.ndarray)
    assert np.array_equal(made.pixels, right)
    assert made.columns == {"made_as": "float32"}
    assert np.array_equal(half.as_made(MadeAs(is_float32=True)).generate([request])[0], right)


@pytest.mark.parametrize(
    "switches", [{"channels_last": True}, {"attention": "plain"}, {"decode_dtype": "float32"}]
)
def test_switches_change_last_bits_at_most(switches: dict) -> None:
    model = replace(DEMO, **switches)
    other = TextToImage.from_config(model, SchedulerConfig(), batch_size=4).generate(requests())
    for image, right in zip(other, pipeline().generate(requests()), strict=True):
        assert np.abs(image.astype(int) - right).max() <= 1


# What diffusers' pipeline gets wrong and this one does not


def test_noise_of_the_scheduler_is_the_images_own() -> None:
    def run(world: int) -> torch.Tensor:
        torch.manual_seed(world)
        generators = [make_generator(i) for i in range(4)]
        arguments = {"num_inference_steps": 4, "eta": 1.0, "output_type": "pt"}
        return plain(PROMPTS, generator=generators, **arguments).images

    plain = plain_diffusers()
    assert (run(1) - run(2)).abs().max() > 0.1
    # ours: test_global_generator_is_neither_used_nor_moved


def test_guidance_scale_0_and_typos_in_diffusers() -> None:
    plain = plain_diffusers()
    arguments = {"num_inference_steps": 2, "output_type": "pt", "guidance_scale": 3.0}
    latents = torch.randn(1, 8, 8, 8, generator=make_generator(0))
    one = plain(PROMPTS[0], latents=latents, **arguments).images
    two = plain(PROMPTS[0], latents=latents, negative_prompt="x", num_imges=9, **arguments).images
    assert torch.equal(one, two)  # swallowed; ours: test_unknown_arguments_are_refused


def test_bfloat16_numpy_output_fails_in_diffusers() -> None:
    plain = plain_diffusers().to(torch.bfloat16)
    with pytest.raises(TypeError, match="BFloat16"):
        plain(PROMPTS[0], num_inference_steps=1, output_type="np")
    # ours: test_half_precision_end_to_end


def test_latent_side_follows_the_first_stage() -> None:
    """diffusers divides pixels by 8 whatever the first stage; one with f=4 gives half the size."""
    folder = components().folder
    shallow = AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=8,
        norm_num_groups=1,
    )
    mixed = replace(components(), modules={**components().modules, "vqvae": shallow.eval()})
    ours = TextToImage(mixed, SchedulerConfig(), batch_size=1)
    assert ours.size_multiple == 4
    arguments = {"num_inference_steps": 1, "height": 64, "width": 32, "output_type": "pt"}
    assert ours(PROMPTS[0], seed=0, **arguments).images.shape == (1, 3, 64, 32)
    plain = LDMTextToImagePipeline.from_pretrained(folder, vqvae=shallow, use_safetensors=True)
    plain.set_progress_bar_config(disable=True)
    assert plain(PROMPTS[0], **arguments).images.shape == (1, 3, 32, 16)


def test_two_threads_may_share_a_pipeline() -> None:
    shared = pipeline("dpmpp_2m")
    right = [shared.generate(requests(CALL, seed)) for seed in (0, 100)]
    with ThreadPoolExecutor(2) as threads:
        made = list(threads.map(lambda seed: shared.generate(requests(CALL, seed)), (0, 100)))
    assert np.array_equal(made, right)


# Embeddings, notes, options


def test_each_text_is_encoded_once() -> None:
    fresh = TextToImage(components(), SchedulerConfig(), batch_size=4)
    call = Call(num_inference_steps=1, guidance_scale=2.0, eta=0.0, height=64, width=64)
    texts: list[int] = []
    hook = components()["bert"].register_forward_pre_hook(
        lambda _, args: texts.append(len(args[0]))
    )
    for seed in range(3):
        fresh.generate(requests(call, seed))
    hook.remove()
    assert fresh._text.num_encoded == len(set(PROMPTS)) + 1  # and the null prompt
    assert texts == [4]
    plain = plain_diffusers()
    plain.bert.register_forward_pre_hook(lambda _, args: texts.append(len(args[0])))
    for _ in range(3):
        plain(PROMPTS, num_inference_steps=1, guidance_scale=2.0, output_type="pt")
    assert texts == [4] + [4, 4] * 3  # diffusers: null prompts and prompts, in every call


def test_embeddings_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    row_bytes = 77 * components()["bert"].config.d_model * 4
    monkeypatch.setattr("ldm_batch.diffusion.text_encoder.MAX_CACHE_BYTES", 3 * row_bytes)
    text = TextEncoder(components()["tokenizer"], components()["bert"], batch_size=4)
    with torch.inference_mode():
        first = text.encode(["red", "blue", "green", "white", "black"])
        assert len(text._cache) == 3
        assert torch.equal(text.encode(["black", "red"]), first[[4, 0]])
    assert text.num_encoded == 6


def test_uneven_steps_are_noted_once() -> None:
    fresh = TextToImage(components(), SchedulerConfig(name="ddim"), batch_size=1)
    for steps in (4, 3, 3):
        fresh.generate(
            [
                Request(
                    inputs={"prompt": "", "negative_prompt": ""},
                    seed=0,
                    call=Call(
                        num_inference_steps=steps, guidance_scale=1.0, eta=0.0, height=64, width=64
                    ),
                )
            ]
        )
    assert fresh.pop_notes() == ["DDIMScheduler is exact only for steps that divide 1000, not 3"]
    assert fresh.pop_notes() == []


def test_guidance_interval_saves_model_calls() -> None:
    rows: list[int] = []
    hook = components()["unet"].register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    sampling = SchedulerConfig(guidance_interval=[0.25, 0.75])
    TextToImage(components(), sampling, batch_size=2).generate(
        [
            Request(
                inputs={"prompt": "red", "negative_prompt": ""},
                seed=0,
                call=Call(num_inference_steps=8, guidance_scale=3.0, eta=0.0, height=64, width=64),
            )
        ]
    )
    hook.remove()
    assert rows == [2, 2, 4, 4, 4, 4, 2, 2]


def test_step_cache_stays_near_the_exact_image_and_reproduces() -> None:
    call = Call(num_inference_steps=40, guidance_scale=2.0, eta=0.0, height=64, width=64)
    batch = [
        Request(inputs={"prompt": p, "negative_prompt": ""}, seed=5, call=call) for p in PROMPTS[:2]
    ]
    others = [replace(request, seed=6) for request in batch]
    exact, other = (
        pipeline("from_model", 2).generate(batch),
        pipeline("from_model", 2).generate(others),
    )
    cached = TextToImage(components(), SchedulerConfig(cache_interval=2), batch_size=2)
    images = cached.generate(batch)
    error, unrelated = (np.abs(np.array(x, float) - exact).mean() for x in (images, other))
    assert 0 < error < 0.5 * unrelated
    assert np.array_equal(cached.generate(batch[1:])[0], images[1])

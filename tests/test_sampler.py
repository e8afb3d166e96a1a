"""The denoising loop and its parts: noise, guidance, step cache, fixed shape, embeddings."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    LDMSuperResolutionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)

from ldm_batch.diffusion.fixed_shape import FixedShape
from ldm_batch.diffusion.noise import make_generator, make_noise
from ldm_batch.diffusion.sampler import Guidance, guide, sample
from ldm_batch.diffusion.step_cache import StepCache
from ldm_batch.errors import ShardError
from ldm_batch.made_as import MadeAs, how_made

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, of numpy


# Noise


def test_small_seeds_are_torchs_own() -> None:
    for seed in (0, 1, 2**32 - 1):
        plain = torch.Generator().manual_seed(seed)
        assert torch.equal(make_noise([make_generator(seed)], (3, 5)),
                           torch.randn((1, 3, 5), generator=plain))  # fmt: skip


def test_torch_ignores_the_high_half_of_a_seed_and_we_do_not() -> None:
    def draw(generator: torch.Generator) -> torch.Tensor:
        return torch.randn(64, generator=generator)

    plain = [draw(torch.Generator().manual_seed(5 + high * 2**32)) for high in range(3)]
    assert torch.equal(plain[0], plain[1])
    assert torch.equal(plain[0], plain[2])
    ours = [draw(make_generator(5 + high * 2**32)) for high in range(3)]
    assert not torch.equal(ours[0], ours[1])
    assert not torch.equal(ours[1], ours[2])


def test_large_seeds_have_known_noise() -> None:
    noise = torch.randn(4, generator=make_generator(2**64 - 1))
    assert noise.tolist() == pytest.approx(KNOWN_NOISE, abs=1e-6)
    many = torch.randn(100_000, generator=make_generator(2**40))
    assert abs(float(many.mean())) < 0.01
    assert abs(float(many.std()) - 1) < 0.01


KNOWN_NOISE = [0.350327, 0.392677, 0.689756, 0.049071]


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_out_of_range_are_refused(seed: int) -> None:
    with pytest.raises(ValueError, match="must be 0 to"):
        make_generator(seed)


# The loop


def ancestral_run(seed_of_the_world: int, rows: list[int]) -> torch.Tensor:
    """Sample rows with DDIM at eta 1 and a stand-in for a network."""
    torch.manual_seed(seed_of_the_world)
    generators = [make_generator(row) for row in rows]
    noise = make_noise(generators, (3, 8, 8))
    return sample(
        lambda x, t: torch.tanh(x) * 0.5,
        noise,
        DDIMScheduler(),
        num_inference_steps=5,
        generators=generators,
        eta=1.0,
    )


def test_all_noise_comes_from_the_generators_given() -> None:
    assert torch.equal(ancestral_run(1, [7, 8, 9]), ancestral_run(2, [7, 8, 9]))
    assert torch.equal(ancestral_run(1, [7, 8, 9])[2:], ancestral_run(2, [9]))


def test_the_given_scheduler_is_not_changed() -> None:
    scheduler = DDIMScheduler()
    before = str(vars(scheduler))
    generators = [make_generator(0)]
    noise = make_noise(generators, (3, 8, 8))
    sample(lambda x, t: x, noise, scheduler, num_inference_steps=3, generators=generators)
    assert str(vars(scheduler)) == before


def test_conditioning_beside_the_latents_is_not_scaled() -> None:
    """diffusers' super-resolution scales it together with the latents; ours never sees it."""
    image = torch.ones(1, 3, 32, 32)
    seen: dict[str, list[float]] = {"ours": [], "diffusers": []}

    class Watcher(UNet2DModel):
        def forward(self, x: torch.Tensor, *_: object) -> SimpleNamespace:
            seen["diffusers"].append(float(x[:, 3:].max()))
            return SimpleNamespace(sample=x[:, :3])

    def watch(latents: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        seen["ours"].append(float(torch.cat([latents, image], dim=1)[:, 3:].max()))
        return latents

    small = {"block_out_channels": (32,), "layers_per_block": 1}
    unet = Watcher(in_channels=6, out_channels=3, down_block_types=("DownBlock2D",),
                   up_block_types=("UpBlock2D",), add_attention=False, **small)  # fmt: skip
    pipe = LDMSuperResolutionPipeline(VQModel(**small), unet, EulerDiscreteScheduler())
    pipe.set_progress_bar_config(disable=True)
    pipe(image, num_inference_steps=4, output_type="pt")
    generators = [make_generator(0)]
    noise = make_noise(generators, (3, 32, 32))
    sample(watch, noise, EulerDiscreteScheduler(), num_inference_steps=4, generators=generators)
    assert seen["ours"] == [1.0] * 4
    assert seen["diffusers"][0] < 0.1


# Guidance


def both_halves(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Predict 1 without text and 3 with it, plus the input."""
    half = len(x) // 2
    return x + torch.cat([torch.full_like(x[:half], 1.0), torch.full_like(x[half:], 3.0)])


def text_half(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return x + 3.0


@pytest.mark.parametrize(("scale", "added"), [(0.0, 1.0), (1.0, 3.0), (2.5, 6.0)])
def test_guidance_is_the_formula(scale: float, added: float) -> None:
    x, t = torch.zeros(2, 1, 4, 4), torch.tensor(500)
    assert torch.equal(guide(both_halves, text_half, Guidance(scale))(x, t), x + added)


def test_guidance_interval() -> None:
    guided = guide(both_halves, text_half, Guidance(2.0, interval=(0.25, 0.75)))
    x = torch.zeros(1, 1, 4, 4)
    added = {t: float(guided(x, torch.tensor(t)).max()) for t in (999, 750, 749, 250, 249, 0)}
    assert added == {999: 3.0, 750: 3.0, 749: 5.0, 250: 5.0, 249: 3.0, 0: 3.0}
    whole = guide(both_halves, text_half, Guidance(2.0))
    assert float(whole(x, torch.tensor(999)).max()) == float(whole(x, torch.tensor(0)).max()) == 5


def test_guidance_rescale_brings_the_contrast_back() -> None:
    x = torch.randn(4, 8, 8, generator=make_generator(0))[:, None]

    def both(latents: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return torch.cat([latents[:4] * 0.5, latents[4:]])

    def run(phi: float) -> torch.Tensor:
        return guide(both, both, Guidance(4.0, rescale=phi))(x, torch.tensor(0))

    assert torch.allclose(run(1.0).std(dim=(1, 2, 3)), x.std(dim=(1, 2, 3)), atol=1e-5)
    assert torch.allclose(run(0.5), (run(0.0) + run(1.0)) / 2, atol=1e-5)
    flat = guide(both, both, Guidance(4.0, rescale=0.7))(torch.ones(4, 1, 8, 8), torch.tensor(0))
    assert torch.isfinite(flat).all()


# Step cache


def small_unets() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    shape = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1,
             "block_out_channels": (32, 32, 64), "norm_num_groups": 8}  # fmt: skip
    text = UNet2DConditionModel(
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=8,
        **shape,
    )
    plain = UNet2DModel(
        down_block_types=("DownBlock2D",) * 3, up_block_types=("UpBlock2D",) * 3, **shape
    )
    return {"text": text.eval(), "plain": plain.eval()}


@pytest.mark.parametrize("kind", ["text", "plain"])
@torch.inference_mode()
def test_step_cache(kind: str) -> None:
    unet = small_unets()[kind]
    x = torch.randn(2, 4, 8, 8, generator=make_generator(0))
    more = {"encoder_hidden_states": torch.ones(2, 5, 16)} if kind == "text" else {}
    deep_calls = []
    unet.mid_block.register_forward_hook(lambda *_: deep_calls.append(1))
    cached = StepCache(unet, 3)
    outs = [cached(x * (1 - 0.1 * i), torch.tensor(500), **more).sample for i in range(7)]
    assert len(deep_calls) == 3
    right = [unet(x * (1 - 0.1 * i), torch.tensor(500), **more).sample for i in range(7)]
    for i in (0, 3, 6):
        assert torch.equal(outs[i], right[i])
    for i in (1, 2, 4, 5):
        error = (outs[i] - right[i]).norm() / right[i].norm()
        assert 0 < float(error) < 0.3
    cached.start()
    assert torch.equal(cached(x, torch.tensor(500), **more).sample, right[0])
    halves = {name: value[:1] for name, value in more.items()}
    alone = cached(x[:1], torch.tensor(500), **halves).sample
    assert torch.equal(alone, unet(x[:1], torch.tensor(500), **halves).sample)


@torch.inference_mode()
def test_step_cache_of_a_unet_with_one_level_caches_nothing() -> None:
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(32,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
    ).eval()
    x = torch.randn(1, 3, 8, 8, generator=make_generator(0))
    cached = StepCache(unet, 3)
    for _ in range(3):
        assert torch.equal(cached(x, torch.tensor(5)).sample, unet(x, torch.tensor(5)).sample)


# Fixed shape


def halving(shape: FixedShape, items: list[int], max_rows: int, calls: list[int]) -> list[Any]:
    """Pictures of a few numbers by a pipeline that can make so many at once."""

    def make() -> list[np.ndarray]:
        calls.append(shape.num_rows)
        if shape.num_rows > max_rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return [np.full((1, 1, 3), item, np.uint8) for item in shape.fill(items)][: len(items)]

    def make_in_fewer(half: FixedShape) -> list[Any]:
        starts = range(0, len(items), half.num_rows)
        parts = (items[start : start + half.num_rows] for start in starts)
        return [one for part in parts for one in halving(half, part, max_rows, calls)]

    return shape.run(make, make_in_fewer)


def test_a_batch_is_filled_up() -> None:
    assert FixedShape(4).fill([1, 2]) == [1, 2, 2, 2]
    assert FixedShape(2).fill([1, 2]) == [1, 2]


def test_out_of_memory_halves_the_shape_for_that_batch() -> None:
    calls: list[int] = []
    shape = FixedShape(8)
    made = halving(shape, [1, 2, 3, 4, 5], 2, calls)
    assert calls == [8, 4, 2, 2, 4, 2]
    assert [int(one.pixels[0, 0, 0]) for one in made] == [1, 2, 3, 4, 5]
    assert {how_made(one) for one in made} == {MadeAs(batch_size=2)}
    assert [note.split(";")[0] for note in shape.pop_notes()] == [
        "out of memory at 8 images per model call: 5 made again in calls of 4",
        "out of memory at 4 images per model call: 5 made again in calls of 2",
    ]
    assert shape.pop_notes() == []
    [again] = halving(shape, [7], 8, calls)
    assert calls[-1] == 8
    assert how_made(again) == MadeAs()
    assert shape.pop_notes() == []


def test_out_of_memory_at_one_image_is_a_shard_error() -> None:
    def make() -> list[int]:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(ShardError, match="one image per model call"):
        FixedShape(1).run(make, lambda half: [])


def test_other_errors_are_not_swallowed() -> None:
    def make() -> list[int]:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        FixedShape(4).run(make, lambda half: [])

"""Super-resolution on a small network of random weights: diffusers' pixels, any size, any tile."""

import json
from functools import cache
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, LDMSuperResolutionPipeline, UNet2DModel, VQModel
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ldm_batch.config import SchedulerConfig
from ldm_batch.diffusion.load import Components, load
from ldm_batch.diffusion.super_resolution import SuperResolution
from ldm_batch.diffusion.tiling import make_tiling, pad, padded_side
from ldm_batch.diffusion.upscale import Upscaler
from ldm_batch.errors import JobError
from ldm_batch.made_as import MadeAs
from ldm_batch.records import Fault, UpscaleRequest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

SETTINGS = {"beta_start": 0.0015, "beta_end": 0.0155, "beta_schedule": "scaled_linear"}


@cache
def parts() -> tuple[UNet2DModel, VQModel]:
    """A UNet that needs multiples of 4 and a first stage of factor 4, 8 channels wide."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=16,
            in_channels=6,
            out_channels=3,
            block_out_channels=(8, 8, 8),
            down_block_types=("DownBlock2D",) * 3,
            up_block_types=("UpBlock2D",) * 3,
            layers_per_block=1,
            norm_num_groups=4,
            add_attention=False,
        )
        vqvae = VQModel(
            block_out_channels=(8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=3,
            num_vq_embeddings=512,
            norm_num_groups=4,
            mid_block_add_attention=False,
        )
        vqvae.quantize.embedding.weight.data.uniform_(-1, 1)
    return unet.eval().requires_grad_(False), vqvae.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    where = tmp_path_factory.mktemp("model")
    plain_diffusers().save_pretrained(where)
    return str(where)


def components() -> Components:
    unet, vqvae = parts()
    own = {"_class_name": "DDIMScheduler", **SETTINGS, "clip_sample": False}
    modules = {"unet": unet, "vqvae": vqvae}
    return Components(None, "LDMSuperResolutionPipeline", modules, own)  # type: ignore[arg-type]


@cache
def pipeline(
    scheduler: str = "from_model", batch_size: int = 3, tile_size: int = 128, overlap: int = 16
) -> SuperResolution:
    return SuperResolution(
        components(),
        SchedulerConfig(name=scheduler),
        batch_size=batch_size,
        tile_size=tile_size,
        tile_overlap=overlap,
    )


def plain_diffusers() -> LDMSuperResolutionPipeline:
    unet, vqvae = parts()
    plain = LDMSuperResolutionPipeline(vqvae, unet, DDIMScheduler(**SETTINGS, clip_sample=False))
    plain.set_progress_bar_config(disable=True)
    return plain


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours with some edges."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / random.uniform(2, 9) + y / random.uniform(2, 9)) for _ in range(3)]
    return ((np.stack(waves, axis=-1) + 1) * 127).astype(np.uint8)


def request(height: int, width: int, seed: int = 0, **call: float) -> UpscaleRequest:
    return UpscaleRequest(picture(height, width, seed), seed, **{"num_inference_steps": 2, **call})  # type: ignore[arg-type]


def test_same_pixels_as_diffusers() -> None:
    images = torch.from_numpy(np.stack([picture(32, 64, i) for i in range(3)]))
    images = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    call = {"num_inference_steps": 8, "output_type": "pt"}
    theirs = plain_diffusers()(images, generator=torch.Generator().manual_seed(5), **call).images
    ours = pipeline()(images, generator=torch.Generator().manual_seed(5), **call).images
    assert (ours - theirs).abs().max() <= 1e-5
    assert ours.std() > 0.05


def test_same_picture_as_diffusers_from_a_pil_image() -> None:
    image = Image.fromarray(picture(64, 32))
    theirs = plain_diffusers()(image, num_inference_steps=4, generator=torch.manual_seed(3))
    ours = pipeline(batch_size=1)(image, num_inference_steps=4, seed=3)
    difference = np.asarray(theirs.images[0]).astype(int) - np.asarray(ours.images[0])
    assert np.abs(difference).max() <= 1
    assert type(ours) is type(theirs)


def test_the_jobs_pictures_are_the_librarys() -> None:
    made = pipeline().generate([request(20, 24, 7), request(24, 18, 8)])
    images = [Image.fromarray(picture(20, 24, 7)), Image.fromarray(picture(24, 18, 8))]
    called = pipeline()(images, num_inference_steps=2, seed=[7, 8]).images
    assert all(np.array_equal(a, np.asarray(b)) for a, b in zip(made, called, strict=True))


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 9), (2, 3), (7, 5), (31, 33), (64, 20), (100, 70), (3, 200)]
)
def test_exactly_four_times_for_any_size(height: int, width: int) -> None:
    (made,) = pipeline(tile_size=64, batch_size=2).generate([request(height, width)])
    assert isinstance(made, np.ndarray)
    assert (made.shape, made.dtype) == ((4 * height, 4 * width, 3), np.uint8)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5000), st.sampled_from([1, 2, 4, 8, 16, 64]))
def test_padding_is_small_and_keeps_friendly_sides(side: int, multiple: int) -> None:
    padded = padded_side(side, multiple)
    assert padded % multiple == 0
    assert 0 <= padded - side < max(multiple, 8, side / 4 + 8)
    assert padded_side(padded, multiple) == padded
    assert padded_side(64 * side, multiple) == 64 * side


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 2), (8, 8)])
def test_padding_reflects_whatever_the_size(size: tuple[int, int]) -> None:
    small = picture(*size)
    large = pad(small, 16, 24)
    assert large.shape == (16, 24, 3)
    assert np.array_equal(large[: size[0], : size[1]], small)
    if size[0] > 1:
        assert np.array_equal(large[size[0], : size[1]], small[-2])


@settings(max_examples=100, deadline=None)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    tile=st.integers(1, 6),
    overlap=st.integers(0, 12),
    scale=st.sampled_from([1, 4]),
)
def test_tiles_cover_everything_once(
    height: int, width: int, tile: int, overlap: int, scale: int
) -> None:
    height, width = 32 * height, 32 * width
    tiling = make_tiling(height, width, tile_size=32 * tile, overlap=overlap, multiple=4)
    total = np.zeros((height * scale, width * scale))
    shares = tiling.weights(scale)
    for place, share in zip(tiling.tiles(1), shares, strict=True):
        top, left = place.top * scale, place.left * scale
        assert place.top % 4 == place.left % 4 == 0
        assert share.min() > 0
        total[top : top + share.shape[0], left : left + share.shape[1]] += share
    assert np.abs(total - 1).max() < 1e-6
    for starts, length in ((tiling.tops, tiling.tile_height), (tiling.lefts, tiling.tile_width)):
        assert all(b - a <= length - overlap for a, b in pairwise(starts))


class Local(torch.nn.Module):
    """A UNet, or a decoder, that looks at one pixel at a time: its tiles must agree exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(block_out_channels=(8, 8, 8), latent_channels=3)
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def forward(self, rows: torch.Tensor, *_: object, **__: object) -> tuple[torch.Tensor]:
        return (rows[:, :3] * 0.7 + rows[:, 3:].tanh(),)

    def decode(self, rows: torch.Tensor) -> object:
        large = torch.nn.functional.interpolate(rows, scale_factor=4.0, mode="nearest")
        return SimpleNamespace(sample=large)


def test_tiles_have_no_seams() -> None:
    def run(tile_size: int) -> np.ndarray:
        scheduler = pipeline()._scheduler
        upscaler = Upscaler(
            Local(), Local(), scheduler, cache_interval=1, tile_size=tile_size, tile_overlap=8
        )
        generators = [torch.Generator().manual_seed(i) for i in range(3)]
        images = [picture(90, 150, i) / np.float32(127.5) - np.float32(1) for i in range(3)]
        call = {"num_inference_steps": 5, "eta": 1.0, "num_rows": 4}
        return np.stack([x.numpy() for x in upscaler.run(images, generators, **call)])

    assert np.abs(run(32) - run(512)).max() < 1e-4


def test_a_picture_in_tiles_is_close_to_the_whole_one() -> None:
    """The network's normalisation sees a tile in place of the picture; no edge may show."""
    (whole,) = pipeline(tile_size=512, batch_size=1).generate([request(128, 128)])
    (tiled,) = pipeline(tile_size=64, batch_size=1).generate([request(128, 128)])
    steps = np.abs(np.diff(tiled.astype(float), axis=0)).mean(axis=(1, 2))
    starts = [4 * top for top in make_tiling(128, 128, tile_size=64, overlap=16, multiple=4).tops]
    edges = [e for start in starts for e in (start, start + 256) if 0 < e < 512]
    assert all(steps[e - 1] < 2 * np.median(steps) for e in edges)
    assert np.abs(tiled.astype(float) - whole).mean() < 20


@pytest.mark.parametrize(("tile_size", "eta"), [(128, 0.0), (128, 1.0), (32, 0.5)])
def test_a_picture_does_not_depend_on_those_beside_it(tile_size: int, eta: float) -> None:
    one = pipeline(batch_size=3, tile_size=tile_size, overlap=8)
    requests = [request(40 - i, 50 + i, i, eta=eta) for i in range(5)]
    assert {one.padded_size(40 - i, 50 + i) for i in range(5)} == {(40, 56)}
    together = one.generate(requests)
    alone = [one.generate([r])[0] for r in requests]
    turned = one.generate(requests[::-1])[::-1]
    for a, b, c in zip(together, alone, turned, strict=True):
        assert np.array_equal(a, b)
        assert np.array_equal(a, c)


def test_the_tile_batch_changes_last_bits_only() -> None:
    (one,) = pipeline(batch_size=1, tile_size=32, overlap=8).generate([request(40, 70)])
    (five,) = pipeline(batch_size=5, tile_size=32, overlap=8).generate([request(40, 70)])
    different = np.abs(one.astype(int) - five) > 1
    assert different.mean() < 0.002  # the codebook may turn a last bit into another entry


ODE = ("ddim", "euler", "heun", "dpmpp_2m", "unipc", "deis", "lms", "pndm")


@pytest.mark.parametrize("name", ODE)
def test_every_scheduler_lands_where_ddim_does(name: str) -> None:
    """The noise predictor of one known picture: x0 is the conditioning, whatever the scheduler."""
    betas = torch.linspace(0.0015**0.5, 0.0155**0.5, 1000) ** 2
    alphas = (1 - betas).cumprod(0)

    class Knows(Local):
        def forward(self, rows: torch.Tensor, t: torch.Tensor, **_: object) -> tuple[torch.Tensor]:
            noisy, clean = rows[:, :3], rows[:, 3:] * 0.8
            level = np.interp(float(t), np.arange(1000), alphas.numpy())
            return ((noisy - level**0.5 * clean) / (1 - level) ** 0.5,)

    scheduler = pipeline(name)._scheduler
    upscaler = Upscaler(
        Knows(), Local(), scheduler, cache_interval=1, tile_size=128, tile_overlap=16
    )
    image = picture(16, 16) / np.float32(127.5) - np.float32(1)
    run = upscaler.run(
        [image], [torch.Generator().manual_seed(0)], num_inference_steps=30, eta=0.0, num_rows=1
    )
    (made,) = [x.permute(1, 2, 0).numpy() for x in run]
    # pndm and deis stop one step short of no noise: a standard deviation of sqrt(beta_start)
    assert np.abs(made[::4, ::4] - 0.8 * image).std() < 0.045


@pytest.mark.parametrize("name", ["ddpm", "euler_a", "dpmpp_sde", "ddim"])
def test_all_noise_comes_from_the_seed(name: str) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    (first,) = pipeline(name).generate([request(16, 16, 4, num_inference_steps=4, eta=1.0)])
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    (second,) = pipeline(name).generate([request(16, 16, 4, num_inference_steps=4, eta=1.0)])
    assert np.array_equal(first, second)


def test_step_cache_keeps_the_features_of_each_tile_apart() -> None:
    def run(interval: int) -> np.ndarray:
        scheduler = SchedulerConfig(cache_interval=interval)
        one = SuperResolution(components(), scheduler, batch_size=2, tile_size=32, tile_overlap=8)
        return np.asarray(one.generate([request(70, 40, 0, num_inference_steps=10)])[0]).astype(int)

    assert np.abs(run(2) - run(1)).mean() < 12


def test_alpha_is_enlarged_and_put_back() -> None:
    image = Image.fromarray(picture(10, 12))
    image.putalpha(Image.fromarray(np.tile(np.arange(12, dtype=np.uint8) * 20, (10, 1))))
    (made,) = pipeline()(image, num_inference_steps=1, seed=0).images
    assert (made.mode, made.size) == ("RGBA", (48, 40))
    alpha = np.asarray(made.getchannel("A")).astype(int)
    assert (np.diff(alpha, axis=1) >= 0).all()
    plain = pipeline()(image.convert("RGB"), num_inference_steps=1, seed=0).images[0]
    assert np.array_equal(np.asarray(made)[..., :3], np.asarray(plain))


def test_output_types_and_sizes_that_differ() -> None:
    call = {"num_inference_steps": 1, "seed": 0}
    same = np.stack([picture(9, 10, 1), picture(9, 10, 2)])
    array = pipeline()(same, output_type="np", **call).images
    assert (array.shape, array.dtype) == ((2, 36, 40, 3), np.float32)
    tensor = pipeline()(same, output_type="pt", return_dict=False, **call)[0]
    assert np.array_equal(tensor.permute(0, 2, 3, 1).numpy(), array)
    floats = pipeline()(same / np.float32(255), output_type="np", **call).images
    assert np.abs(floats - array).max() < 1e-3
    mixed = pipeline()([picture(9, 10), Image.new("L", (3, 50), 90)], **call).images
    assert [image.size for image in mixed] == [(40, 36), (12, 200)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": []}, "at least one image"),
        ({"image": "a.png"}, "str"),
        ({"image": np.zeros((4, 4), np.uint8)}, "shape"),
        ({"image": np.zeros((4, 4, 3), np.int64)}, "dtype int64"),
        ({"image": np.full((4, 4, 3), 2.0)}, "within 0 and 1"),
        ({"image": torch.full((3, 4, 4), -3.0)}, "within -1 and 1"),
        ({"image": torch.full((3, 4, 4), float("nan"))}, "within -1 and 1"),
        ({"image": Image.new("F", (4, 4))}, "mode F"),
        ({"image": [picture(4, 4), picture(9, 9)], "output_type": "np"}, "one size"),
        ({"generator": [torch.Generator()] * 2}, "2 generators for 1 images"),
        ({"seed": [1, 2]}, "2 seeds for 1 images"),
        ({"output_type": "jpg"}, "output_type"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"eta": 1.5}, "eta"),
    ],
)
def test_wrong_arguments_are_value_errors(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline()(**{"image": picture(8, 8), "num_inference_steps": 1, **arguments})


def test_generate_checks_its_requests() -> None:
    with pytest.raises(ValueError, match="0 requests"):
        pipeline().generate([])
    with pytest.raises(ValueError, match="same padded size"):
        pipeline().generate([request(8, 8), request(8, 9)])
    with pytest.raises(ValueError, match="same padded size"):
        pipeline().generate([request(8, 8), request(8, 8, eta=1.0)])


def test_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(rows: torch.Tensor) -> object:
        decoded = torch.linspace(-1, 1, 32).expand(3, 3, 32, 32).clone()
        decoded[1, 0, 5, 5] = float("inf")
        decoded[2] = 0.5
        return SimpleNamespace(sample=decoded)

    monkeypatch.setattr(parts()[1], "decode", decode)
    good, inf, flat = pipeline().generate([request(8, 8, i) for i in range(3)])
    assert isinstance(good, np.ndarray)
    assert isinstance(inf, Fault)
    assert inf.reason == "not_finite"
    assert isinstance(flat, Fault)
    assert flat.reason == "constant_image"
    white = UpscaleRequest(np.full((8, 8, 3), 255, np.uint8), 0, 2)
    assert isinstance(pipeline().generate([request(8, 8), request(8, 8), white])[2], np.ndarray)


def test_out_of_memory_halves_the_shape_for_that_call(monkeypatch: pytest.MonkeyPatch) -> None:
    unet, _ = parts()
    whole = unet.forward

    def forward(rows: torch.Tensor, *args: object, **kwargs: object) -> object:
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return whole(rows, *args, **kwargs)

    monkeypatch.setattr(unet, "forward", forward)
    fresh = SuperResolution(components(), SchedulerConfig(), batch_size=4)
    made = fresh.generate([request(16, 16, i) for i in range(3)])
    assert [image.columns for image in made] == [{"made_as": "batch_size=2"}] * 3
    again = pipeline().as_made(MadeAs(2)).generate([request(16, 16, i) for i in range(3)])
    assert all(np.array_equal(a.pixels, b) for a, b in zip(made, again, strict=True))
    assert any("out of memory at 4" in note for note in fresh.pop_notes())
    monkeypatch.undo()
    [planned] = fresh.generate([request(16, 16)])
    assert isinstance(planned, np.ndarray)
    assert np.array_equal(planned, pipeline(batch_size=4).generate([request(16, 16)])[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"tile_size": 40}, r"upscale\.tile_size: 40 is not a multiple of 32"),
        (
            {"tile_size": 32, "tile_overlap": 16},
            r"upscale\.tile_overlap: 16 is not between 0 and 12",
        ),
    ],
)
def test_wrong_settings_are_job_errors(changes: dict[str, int], message: str) -> None:
    with pytest.raises(JobError, match=message):
        SuperResolution(components(), SchedulerConfig(), **{"batch_size": 1, **changes})


def test_another_pipeline_is_refused() -> None:
    with pytest.raises(JobError, match="LDMTextToImagePipeline"):
        SuperResolution.from_pretrained("demo:text_to_image")


def test_from_pretrained_and_describe(model_folder: str) -> None:
    loaded = SuperResolution.from_pretrained(model_folder, batch_size=3)
    (a,), (b,) = loaded.generate([request(16, 16)]), pipeline().generate([request(16, 16)])
    assert np.array_equal(a, b)
    described = json.loads(json.dumps(loaded.describe()))
    assert described["pipeline"] == "LDMSuperResolutionPipeline"
    assert described["scheduler"] == "DDIMScheduler"
    assert (described["tile_size"], described["scale"]) == (128, 4)


def test_bfloat16_works(model_folder: str) -> None:
    half = SuperResolution.from_pretrained(model_folder, dtype="bfloat16", batch_size=1)
    (made,) = half.generate([request(8, 8)])
    (exact,) = pipeline(batch_size=1).generate([request(8, 8)])
    assert isinstance(made, np.ndarray)
    assert np.abs(made.astype(int) - exact).mean() < 20
    assert half(picture(8, 8), num_inference_steps=1, seed=0).images[0].size == (32, 32)


def test_components_can_be_shared(model_folder: str) -> None:
    first = load(SuperResolution.from_pretrained(model_folder)._components.folder)
    shared = load(first.folder, shared={"vqvae": first["vqvae"]})
    assert shared["vqvae"] is first["vqvae"]

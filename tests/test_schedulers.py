"""Every scheduler against the exact answer, and diffusers' own loop beside ours.

The oracle: for Gaussian data N(mean, std^2) the best prediction of the noise is known in closed
form, so with it in place of the UNet a right sampler returns Gaussian data again, whatever the
scheduler. (The mean comes out a little low because the last training timestep still holds signal.)
"""

import warnings
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import LDMTextToImagePipeline

from ldm_batch.config import ModelConfig, SchedulerConfig
from ldm_batch.config.bounds import refuse
from ldm_batch.config.groups import find_groups
from ldm_batch.config.model import check_scheduler
from ldm_batch.diffusion.load import load
from ldm_batch.diffusion.models.find import find_model
from ldm_batch.diffusion.noise import make_generator, make_noise
from ldm_batch.diffusion.sampler import sample
from ldm_batch.diffusion.schedulers import (
    FROM_MODEL,
    NAMES,
    SCHEDULER_CLASSES,
    effective_settings,
    make_scheduler,
)
from ldm_batch.errors import JobError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, of numpy

MEAN, STD = 0.7, 0.5
SETTINGS = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.02,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "timestep_spacing": "trailing",
    "prediction_type": "epsilon",
}
BROKEN_IN_DIFFUSERS = ("lms", "euler", "euler_a", "heun", "kdpm2", "kdpm2_a")


class Analytic(torch.nn.Module):
    """The best denoiser of Gaussian data, in the place of a UNet."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, prediction_type: str = "epsilon") -> None:
        super().__init__()
        betas = torch.linspace(0.00085**0.5, 0.02**0.5, 1000, dtype=torch.float64) ** 2
        signal = torch.cumprod(1 - betas, 0)
        self.sigmas = ((1 - signal) / signal).sqrt().numpy()
        self.prediction_type = prediction_type
        self.config = SimpleNamespace(in_channels=8, sample_size=32)
        self.num_calls = 0

    def predict(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.num_calls += 1
        sigma = float(np.interp(float(t), np.arange(1000), self.sigmas))
        alpha = 1 / (1 + sigma**2) ** 0.5
        noise = alpha * sigma
        epsilon = (x - alpha * MEAN) * noise / (alpha**2 * STD**2 + noise**2)
        original = (x - noise * epsilon) / alpha
        return {
            "epsilon": epsilon,
            "sample": original,
            "v_prediction": alpha * epsilon - noise * original,
        }[self.prediction_type]

    def forward(self, x: torch.Tensor, t: torch.Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(sample=self.predict(x, t))


class Glass(torch.nn.Module):
    """A first stage that shows the latents themselves."""

    config = SimpleNamespace(scaling_factor=1.0, block_out_channels=[1] * 4)
    device, dtype = torch.device("cpu"), torch.float32

    def decode(self, latents: torch.Tensor) -> SimpleNamespace:
        self.seen = latents
        return SimpleNamespace(sample=latents)


def run_ours(name: str, steps: int, *, eta: float = 0.0, **settings: object) -> torch.Tensor:
    scheduler = make_scheduler({**SETTINGS, **settings}, name)
    generators = [make_generator(seed) for seed in range(2)]
    return sample(
        Analytic(str(settings.get("prediction_type", "epsilon"))).predict,
        make_noise(generators, (8, 32, 32)),
        scheduler,
        num_inference_steps=steps,
        generators=generators,
        eta=eta,
    )


@cache
def demo():
    return load(find_model(ModelConfig(path="demo:text_to_image")))


def run_diffusers(name: str, steps: int) -> torch.Tensor:
    """Run diffusers' own pipeline with the analytic UNet and look at its final latents."""
    pipe = LDMTextToImagePipeline(
        vqvae=demo()["vqvae"],
        bert=demo()["bert"],
        tokenizer=demo()["tokenizer"],
        unet=demo()["unet"],
        scheduler=make_scheduler(SETTINGS, name),
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.unet, pipe.vqvae = Analytic(), Glass()
    latents = make_noise([make_generator(seed) for seed in range(2)], (8, 32, 32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe(["", ""], num_inference_steps=steps, latents=latents, height=256, width=256,
             output_type="pt")  # fmt: skip
    return pipe.vqvae.seen


def is_right(latents: torch.Tensor) -> bool:
    return abs(float(latents.mean()) - MEAN) < 0.045 and 0.43 < float(latents.std()) < 0.54


@pytest.mark.parametrize("name", NAMES)
def test_ours_is_right_and_diffusers_is_where_it_says(name: str) -> None:
    ours, theirs = run_ours(name, 50), run_diffusers(name, 50)
    print(f"{name}: {ours.mean():.3f}/{ours.std():.3f}, {theirs.mean():.3f}/{theirs.std():.3f}")
    assert is_right(ours)
    assert is_right(theirs) == (name not in BROKEN_IN_DIFFUSERS)


def test_every_name_is_an_option_of_its_group() -> None:
    options = find_groups()["scheduler"]
    assert {option.name for option in options} == {*NAMES, FROM_MODEL}
    assert all(option.comment[0].startswith(f"scheduler={option.name}: ") for option in options)


@pytest.mark.parametrize("name", NAMES)
def test_right_for_every_spacing_and_prediction(name: str) -> None:
    spacings = {"leading": "epsilon", "trailing": "v_prediction", "linspace": "epsilon"}
    for spacing, prediction_type in spacings.items():
        settings = {"timestep_spacing": spacing, "prediction_type": prediction_type}
        assert is_right(run_ours(name, 40, **settings)), settings


@pytest.mark.parametrize("name", ["euler", "heun", "lms", "kdpm2", "dpmpp_2m", "unipc", "deis"])
def test_right_with_karras_sigmas(name: str) -> None:
    scheduler = make_scheduler(SETTINGS, name, {"use_karras_sigmas": True})
    generators = [make_generator(0)]
    noise = make_noise(generators, (8, 64, 64))
    arguments = {"num_inference_steps": 30, "generators": generators}
    assert is_right(sample(Analytic().predict, noise, scheduler, **arguments))


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_right_with_eta(eta: float) -> None:
    assert is_right(run_ours("ddim", 250, eta=eta))


@pytest.mark.parametrize("name", NAMES)
def test_error_shrinks_with_steps(name: str) -> None:
    few, many = (abs(float(run_ours(name, steps).std()) - STD) for steps in (6, 60))
    assert many < max(0.5 * few, 0.02)


@pytest.mark.parametrize(
    ("name", "num_calls"), [("ddim", 20), ("dpmpp_2m", 20), ("heun", 39), ("kdpm2", 39)]
)
def test_second_order_schedulers_call_the_model_twice(name: str, num_calls: int) -> None:
    denoiser, generators = Analytic(), [make_generator(0)]
    noise = make_noise(generators, (8, 8, 8))
    scheduler = make_scheduler(SETTINGS, name)
    sample(denoiser.predict, noise, scheduler, num_inference_steps=20, generators=generators)
    assert denoiser.num_calls == num_calls


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps_are_finite(name: str, steps: int) -> None:
    assert torch.isfinite(run_ours(name, steps)).all()


@pytest.mark.parametrize("name", NAMES)
def test_scheduler_state_never_leaks(name: str) -> None:
    scheduler = make_scheduler(SETTINGS, name)

    def run(seed: int) -> torch.Tensor:
        generators = [make_generator(seed)]
        noise = make_noise(generators, (8, 8, 8))
        return sample(
            Analytic().predict, noise, scheduler, num_inference_steps=5, generators=generators
        )

    first = run(1)
    run(2)
    assert torch.equal(first, run(1))


def test_every_class_can_be_named() -> None:
    for name in SCHEDULER_CLASSES:
        assert type(make_scheduler(SETTINGS, name)).__name__ == name


def test_training_facts_come_from_the_model() -> None:
    written = {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
    settings = effective_settings(make_scheduler(written, "heun"))
    assert settings["beta_start"] == 0.0001  # DDIM's default, not Heun's own 0.00085
    assert settings["beta_end"] == 0.02
    assert settings["prediction_type"] == "v_prediction"
    settings = effective_settings(make_scheduler(SETTINGS, "dpmpp_2m", {"solver_order": 3}))
    assert settings["timestep_spacing"] == "trailing"
    assert settings["solver_order"] == 3


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ddimm", {}, "scheduler.name=ddimm: unknown; known are: from_model, ddim"),
        ("FlowMatchEulerDiscreteScheduler", {}, "unknown"),
        ("ddim", {"solver_order": 2}, "scheduler.settings.solver_order=2: DDIMScheduler has no"),
        ("ddim", {"steps_offset": "1"}, "scheduler.settings.steps_offset='1': must be int"),
        ("ddim", {"clip_sample": 1}, "scheduler.settings.clip_sample=1: must be bool"),
        ("ddim", {"timestep_spacing": "even"}, "one of leading, trailing, linspace"),
        ("euler_a", {"timestep_spacing": "even"}, "even is not supported"),
        ("ddim", {"prediction_type": "sample"}, "the model predicts epsilon"),
        ("dpmpp_2m", {"solver_type": "rk4"}, "scheduler.settings.solver_type='rk4'"),
        ("euler", {"use_karras_sigmas": True, "use_beta_sigmas": True}, "scheduler.settings"),
    ],
)
def test_wrong_settings_are_refused(name: str, settings: dict, message: str) -> None:
    with pytest.raises(JobError) as error:
        make_scheduler(SETTINGS, name, settings)
    assert message in str(error.value)


def test_combinations_that_cannot_work_are_refused() -> None:
    with pytest.raises(JobError, match="cannot be used with sample models"):
        make_scheduler({**SETTINGS, "prediction_type": "sample"}, "pndm")
    with pytest.raises(JobError, match="zero terminal SNR"):
        make_scheduler({**SETTINGS, "rescale_betas_zero_snr": True}, "heun")
    with pytest.raises(JobError, match="the model ships FlowMatch"):
        make_scheduler({"_class_name": "FlowMatchEulerDiscreteScheduler"})


def test_ignored_spacing_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    make_scheduler(SETTINGS, "dpmpp_2s")
    assert "ignores the model's timestep_spacing=trailing" in caplog.text


@pytest.mark.parametrize(
    "sampling",
    [
        SchedulerConfig(guidance_interval=[0.5]),
        SchedulerConfig(guidance_interval=[0.8, 0.2]),
        SchedulerConfig(guidance_rescale=2.0),
        SchedulerConfig(cache_interval=0),
    ],
)
def test_sampling_options_are_checked(sampling: SchedulerConfig) -> None:
    with pytest.raises(JobError, match=r"scheduler\.(guidance|cache)_"):
        refuse(check_scheduler("scheduler", sampling))


# Where a multistep scheduler's order is too high


def of_a_mixture(name: str, steps: int) -> torch.Tensor:
    """Numbers of a mixture of Gaussians, whose best denoiser is known; from the same noise."""
    scheduler = make_scheduler(SETTINGS, name)
    signal = torch.cumprod(1 - scheduler.betas.double(), 0).log().numpy()
    means, deviations = torch.tensor([[-1.0, 0.2, 1.1], [0.15, 0.05, 0.2]]).double()
    weights = torch.tensor([0.3, 0.4, 0.3]).double()

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha = float(np.exp(np.interp(float(t), np.arange(1000), signal)))
        variance = alpha * deviations**2 + 1 - alpha
        distance = x.double()[..., None] - alpha**0.5 * means
        density = weights.log() - variance.log() / 2 - distance**2 / (2 * variance)
        score = -(density.softmax(-1) * distance / variance).sum(-1)
        return -((1 - alpha) ** 0.5) * score.float()

    noise = make_noise([make_generator(0)], (1, 32, 32))
    return sample(predict, noise, scheduler, num_inference_steps=steps, generators=[])


def test_lms_of_order_4_is_further_from_the_limit_than_others() -> None:
    """What its option and the map say of it; where diffusers does better, they say it no more."""
    limit = of_a_mixture("heun", 500)

    def error(name: str, steps: int) -> float:
        return float((of_a_mixture(name, steps) - limit).square().mean().sqrt())

    for steps in (15, 25, 50):
        assert error("lms", steps) > 1.2 * error("dpmpp_2m", steps), steps

"""Fewer rows and float32 are for one batch, by the same files and switches, and nothing stays."""

import shutil
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save_file

from ldm_batch.config import ModelConfig, SchedulerConfig
from ldm_batch.diffusion.device_memory import is_out_of_memory, limit_memory, usable_share
from ldm_batch.diffusion.models.files import lock_model
from ldm_batch.diffusion.pipeline import LoadedPipeline
from ldm_batch.diffusion.super_resolution import SuperResolution
from ldm_batch.diffusion.text_to_image import TextToImage
from ldm_batch.errors import JobError, ShardError
from ldm_batch.made_as import MadeAs, how_made
from ldm_batch.records import Call, Made, Request, UpscaleRequest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, of numpy

MODELS = Path(__file__).parent / "fixtures" / "form_1" / "tiny" / "model"
NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")


def text(number: int, side: int = 16) -> Request:
    """Guided, with a negative prompt and the scheduler's own noise."""
    return Request(
        inputs={"prompt": f"a red circle {number}", "negative_prompt": "blue" * (number % 2)},
        seed=number,
        call=Call(num_inference_steps=2, guidance_scale=3.0, eta=1.0, height=side, width=side),
    )


def image(number: int, side: int = 16) -> UpscaleRequest:
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
    return UpscaleRequest(pixels, number, num_inference_steps=2, eta=1.0)


Load = Callable[..., LoadedPipeline]
TASKS = {
    "text_to_image": (TextToImage, UNet2DConditionModel, text),
    "super_resolution": (SuperResolution, UNet2DModel, image),
}


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def load(task: str, folder: Path = MODELS, batch_size: int = 4, **model: Any) -> Any:
    config = ModelConfig(path=str(folder / task), **model)
    lock = lock_model(folder / task)
    return TASKS[task][0].from_config(config, SchedulerConfig(), batch_size=batch_size, lock=lock)


def pixels(made: Sequence[Any]) -> list[bytes]:
    return [(one.pixels if isinstance(one, Made) else one).tobytes() for one in made]


@pytest.fixture
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def limit_rows(patch: pytest.MonkeyPatch, network: type, max_values: int) -> list[int]:
    """Let memory run out in model calls of more values than that; the rows of all calls."""
    whole, rows = network.forward, list[int]()

    def forward(unet: Any, latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        rows.append(len(latents))
        if latents.numel() > max_values:
            raise NO_MEMORY
        return whole(unet, latents, *args, **kwargs)

    patch.setattr(network, "forward", forward)
    return rows


# Fewer rows


def test_one_size_falls_back_and_no_other(task: str, patch: pytest.MonkeyPatch) -> None:
    _, network, ask = TASKS[task]
    small, large = [ask(i, 32) for i in range(3)], [ask(i, 64) for i in range(3)]
    pipeline, half = load(task), load(task, batch_size=2)
    before, expected = pipeline.describe(), pixels(pipeline.generate(small))
    values: list[int] = []
    with pytest.MonkeyPatch.context() as watching:
        whole = network.forward

        def forward(unet: Any, latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            values.append(latents.numel())
            return whole(unet, latents, *args, **kwargs)

        watching.setattr(network, "forward", forward)
        planned_at_half = pixels([*half.generate(large[:2]), *half.generate(large[2:])])
    limit_rows(patch, network, max(values))
    made = pipeline.generate(large)
    assert [how_made(one) for one in made] == [MadeAs(batch_size=2)] * 3
    assert pixels(made) == planned_at_half
    again = pipeline.generate(small)
    assert [how_made(one) for one in again] == [MadeAs()] * 3
    assert pixels(again) == expected
    assert pipeline.describe() == before
    [note] = [note for note in pipeline.pop_notes() if "memory" in note]
    assert note.startswith("out of memory at 4 images per model call: 3 made again in calls of 2;")
    assert pipeline.pop_notes() == []


def test_memory_that_comes_back_is_used(task: str, patch: pytest.MonkeyPatch) -> None:
    _, network, ask = TASKS[task]
    requests = [ask(i) for i in range(4)]
    pipeline = load(task)
    expected = pixels(pipeline.generate(requests))
    limit_rows(patch, network, 0)
    with pytest.raises(ShardError, match="out of memory at one image per model call"):
        pipeline.generate(requests)
    patch.undo()
    assert pixels(pipeline.generate(requests)) == expected


@pytest.mark.parametrize(
    ("told", "is_memory"),
    [
        ("CUDA out of memory. Tried to allocate 20 GiB", True),
        ("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", True),
        ("CUDA error: an illegal memory access was encountered", False),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`", False),
    ],
)
def test_what_says_that_memory_ran_out(told: str, *, is_memory: bool) -> None:
    assert is_out_of_memory(RuntimeError(told)) is is_memory


# float32


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both tiny models with activations that are beyond float16, and not beyond float32."""
    folder = Path(shutil.copytree(MODELS, tmp_path_factory.mktemp("overflow") / "model"))
    for name in TASKS:
        path = folder / name / "unet" / "diffusion_pytorch_model.safetensors"
        weights = {key: value.float() for key, value in load_file(path).items()}
        weights["time_embedding.linear_1.weight"] *= 1e6
        save_file(weights, path)
    return folder


class Twins:
    """The pipelines in float32 that are loaded, seen without being kept."""

    def __init__(self, patch: pytest.MonkeyPatch, look: Callable[[Any], object]) -> None:
        self.weights: list[weakref.ref[Any]] = []
        self.seen: list[object] = []
        whole = LoadedPipeline._in_float32

        def in_float32(pipeline: Any) -> Any:
            twin = whole(pipeline)
            self.weights += [weakref.ref(one) for one in twin._unet.parameters()]
            self.seen.append(look(twin))
            return twin

        patch.setattr(LoadedPipeline, "_in_float32", in_float32)


SWITCHES = {"channels_last": True, "attention": "plain"}


def look(pipeline: Any) -> tuple[bool, set[type], torch.dtype]:
    """How a pipeline's UNet was set up."""
    convolution = pipeline._unet.conv_in.weight
    is_last = convolution.is_contiguous(memory_format=torch.channels_last)
    processors = getattr(pipeline._unet, "attn_processors", {})
    return is_last, {type(one) for one in processors.values()}, convolution.dtype


def test_float32_has_the_jobs_switches_and_is_freed(
    task: str, overflowing: Path, patch: pytest.MonkeyPatch
) -> None:
    ask = TASKS[task][2]
    requests = [ask(0), ask(1)]
    half = load(task, overflowing, 2, dtype="float16", **SWITCHES)
    exact = load(task, overflowing, 2, dtype="float32", **SWITCHES)
    twins = Twins(patch, look)
    made = half.generate(requests)
    assert [how_made(one) for one in made] == [MadeAs(is_float32=True)] * 2
    assert pixels(made) == pixels(exact.generate(requests))
    assert twins.seen == [look(exact)]
    assert look(exact)[0]
    assert look(exact)[1] <= {AttnProcessor}
    assert twins.weights
    assert not [one for one in twins.weights if one() is not None]


def test_weights_that_changed_since_are_refused(task: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(MODELS, tmp_path / "model"))
    half = load(task, folder, 1, dtype="bfloat16")
    for weight in half._vqvae.parameters():
        weight.data.fill_(float("nan"))
    path = folder / task / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({key: value * 2 for key, value in load_file(path).items()}, path)
    with pytest.raises(JobError, match=r"unet/\S+ in \S+ is not the planned one: sha256"):
        half.generate([TASKS[task][2](0)])


def test_float32_without_room_leaves_the_fault(
    task: str, overflowing: Path, patch: pytest.MonkeyPatch
) -> None:
    half = load(task, overflowing, 1, dtype="float16")

    def full(_: Any) -> None:
        raise NO_MEMORY

    patch.setattr(LoadedPipeline, "_in_float32", full)
    [fault] = half.generate([TASKS[task][2](0)])
    assert fault.message.endswith("; no memory to try it in float32")


# A share of a device


def test_workers_that_share_a_device_leave_each_other_room(patch: pytest.MonkeyPatch) -> None:
    assert usable_share(0.5, 80 * 2**30) == pytest.approx(0.5 - 1 / 80)
    assert usable_share(0.25, 2 * 2**30) == 0.125
    told: list[float] = []
    patch.setattr(torch.cuda, "set_per_process_memory_fraction", told.append)
    limit_memory(0.5)
    assert told == []  # no device here
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "current_device", lambda: 0)
    total = {"total_memory": 80 * 2**30}
    patch.setattr(torch.cuda, "get_device_properties", lambda _: type("Card", (), total))
    for share in (None, 0.0, 1.0, 2.0):
        limit_memory(share)
    assert told == []
    limit_memory(0.5)
    assert told == [usable_share(0.5, 80 * 2**30)]

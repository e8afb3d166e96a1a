"""What a device may change and what not, by fakes: numerics, compiled shapes, whose GPU it is."""

import functools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from ldm_batch.cluster.actor import hide_gpus_not_given
from ldm_batch.config import JobConfig, ModelConfig, SchedulerConfig, UpscaleConfig
from ldm_batch.config.cluster import ClusterConfig
from ldm_batch.diffusion import batch_size
from ldm_batch.diffusion.switches import (
    CUBLAS_WORKSPACE,
    compiling_every_shape,
    fix_cuda_numerics,
    set_switches,
)
from ldm_batch.diffusion.text_to_image import TextToImage
from ldm_batch.errors import JobError
from ldm_batch.generate import ldm
from ldm_batch.generate.choose import validate_job
from ldm_batch.records import Call, Request

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, of numpy

MODEL = Path(__file__).parent / "fixtures" / "form_1" / "tiny" / "model" / "text_to_image"
CUDA = torch.backends.cuda


# Numerics

SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], Any]] = {
    "deterministic": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
        True,
    ),
    "flash": (CUDA.flash_sdp_enabled, CUDA.enable_flash_sdp, True),
    "efficient": (CUDA.mem_efficient_sdp_enabled, CUDA.enable_mem_efficient_sdp, True),
    "math": (CUDA.math_sdp_enabled, CUDA.enable_math_sdp, True),
    "cudnn": (CUDA.cudnn_sdp_enabled, CUDA.enable_cudnn_sdp, False),
    "sdp reduction": (
        CUDA.fp16_bf16_reduction_math_sdp_allowed,
        CUDA.allow_fp16_bf16_reduction_math_sdp,
        False,
    ),
    **{
        f"{owner} {name}": (
            functools.partial(getattr, owner, name),
            functools.partial(setattr, owner, name),
            to,
        )
        for owner, name, to in (
            (torch.backends.cudnn, "benchmark", False),
            (torch.backends.cudnn, "deterministic", True),
            (torch.backends.cudnn, "allow_tf32", False),
            (CUDA.matmul, "allow_tf32", False),
            (CUDA.matmul, "allow_fp16_reduced_precision_reduction", False),
            (CUDA.matmul, "allow_bf16_reduced_precision_reduction", False),
            (CUDA.matmul, "allow_fp16_accumulation", False),
            (torch.utils.deterministic, "fill_uninitialized_memory", False),
        )
    },
}
"""What is fixed: how to ask, how to set, and what it is then."""


@pytest.fixture
def numerics(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], dict[str, Any]]]:
    """The process's settings, each the other way round at first, and as they were at the end."""
    before = {name: ask() for name, (ask, _, _) in SETTINGS.items()}
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)
    for _, put, to in SETTINGS.values():
        put(not to)
    CUDA.enable_math_sdp(True)  # a CPU computes by it
    yield lambda: {name: ask() for name, (ask, _, _) in SETTINGS.items()}
    for name, (_, put, _) in SETTINGS.items():
        put(before[name])


def test_everything_that_decides_bits_on_cuda_is_fixed(
    numerics: Callable[[], dict[str, Any]],
) -> None:
    class Part(torch.nn.Module):
        decoder = torch.nn.Identity()

    set_switches(Part(), Part(), ModelConfig(), torch.device("cpu"))  # type: ignore[arg-type]
    CUDA.enable_math_sdp(False)
    assert numerics() == {name: not to for name, (_, _, to) in SETTINGS.items()}
    set_switches(Part(), Part(), ModelConfig(), torch.device("cuda"))  # type: ignore[arg-type]
    assert numerics() == {name: to for name, (_, _, to) in SETTINGS.items()}


def test_what_is_fixed_changes_no_image_on_a_cpu(
    numerics: Callable[[], dict[str, Any]],
) -> None:
    model = ModelConfig(path=str(MODEL))
    pipeline = TextToImage.from_config(model, SchedulerConfig(), batch_size=2)
    call = Call(num_inference_steps=2, guidance_scale=3.0, eta=1.0, height=32, width=32)
    inputs = {"prompt": "a red circle", "negative_prompt": "blue"}
    requests = [Request(inputs=inputs, seed=seed, call=call) for seed in range(2)]
    before = [one.tobytes() for one in pipeline.generate(requests)]  # type: ignore[union-attr]
    fix_cuda_numerics()
    after = [one.tobytes() for one in pipeline.generate(requests)]  # type: ignore[union-attr]
    assert before == after


@pytest.mark.parametrize("given", [":16:8", ":0:0", None])
def test_other_workspaces_of_cublas_are_refused(
    given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if given is None:
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    else:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", given)
    with pytest.raises(JobError, match=rf"CUBLAS_WORKSPACE_CONFIG={given}: .* unset it"):
        fix_cuda_numerics()
    assert not torch.are_deterministic_algorithms_enabled()


# Compiled shapes


class Compiled(torch.nn.Module):
    """A module whose compiled graphs are counted; it is compiled as a UNet is, but for the C++."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.num_graphs = self.num_eager = 0

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_compiling():
            self.num_eager += 1
        return rows * self.weight

    def compile(self, **options: Any) -> None:  # type: ignore[override]
        def count(graph: Any, _: Any) -> Any:
            self.num_graphs += 1
            return graph.forward

        super().compile(backend=count, **options)


class Decoded(torch.nn.Module):
    """A first stage with a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Compiled()


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_dynamo")
def test_every_shape_is_compiled_however_many_there_were() -> None:
    """In the thread that computes, which is not the one that loaded."""
    unet, first_stage = Compiled(), Decoded()
    set_switches(unet, first_stage, ModelConfig(compile=True), torch.device("cpu"))  # type: ignore[arg-type]
    shapes = [(2, side) for side in range(1, 13)]

    def compute() -> None:
        with compiling_every_shape(unet, torch.device("cpu")):
            for shape in (*shapes, *reversed(shapes)):
                first_stage.decoder(unet(torch.zeros(shape)))

    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()
    for module in (unet, first_stage.decoder):
        assert (module.num_graphs, module.num_eager) == (len(shapes), 0)


@pytest.mark.usefixtures("fresh_dynamo")
def test_by_itself_torch_would_leave_the_ninth_uncompiled() -> None:
    unet = Compiled()
    set_switches(unet, Decoded(), ModelConfig(compile=True), torch.device("cpu"))  # type: ignore[arg-type]
    for side in range(1, 13):
        unet(torch.zeros(2, side))
    assert unet.num_eager > 0


def test_what_is_not_compiled_pays_for_nothing() -> None:
    from torch._dynamo import config

    with compiling_every_shape(Compiled(), torch.device("cuda")):
        assert config.recompile_limit < 100


def test_on_cuda_kernels_are_not_chosen_by_timing() -> None:
    from torch._inductor import config

    unet = Compiled()
    unet.compile()
    with compiling_every_shape(unet, torch.device("cuda")):
        assert config.deterministic
    with compiling_every_shape(unet, torch.device("cpu")):
        assert not config.deterministic


# Whose GPU it is


@pytest.mark.parametrize(("given", "seen"), [([], ""), (["1"], "0,1")])
def test_a_worker_without_a_gpu_sees_none(
    given: list[str], seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Context:
        def get_accelerator_ids(self) -> dict[str, list[str]]:
            return {"GPU": given, "TPU": []}

    monkeypatch.setattr(ray, "get_runtime_context", Context)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    hide_gpus_not_given()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen


def job(share: float | None, device: str = "auto") -> JobConfig:
    model = ModelConfig(path=str(MODEL), device=device)
    return JobConfig(
        task="text_to_image",
        model=model,
        upscale=UpscaleConfig(model=model),
        cluster=ClusterConfig(gpus_per_worker=share),
    )


def test_a_job_takes_what_its_cluster_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float | None] = []
    monkeypatch.setattr("ldm_batch.diffusion.device_memory.limit_memory", told.append)
    for share in (None, 0.5, 1.0):
        assert ldm.on_own_device(job(share)) == job(share)
    without = ldm.on_own_device(job(0))
    assert (without.model.device, without.upscale.model.device) == ("cpu", "cpu")
    assert told == [None, 0.5, 1.0, 0]


def test_a_gpu_for_workers_that_have_none_is_a_mistake() -> None:
    with pytest.raises(JobError, match=r"(?s)model\.device: 'cuda', .*gpus_per_worker: 0 gives"):
        validate_job(job(0, device="cuda"))


def test_a_batch_size_is_measured_and_remembered_under_the_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[object] = []

    def find(*_: Any, share: float | None, **__: Any) -> int:
        order.append(share)
        return 4

    monkeypatch.setattr("ldm_batch.diffusion.device_memory.limit_memory", order.append)
    monkeypatch.setattr(batch_size, "find_batch_size", find)
    assert ldm.measure_batch_size(job(0.5), (32, 32)) == 4
    assert order == [0.5, 0.5]
    call = Call(num_inference_steps=2, guidance_scale=3.0, eta=0.0, height=32, width=32)
    model = ModelConfig(path=str(MODEL))
    keys = {batch_size._key(model, call, share) for share in (None, 0.0, 0.25, 0.5, 1.0)}
    assert len(keys) == 3

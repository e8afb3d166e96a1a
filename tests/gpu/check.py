"""What one CUDA card does: how fast, how near its peak, and whether an image is its request's.

One script of a few minutes, for any machine with torch, transformers, diffusers, numpy and Pillow:

    python tests/gpu/check.py                  # a table, and gpu-check.json
    python tests/gpu/check.py --full           # every dtype, batch and switch
    python tests/gpu/check.py --cpu --tiny     # the same code without a card, in a minute

Random weights in the architecture of the paper's text-to-image model (1.54 B parameters as
diffusers holds it), 256 x 256 pixels, guided. Calls of few steps are scaled to 50, and one of 50
proves it. What was not run is listed as unmeasured, with the reason. Exit code 1: a byte was
another one; 2: no card, or too small a one.
"""

from __future__ import annotations

import argparse
import copy
import gc
import hashlib
import itertools
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from ldm_batch.config import ModelConfig, SchedulerConfig  # noqa: E402
from ldm_batch.diffusion.device_memory import (  # noqa: E402
    give_back_memory,
    is_out_of_memory,
    limit_memory,
)
from ldm_batch.diffusion.load import TORCH_DTYPES, Components  # noqa: E402
from ldm_batch.diffusion.models.files import lock_model  # noqa: E402
from ldm_batch.diffusion.switches import apply_switches, decode_dtype  # noqa: E402
from ldm_batch.diffusion.text_to_image import TextToImage  # noqa: E402
from ldm_batch.made_as import how_made  # noqa: E402
from ldm_batch.records import Call, Made, Request  # noqa: E402

import torch  # noqa: E402  isort: skip

NUM_STEPS = 50
"""Steps of the rates that are told."""
GUIDANCE_SCALE = 5.0
PEAK_TFLOPS = {
    "H200": (989, 67),
    "H100 PCIe": (756, 51),
    "H100": (989, 67),
    "A100": (312, 19.5),
    "L40S": (362, 91.6),
    "L4": (121, 30.3),
    "A10": (125, 31.2),
    "V100": (125, 15.7),
    "T4": (65, 8.1),
    "RTX 4090": (165, 82.6),
    "RTX 3090": (71, 35.6),
}
"""Part of a card's name -> dense TFLOPS by its maker, in half precision and in float32."""
FOREIGN = ("pyarrow", "ray", "hydra", "omegaconf", "s3fs")
"""What this must do without."""
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
    "set_alpha_to_one": False,
}


@dataclass(frozen=True)
class Size:
    """How large the model and the calls are."""

    unet: dict[str, Any]
    vqvae: dict[str, Any]
    bert: dict[str, Any]
    side: int
    steps: tuple[int, int]
    """Of a short call and of a shorter one: their difference is the time of a step."""
    cases: tuple[tuple[str, int], ...]
    """dtype and batch size of every rate."""
    same_batch: int
    """Batch size of the comparisons of bytes."""


PAPER = Size(
    unet={
        "block_out_channels": (320, 640, 1280, 1280),
        "attention_head_dim": 8,
        "cross_attention_dim": 1280,
        "sample_size": 32,
    },
    vqvae={
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
    },
    bert={},
    side=256,
    steps=(10, 2),
    cases=(("float32", 16), ("bfloat16", 16), ("bfloat16", 64), ("float16", 16), ("float16", 64)),
    same_batch=16,
)
TINY = Size(
    unet={
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 4,
        "cross_attention_dim": 32,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "sample_size": 4,
    },
    vqvae={
        "block_out_channels": (8, 8, 16, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
        "norm_num_groups": 8,
    },
    bert={"encoder_layers": 1, "encoder_ffn_dim": 64, "encoder_attention_heads": 2}
    | {"head_dim": 16, "d_model": 32, "vocab_size": 64},
    side=32,
    steps=(4, 2),
    cases=(("float32", 2), ("bfloat16", 2)),
    same_batch=2,
)


# The model


def make_parts(size: Size, device: torch.device) -> dict[str, Any]:
    """Random weights in float32: the same ones in every process on the same kind of device."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
        LDMBertConfig,
        LDMBertModel,
    )

    torch.manual_seed(0)
    with torch.device(device):
        parts = {
            "unet": UNet2DConditionModel(**size.unet),
            "vqvae": AutoencoderKL(latent_channels=4, **size.vqvae),
            "bert": LDMBertModel(LDMBertConfig(**size.bert)),
        }
    parts = {name: part.to(device).eval().requires_grad_(False) for name, part in parts.items()}
    return {**parts, "tokenizer": make_tokenizer()}


def make_tokenizer() -> Any:
    """A tokenizer of letters, which every vocabulary has room for."""
    from transformers import BertTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    vocabulary = {word: number for number, word in enumerate(words)}
    return BertTokenizer(vocab=vocabulary, model_max_length=77)


def count_parameters(parts: dict[str, Any]) -> int:
    """Parameters of all parts."""
    modules = [part for part in parts.values() if isinstance(part, torch.nn.Module)]
    return sum(weight.numel() for module in modules for weight in module.parameters())


def as_components(parts: dict[str, Any], model: ModelConfig) -> Components:
    """Copies of the parts as a job would load them: dtypes and switches."""
    dtypes = dict.fromkeys(("unet", "bert"), TORCH_DTYPES[model.dtype])
    dtypes["vqvae"] = decode_dtype(model)
    modules = {
        name: copy.deepcopy(part).to(dtypes[name]) if name in dtypes else part
        for name, part in parts.items()
    }
    made = Components(Path("random"), "LDMTextToImagePipeline", modules, dict(SCHEDULER))
    apply_switches(made, model)
    return made


def make_ours(parts: dict[str, Any], model: ModelConfig, batch_size: int) -> TextToImage:
    """Our pipeline on copies of the parts."""
    return TextToImage(as_components(parts, model), SchedulerConfig(), batch_size=batch_size)


def ask(numbers: Sequence[int], side: int, steps: int) -> list[Request]:
    """Requests of one batch, each with its own text and seed."""
    call = Call(
        num_inference_steps=steps, guidance_scale=GUIDANCE_SCALE, eta=0.0, height=side, width=side
    )
    inputs = [{"prompt": f"a picture of {n}", "negative_prompt": ""} for n in numbers]
    return [Request(inputs=one, seed=n, call=call) for one, n in zip(inputs, numbers, strict=True)]


def digests(made: Sequence[Any]) -> list[str]:
    """SHA-256 of each picture's pixels; a fault's is its message."""
    pixels = [one.pixels if isinstance(one, Made) else one for one in made]
    return [
        hashlib.sha256(one.tobytes()).hexdigest() if hasattr(one, "tobytes") else one.message
        for one in pixels
    ]


# The report


class Skipped(Exception):
    """Why something is not measured."""


class Report:
    """What was measured, what was compared, and what was not."""

    def __init__(self, budget_s: float) -> None:
        self.rates: list[dict[str, Any]] = []
        self.facts: dict[str, Any] = {}
        self.same_bytes: dict[str, bool] = {}
        self.unmeasured: dict[str, str] = {}
        self._ends_at = time.perf_counter() + budget_s

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """One thing to measure: without time or memory for it, or where it cannot be, it is
        unmeasured."""
        print(f"... {name}", file=sys.stderr, flush=True)
        try:
            yield
        except Skipped as why:
            self.unmeasured[name] = str(why)
        except Exception as error:
            told = (
                "out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
            )
            self.unmeasured[name] = told.splitlines()[0]
        give_back_memory()

    def need_time(self) -> None:
        """Raise where there is none left."""
        if time.perf_counter() > self._ends_at:
            raise Skipped("no time left; --budget-s gives more")


def synchronize(device: torch.device) -> None:
    """Wait for the card."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(
    run: Callable[[], object], device: torch.device, rounds: int = 2, *, is_cold: bool = True
) -> float:
    """The shortest time of a run; where it is cold, after one that warms up."""
    times = []
    for _ in range(rounds + is_cold):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[is_cold:])


def peak_tflops(card: str, dtype: str) -> float | None:
    """What a card's maker promises; None: not known here."""
    peaks = [peaks for part, peaks in PEAK_TFLOPS.items() if part in card]
    return float(peaks[0][dtype == "float32"]) if peaks else None


def gemm_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """What one large matrix product reaches."""
    side = 8192 if device.type == "cuda" else 256
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / seconds(lambda: a @ b, device, 5) / 1e12


def flops(pipeline: TextToImage, side: int) -> tuple[float, float]:
    """Floating-point operations of one image: of a step, and of all that is not one."""
    from torch.utils.flop_counter import FlopCounterMode

    counted = []
    for steps in (1, 1, 2):  # the first one brings the texts into the cache
        with FlopCounterMode(display=False) as counter:
            pipeline.generate(ask([0], side, steps))
        counted.append(counter.get_total_flops())
    rows = pipeline.batch_size
    return (counted[2] - counted[1]) / rows, (2 * counted[1] - counted[2]) / rows


# Rates


def measure(
    report: Report,
    size: Size,
    device: torch.device,
    call: Callable[[int], object],
    *,
    who: str,
    model: ModelConfig,
    batch_size: int,
) -> None:
    """Add the rate of one pipeline: its call by a number of steps, scaled to 50."""
    report.need_time()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    many, few = (seconds(lambda steps=steps: call(steps), device) for steps in size.steps)
    per_step = (many - few) / (size.steps[0] - size.steps[1])
    if per_step <= 0:
        raise Skipped("fewer steps took longer: something else keeps the machine busy")
    whole_s = many + (NUM_STEPS - size.steps[0]) * per_step
    switches = [name for name in ("channels_last", "compile") if getattr(model, name)]
    rate = batch_size / whole_s
    work = report.facts["flops_per_step"] * NUM_STEPS + report.facts["flops_beside"]
    reached = rate * work / 1e12
    peak = peak_tflops(report.facts["card"], model.dtype)
    gemm = report.facts["gemm_tflops"].get(model.dtype)
    report.rates.append(
        {
            "who": " ".join([who, *switches]),
            "dtype": model.dtype,
            "batch_size": batch_size,
            "ms_per_step": round(per_step * 1000, 3),
            "images_per_s": round(rate, 4),
            "tflops": round(reached, 4),
            "share_of_peak": round(reached / peak, 4) if peak else None,
            "share_of_gemm": round(reached / gemm, 4) if gemm else None,
            "peak_memory_gib": round(
                (torch.cuda.max_memory_allocated() - report.facts["original_bytes"]) / 2**30, 2
            )
            if device.type == "cuda"
            else None,
        }
    )


def measure_diffusers(
    report: Report, size: Size, parts: dict[str, Any], dtype: str, batch: int
) -> None:
    """diffusers' own pipeline, eager, by torch's own numerics."""
    from diffusers import DDIMScheduler, LDMTextToImagePipeline

    device = parts["unet"].device
    modules = {
        name: copy.deepcopy(part).to(TORCH_DTYPES[dtype]) if name != "tokenizer" else part
        for name, part in parts.items()
    }
    decode = modules["vqvae"].decode
    # Its conversion to numpy fails on bfloat16.
    modules["vqvae"].decode = lambda latents: SimpleNamespace(sample=decode(latents).sample.float())
    settings = {name: value for name, value in SCHEDULER.items() if name != "_class_name"}
    pipe = LDMTextToImagePipeline(scheduler=DDIMScheduler(**settings), **modules)
    pipe.set_progress_bar_config(disable=True)
    prompts = [f"a picture of {n}" for n in range(batch)]

    def call(steps: int) -> object:
        return pipe(
            prompts,
            height=size.side,
            width=size.side,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE_SCALE,
            output_type="np",
        )

    model = ModelConfig(dtype=dtype)
    measure(report, size, device, call, who="diffusers", model=model, batch_size=batch)


def measure_ours(
    report: Report, size: Size, parts: dict[str, Any], model: ModelConfig, batch: int
) -> TextToImage:
    """Our pipeline."""
    pipeline, starts = make_ours(parts, model, batch), itertools.count(0, batch)

    def call(steps: int) -> object:
        start = next(starts)  # other texts each time: embeddings of known ones are kept
        made = pipeline.generate(ask(range(start, start + batch), size.side, steps))
        if any("out of memory" in note for note in pipeline.pop_notes()):
            raise Skipped("out of memory")
        return made

    device = parts["unet"].device
    measure(report, size, device, call, who="ldm_batch", model=model, batch_size=batch)
    return pipeline


def prove_scaling(report: Report, size: Size, parts: dict[str, Any]) -> None:
    """One call of 50 steps beside what the short ones say of it."""
    report.need_time()
    dtype, batch = size.cases[-3] if len(size.cases) > 2 else size.cases[-1]
    wanted = ("ldm_batch", dtype, batch)
    rates = [
        one["images_per_s"]
        for one in report.rates
        if (one["who"], one["dtype"], one["batch_size"]) == wanted
    ]
    if not rates:
        raise Skipped(f"no rate of {dtype} at {batch} to prove")
    pipeline = make_ours(parts, ModelConfig(dtype=dtype), batch)
    pipeline.generate(ask(range(batch), size.side, size.steps[1]))
    requests = ask(range(batch, 2 * batch), size.side, NUM_STEPS)
    took = seconds(lambda: pipeline.generate(requests), pipeline.device, 1, is_cold=False)
    report.facts["scaled_to_50_over_50"] = {
        "dtype": dtype,
        "batch_size": batch,
        "ratio": round(rates[0] * took / batch, 4),
    }


def measure_kernels(report: Report, size: Size, parts: dict[str, Any]) -> None:
    """Time of kernels over time on the wall, of three batches."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    if parts["unet"].device.type != "cuda":
        raise Skipped("no CUDA device")
    report.need_time()
    pipeline = make_ours(parts, ModelConfig(dtype="bfloat16"), size.same_batch)
    requests = ask(range(size.same_batch), size.side, size.steps[0])
    pipeline.generate(requests)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        start = time.perf_counter()
        for _ in range(3):
            pipeline.generate(requests)
        torch.cuda.synchronize()
        wall_s = time.perf_counter() - start
    events = [one for one in profiled.events() if one.device_type == DeviceType.CUDA]
    kernels_s = sum(one.time_range.elapsed_us() for one in events) / 1e6
    report.facts["kernels_over_wall"] = round(kernels_s / wall_s, 4)


def measure_graphs(report: Report, size: Size, parts: dict[str, Any]) -> None:
    """The UNet's call as a CUDA graph beside the same call by itself."""
    device = parts["unet"].device
    if device.type != "cuda":
        raise Skipped("no CUDA device")
    report.need_time()
    unet = copy.deepcopy(parts["unet"]).to(torch.bfloat16)
    rows, side = 2 * size.same_batch, size.side // 8
    given = {"device": device, "dtype": torch.bfloat16}
    latents = torch.randn(rows, 4, side, side, **given)
    texts = torch.randn(rows, 77, unet.config.cross_attention_dim, **given)
    timestep = torch.tensor(500, device=device)

    @torch.inference_mode()
    def call() -> torch.Tensor:
        return unet(latents, timestep, encoder_hidden_states=texts, return_dict=False)[0]  # type: ignore[no-any-return]

    eager, side_stream, graph = call().clone(), torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side_stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side_stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side_stream)
    with torch.cuda.graph(graph):
        captured = call()
    graph.replay()
    report.same_bytes["CUDA graph of the UNet's call"] = torch.equal(captured, eager)
    plain_s, graph_s = seconds(call, device, 5), seconds(graph.replay, device, 5)
    report.facts["unet_call_ms"] = {
        "rows": rows,
        "eager": round(plain_s * 1000, 3),
        "graph": round(graph_s * 1000, 3),
    }


# Bytes


def compare_places(report: Report, size: Size, pipeline: TextToImage) -> list[str]:
    """An image at other places, in another order, beside others; the first images' digests."""
    batch, steps = size.same_batch, size.steps[1]

    def made(numbers: Sequence[int]) -> list[str]:
        return digests(pipeline.generate(ask(numbers, size.side, steps)))

    first = made(range(batch))
    report.same_bytes["again"] = made(range(batch)) == first
    report.same_bytes["in another order"] = made(range(batch)[::-1]) == first[::-1]
    moved = [made([*range(100, 100 + place), 0])[place] for place in range(batch)]
    report.same_bytes["at every place, beside others"] = set(moved) == {first[0]}
    report.facts["different_images"] = len(set(first)) == batch
    return first


def compare_out_of_memory(report: Report, size: Size, pipeline: TextToImage) -> None:
    """A batch that does not fit is made as by half as many rows, and the next one as planned."""
    batch, device = size.same_batch, pipeline.device
    requests, small = (
        ask(range(batch), size.side, size.steps[1]),
        pipeline.with_batch_size(batch // 2),
    )
    planned = digests(pipeline.generate(requests))
    halves = [requests[: batch // 2], requests[batch // 2 :]]
    expected = [one for half in halves for one in digests(small.generate(half))]
    with limited(pipeline, small, requests) as how:
        made = pipeline.generate(requests)
    ways = {str(how_made(one)) for one in made}
    if ways == {""}:
        raise Skipped("memory did not run out")
    report.facts["out_of_memory_by"] = how
    right = ways == {f"batch_size={batch // 2}"} and digests(made) == expected
    report.same_bytes["after memory ran out"] = right
    synchronize(device)
    report.same_bytes["as planned after that"] = digests(pipeline.generate(requests)) == planned


@contextmanager
def limited(
    pipeline: TextToImage, small: TextToImage, requests: Sequence[Request]
) -> Iterator[str]:
    """Memory for half a batch and not for a whole one: truly on a card, else by a UNet that says
    so."""
    if pipeline.device.type == "cuda":
        total = torch.cuda.get_device_properties(pipeline.device).total_memory
        peaks = []
        for one, rows in ((pipeline, requests), (small, requests[: small.batch_size])):
            give_back_memory()
            torch.cuda.reset_peak_memory_stats()
            one.generate(rows)
            peaks.append(torch.cuda.max_memory_reserved())
        give_back_memory()
        torch.cuda.set_per_process_memory_fraction(sum(peaks) / 2 / total)
        try:
            yield "a limit of the card's memory"
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return
    unet = pipeline._unet
    forward = unet.forward

    def small_only(latents: torch.Tensor, *given: Any, **named: Any) -> Any:
        if len(latents) > 2 * small.batch_size:
            raise torch.OutOfMemoryError("out of memory, as was asked for")
        return forward(latents, *given, **named)

    unet.forward = small_only
    try:
        yield "a UNet that says so"
    finally:
        unet.forward = forward


def compare_processes(report: Report, first: list[str], arguments: list[str], count: int) -> None:
    """The same images in other processes, which run at once where there are several."""
    report.need_time()
    command = [sys.executable, __file__, *arguments, "--child", str(1 / count)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    told = [process.communicate() for process in running]
    for process, (_, errors) in zip(running, told, strict=True):
        if process.returncode:
            raise Skipped(f"a process ended with {process.returncode}: {errors.strip()[-200:]}")
    name = "in a second process" if count == 1 else f"by {count} workers on one card"
    report.same_bytes[name] = all(json.loads(output) == first for output, _ in told)


def run_child(size: Size, device: torch.device, share: float, dtype: str) -> None:
    """What another process makes of the same requests."""
    limit_memory(share)
    parts = make_parts(size, device)
    for part in (part for name, part in parts.items() if name != "tokenizer"):
        part.to(TORCH_DTYPES[dtype])  # in place: two of these share a card
    pipeline = make_ours(parts, ModelConfig(dtype=dtype), size.same_batch)
    made = pipeline.generate(ask(range(size.same_batch), size.side, size.steps[1]))
    print(json.dumps(digests(made)))


def compare_float32(report: Report, device: torch.device) -> None:
    """What is not finite in bfloat16 comes out as in float32, and the copy's weights are freed."""
    parts = make_parts(TINY, device)
    with tempfile.TemporaryDirectory() as temporary:
        folder = save_model(parts, Path(temporary))
        model, lock = ModelConfig(path=str(folder), dtype="bfloat16"), lock_model(folder)
        scheduler = SchedulerConfig()
        half = TextToImage.from_config(model, scheduler, batch_size=2, lock=lock)
        whole = replace(model, dtype="float32")
        exact = TextToImage.from_config(whole, scheduler, batch_size=2, lock=lock)
        requests = ask(range(2), TINY.side, 2)
        expected = digests(exact.generate(requests))
        for weight in half._vqvae.parameters():
            weight.data.fill_(float("nan"))
        gc.collect()
        before = _num_parameters()
        made = half.generate(requests)
        ways = {str(how_made(one)) for one in made}
        report.same_bytes["NaN in bfloat16, made in float32"] = (
            ways == {"float32"} and digests(made) == expected
        )
        report.same_bytes["memory of the copy in float32 returns"] = _num_parameters() == before


def _num_parameters() -> int:
    return sum(isinstance(one, torch.nn.Parameter) for one in gc.get_objects())


def save_model(parts: dict[str, Any], folder: Path) -> Path:
    """A model's folder in diffusers' layout."""
    from diffusers import DDIMScheduler, LDMTextToImagePipeline

    settings = {name: value for name, value in SCHEDULER.items() if name != "_class_name"}
    scheduler = DDIMScheduler(**settings)
    LDMTextToImagePipeline(scheduler=scheduler, **parts).save_pretrained(folder)
    return folder


def compare_compiled(report: Report, device: torch.device) -> None:
    """Ten sizes by a compiled model: the same bytes in whatever order they come."""
    parts, sizes = make_parts(TINY, device), [32 + 16 * n for n in range(10)]
    model = ModelConfig(dtype="bfloat16" if device.type == "cuda" else "float32", compile=True)
    found = []
    for order in (sizes, sizes[::-1]):
        torch._dynamo.reset()
        pipeline, made = make_ours(parts, model, 2), dict[int, list[str]]()
        for side in order:
            report.need_time()  # each compiles for seconds
            made[side] = digests(pipeline.generate(ask([0, 1], side, 2)))
        found.append(made)
    report.same_bytes["ten sizes compiled, in either order"] = found[0] == found[1]


# The whole


def check(size: Size, device: torch.device, arguments: argparse.Namespace) -> Report:
    """Measure and compare everything that there is time and a device for."""
    report = Report(arguments.budget_s)
    parts = make_parts(size, device)
    is_cuda = device.type == "cuda"
    report.facts |= {
        "card": torch.cuda.get_device_name(device) if is_cuda else "no card: a CPU",
        "architecture": "paper" if size is PAPER else "tiny",
        "num_parameters": count_parameters(parts),
        "original_bytes": 4 * count_parameters(parts),
        "side": size.side,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "gemm_tflops": {
            dtype: round(gemm_tflops(device, TORCH_DTYPES[dtype]), 4)
            for dtype in dict.fromkeys(dtype for dtype, _ in size.cases)
        },
    }
    counted = flops(make_ours(parts, ModelConfig(), 1), size.side)
    report.facts |= dict(zip(("flops_per_step", "flops_beside"), counted, strict=True))
    cases = size.cases
    if arguments.full:
        cases = tuple((dtype, batch) for dtype in TORCH_DTYPES for batch in (1, 4, 16, 64, 128))
    reset_numerics()
    for dtype, batch in cases:
        with report.part(f"diffusers {dtype} at {batch}"):
            measure_diffusers(report, size, parts, dtype, batch)
    for dtype, batch in cases:
        with report.part(f"ldm_batch {dtype} at {batch}"):
            measure_ours(report, size, parts, ModelConfig(dtype=dtype), batch)
    with report.part("one call of 50 steps"):
        prove_scaling(report, size, parts)
    compare(report, size, parts, arguments)
    with report.part("kernel time over wall"):
        measure_kernels(report, size, parts)
    with report.part("CUDA graph of the UNet's call"):
        measure_graphs(report, size, parts)
    for model, batch in switched(size, arguments):
        names = " ".join(name for name in ("channels_last", "compile") if getattr(model, name))
        with report.part(f"ldm_batch {names} {model.dtype} at {batch}"):
            if model.compile and not is_cuda and not arguments.full:
                raise Skipped("compiled on a CPU with --full only")
            measure_ours(report, size, parts, model, batch)
    with report.part("ten sizes compiled, in either order"):
        if not is_cuda and not arguments.full:
            raise Skipped("compiled on a CPU with --full only")
        compare_compiled(report, device)
    if not arguments.full:
        report.unmeasured["other batches, channels_last, other dtypes compiled"] = "--full"
    return report


def switched(size: Size, arguments: argparse.Namespace) -> list[tuple[ModelConfig, int]]:
    """What is measured with switches on."""
    dtype, batch = size.cases[1]
    models = [(ModelConfig(dtype=dtype, compile=True), batch)]
    if arguments.full:
        models += [
            (ModelConfig(dtype=dtype, channels_last=True, compile=is_compiled), batch)
            for dtype, batch in size.cases
            for is_compiled in (False, True)
        ]
    return models


def reset_numerics() -> None:
    """torch's own settings, as diffusers alone would find them: `make_ours` fixed ours."""
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = True
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = True
    torch.backends.cuda.enable_cudnn_sdp(True)


def compare(
    report: Report, size: Size, parts: dict[str, Any], arguments: argparse.Namespace
) -> None:
    """Everything that must be the same bytes, but for what is compiled."""
    device, dtype = parts["unet"].device, size.cases[1][0]
    pipeline, first = make_ours(parts, ModelConfig(dtype=dtype), size.same_batch), list[str]()
    with report.part("at other places, in another order"):
        first = compare_places(report, size, pipeline)
    with report.part("after memory ran out"):
        compare_out_of_memory(report, size, pipeline)
    with report.part("NaN in bfloat16, made in float32"):
        compare_float32(report, device)
    del pipeline
    give_back_memory()
    given = [*(["--cpu"] if arguments.cpu else []), *(["--tiny"] if arguments.tiny else [])]
    with report.part("in a second process"):
        compare_processes(report, first, given, 1)
    with report.part("by 2 workers on one card"):
        if device.type != "cuda":
            raise Skipped("no CUDA device")
        compare_processes(report, first, given, 2)


def tell(report: Report) -> str:
    """The report as Markdown."""
    facts = report.facts
    size = f"{facts['num_parameters'] / 1e9:.3g} B parameters ({facts['architecture']})"
    pixels = f"{facts['side']} x {facts['side']} pixels"
    lines = [
        f"{facts['card']}, torch {facts['torch']}, {size}, {pixels}, guided, {NUM_STEPS} steps:",
        "",
        "| who | dtype | batch | images/s | ms per step | of the peak | of one GEMM | GiB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for rate in report.rates:
        shares = [rate["share_of_peak"], rate["share_of_gemm"]]
        told = ["unmeasured" if share is None else f"{share:.0%}" for share in shares]
        memory = rate["peak_memory_gib"]
        lines.append(
            f"| {rate['who']} | {rate['dtype']} | {rate['batch_size']} | "
            f"{rate['images_per_s']:.3g} | {rate['ms_per_step']:.3g} | {told[0]} | {told[1]} | "
            f"{'unmeasured' if memory is None else memory} |"
        )
    lines += ["", "| the same bytes | |", "| --- | --- |"]
    lines += [
        f"| {name} | {'yes' if is_same else 'NO'} |" for name, is_same in report.same_bytes.items()
    ]
    for name in ("scaled_to_50_over_50", "kernels_over_wall", "unet_call_ms", "out_of_memory_by"):
        if name in facts:
            lines.append(f"\n{name}: {facts[name]}")
    if report.unmeasured:
        lines += ["", "Unmeasured:"]
        lines += [f"- {name}: {why}" for name, why in report.unmeasured.items()]
    return "\n".join(lines)


def quiet() -> None:
    """Leave out what libraries say of casts and of their own next versions."""
    from diffusers.utils import logging

    warnings.simplefilter("ignore")
    logging.set_verbosity_error()


def main() -> int:
    """Run the check; 1 where a byte was another one, 2 where there is no card."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--full", action="store_true", help="every dtype, batch and switch")
    parser.add_argument("--cpu", action="store_true", help="without a card")
    parser.add_argument("--tiny", action="store_true", help="a model of a few thousand parameters")
    parser.add_argument("--json", default="gpu-check.json", help="where the numbers go")
    parser.add_argument("--budget-s", type=float, default=None, help="seconds; then it skips")
    parser.add_argument("--child", type=float, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.budget_s is None:
        arguments.budget_s = 36_000.0 if arguments.full else 240.0
    if not arguments.cpu and not torch.cuda.is_available():
        print("no CUDA device here; --cpu --tiny tries the script without one", file=sys.stderr)
        return 2
    quiet()
    if arguments.cpu:
        torch.set_num_threads(1)
    device = torch.device("cpu" if arguments.cpu else "cuda")
    size = TINY if arguments.tiny else PAPER
    if arguments.child is not None:
        run_child(size, device, arguments.child, size.cases[1][0])
        return 0
    started = time.perf_counter()
    try:
        report = check(size, device, arguments)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        print("the card has too little memory for two copies of the model", file=sys.stderr)
        return 2
    loaded = {name.split(".")[0] for name, module in sys.modules.items() if module is not None}
    found = {
        **report.facts,
        "rates": report.rates,
        "same_bytes": report.same_bytes,
        "unmeasured": report.unmeasured,
        "foreign_modules": sorted(loaded & {*FOREIGN}),
        "seconds": round(time.perf_counter() - started, 1),
        "size": asdict(size),
    }
    Path(arguments.json).write_text(json.dumps(found, indent=2) + "\n")
    print(tell(report))
    return 0 if all(report.same_bytes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

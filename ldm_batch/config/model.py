"""Which model draws, by which scheduler, and the checks of that; see call.py for its arguments.

Must not look at a model's files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ldm_batch.config.bounds import one_of, within
from ldm_batch.config.loras import check_loras
from ldm_batch.config.places import PLACE

Dtype = Literal["float32", "bfloat16", "float16"]
Attention = Literal["sdpa", "plain"]
Device = Literal["auto", "cpu", "cuda"]
Offload = Literal["none", "model", "sequential"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
ATTENTIONS: tuple[Attention, ...] = get_args(Attention)
DEVICES: tuple[Device, ...] = get_args(Device)
OFFLOADS: tuple[Offload, ...] = get_args(Offload)


@dataclass
class ModelConfig:
    """Which model draws, from a local folder or a pinned hub revision, and how it computes."""

    engine: str = "ldm"
    """`ldm`: the paper's pipelines, by our own denoising loop; `diffusers`: later models, by
    diffusers' own pipelines; `random_pixels`: no model, to measure everything around one."""
    pipeline: str | None = None
    """An older name of `task` and `engine` together; not for new jobs."""
    path: str | None = field(default=None, metadata=PLACE)
    """Local folder in diffusers' layout; `demo:text_to_image` names a model shipped with us."""
    repo_id: str | None = None
    """Hub repository, used when `path` is not set."""
    revision: str | None = None
    """Full commit sha of the hub repository (40 hexadecimal digits); null: the plan's, or for a
    new dataset what its `main` is then. Branches and tags are refused."""
    variant: str | None = None
    """Which weights of several: `fp16` for `model.fp16.safetensors`; null: the usual ones."""
    scheduler_config: dict[str, Any] = field(default_factory=dict)
    """Laid over the model's own scheduler_config.json, which says how it was trained, before a
    scheduler is made of it; each scheduler takes what it knows."""
    dtype: str = "float32"
    """`float32`, `bfloat16` or `float16`; half precision is very slow on CPUs."""
    device: str = "auto"
    """`auto` (CUDA where the worker has it, else CPU), `cpu` or `cuda`."""
    decode_dtype: str | None = None
    """dtype of the first stage; null: float32 where the model is float16, else the model's."""
    channels_last: bool = False
    """Keep convolution weights channels last: faster on CUDA in half precision."""
    attention: str = "sdpa"
    """`sdpa`, or `plain`: attention written out, slower, for comparison."""
    compile: bool = False
    """Compile UNet and decoder with torch.compile: minutes at start, faster steps on CUDA."""
    text_encoder_dtype: str | None = None
    """Engine `diffusers`: dtype of the text encoders; null: the model's."""
    vae_slicing: bool = False
    """Engine `diffusers`: decode the images of a batch one by one, in less memory."""
    vae_tiling: bool = False
    """Engine `diffusers`: decode large images in tiles, in less memory; edges may show."""
    # OmegaConf would name a wrong element without its place.
    loras: Any = field(default_factory=list)
    """Engine `diffusers`: LoRAs, fused into the weights in this order when the model is loaded:
    `[{path: FILE.safetensors, scale: 0.8}]`; of the hub `{repo_id: ..., revision: ..., file: ...}`.
    Needs the extra `lora`."""
    offload: str = "none"
    """Engine `diffusers`, of use on CUDA: `model` keeps the parts in the processor's memory and
    brings each to the device while it computes, `sequential` layer by layer, in far less memory and
    far slower; `none`. Needs the extra `offload`."""


def check_model(path: str, model: ModelConfig, *, is_needed: bool) -> Iterator[str]:
    """Problems of the section at `path`, a line each.

    Args:
        is_needed: whether the job loads this model; of others only the switches are checked.
    """
    yield from one_of(f"{path}.dtype", model.dtype, DTYPES)
    if model.decode_dtype is not None:
        yield from one_of(f"{path}.decode_dtype", model.decode_dtype, DTYPES)
    if model.text_encoder_dtype is not None:
        yield from one_of(f"{path}.text_encoder_dtype", model.text_encoder_dtype, DTYPES)
    yield from one_of(f"{path}.attention", model.attention, ATTENTIONS)
    yield from one_of(f"{path}.device", model.device, DEVICES)
    yield from one_of(f"{path}.offload", model.offload, OFFLOADS)
    yield from check_loras(f"{path}.loras", model.loras)
    if model.offload != "none" and model.device == "cpu":
        yield (
            f"{path}.offload: {model.offload}, but {path}.device=cpu computes where the parts are "
            "kept; leave one of them out"
        )
    if model.variant is not None and not is_variant(model.variant):
        yield f"{path}.variant: {model.variant!r} is no name of a variant, such as fp16"
    if is_needed:
        yield from _check_place(path, model)


def _check_place(path: str, model: ModelConfig) -> Iterator[str]:
    if model.path is None and model.repo_id is None:
        yield f"{path}.path: not set; name a local folder, or set {path}.repo_id"
    if model.path is not None and model.repo_id is not None:
        yield f"{path}.path: set together with {path}.repo_id; keep one of the two"
    if model.path is None and model.revision is not None and not is_commit_sha(model.revision):
        yield (
            f"{path}.revision: {model.revision!r} is not a full commit sha (40 hexadecimal "
            "digits); a branch or tag can change between two runs; null takes today's main and "
            "keeps it"
        )


def is_variant(name: str) -> bool:
    """Tell whether a text can be part of the names of weights: no path, no pattern."""
    return re.fullmatch(r"\w{1,32}", name) is not None


def is_commit_sha(revision: str | None) -> bool:
    """Tell whether a hub revision is pinned for good."""
    return revision is not None and len(revision) == 40 and set(revision) <= set("0123456789abcdef")


@dataclass
class SchedulerConfig:
    """The diffusers scheduler and what is changed of the model's own settings."""

    name: str = "from_model"
    """A name of the closed list (`ddim`, `dpmpp_2m`, ...) or `from_model`."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Overrides of the scheduler's own arguments, e.g. `timestep_spacing: trailing`."""
    guidance_interval: list[float] = field(default_factory=lambda: [0.0, 1.0])
    """Part of the way from noise (0) to image (1) that is guided; [0, 1]: all of it."""
    guidance_rescale: float = 0.0
    """How far guidance's gain in contrast is taken back, 0 (not) to 1 (Lin et al. 2023: 0.7)."""
    cache_interval: int = 1
    """Deep UNet features are computed at every n-th step and reused between; 1: at every step."""


def check_scheduler(path: str, scheduler: SchedulerConfig) -> Iterator[str]:
    """Problems of the options of the denoising loop, a line each; what a scheduler makes of its
    own settings only it can tell."""
    interval = scheduler.guidance_interval
    if len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= 1:
        yield f"{path}.guidance_interval: {interval} is not [start, stop] within 0 and 1"
    yield from within(f"{path}.guidance_rescale", scheduler.guidance_rescale, 0, 1)
    yield from within(f"{path}.cache_interval", scheduler.cache_interval, 1, 100)


def check_switches(path: str, model: ModelConfig, scheduler: SchedulerConfig) -> Iterator[str]:
    """Problems of a model and a scheduler together, a line each."""
    if model.compile and scheduler.cache_interval > 1:
        yield f"{path}.compile: cannot be combined with a cache_interval above 1"
    if model.compile and model.offload != "none":
        yield f"{path}.compile: cannot be combined with {path}.offload={model.offload}"

"""Switches that make a loaded model faster on its device without changing what it computes.

They change last bits, which is why they are part of the job's fingerprint.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ldm_batch.config import ModelConfig
from ldm_batch.config.model import ATTENTIONS
from ldm_batch.diffusion.load import TORCH_DTYPES, Components
from ldm_batch.errors import JobError

if TYPE_CHECKING:
    from diffusers import ModelMixin

CUBLAS_WORKSPACE = ":4096:8"
"""Eight buffers of 4 MiB: what `ldm_batch.diffusion` sets for its process, unless it is set."""
MAX_COMPILED_SHAPES = 2**20
"""More than a plan can have: each takes seconds at least to compile."""


def decode_dtype(model: ModelConfig) -> torch.dtype:
    """Return the first stage's dtype: as asked for, else one that does not overflow.

    First stages overflow in float16 (diffusers marks them `force_upcast`), not in bfloat16.
    """
    name = model.decode_dtype or ("float32" if model.dtype == "float16" else model.dtype)
    if name not in TORCH_DTYPES:
        raise JobError(f"model.decode_dtype={name}: must be one of {', '.join(TORCH_DTYPES)}")
    return TORCH_DTYPES[name]


def apply_switches(components: Components, model: ModelConfig) -> None:
    """Set memory format, attention kernel, compilation and CUDA's numerics on fresh components.

    Raises:
        JobError: an unknown choice.
    """
    unet = components["unet"]
    set_switches(unet, components["vqvae"], model, unet.device)


def set_switches(
    denoiser: ModelMixin, vae: ModelMixin, model: ModelConfig, device: torch.device
) -> None:
    """The same for a UNet or transformer, and a first stage, that compute on `device`.

    Raises:
        JobError: an unknown choice.
    """
    if model.attention not in ATTENTIONS:
        raise JobError(f"model.attention={model.attention}: must be one of {', '.join(ATTENTIONS)}")
    if device.type == "cuda":
        fix_cuda_numerics()
    if model.channels_last:
        denoiser.to(memory_format=torch.channels_last)
        vae.to(memory_format=torch.channels_last)
    if model.attention == "plain":
        _use_plain_attention(denoiser)
    if model.compile:
        denoiser.compile(dynamic=False)
        vae.decoder.compile(dynamic=False)


def _use_plain_attention(unet: ModelMixin) -> None:
    from diffusers.models.attention_processor import AttnProcessor

    for module in unet.modules():  # UNet2DModel has attention, but no set_attn_processor
        if hasattr(module, "set_processor"):
            module.set_processor(AttnProcessor())


def fix_cuda_numerics() -> None:
    """Choose kernels by rule, not by timing, none that adds up in another order each time, and none
    that rounds on the way; all of it is the process's.

    Raises:
        JobError: cuBLAS was told other workspaces, by which it would choose other kernels.
    """
    found = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    if found != CUBLAS_WORKSPACE:
        raise JobError(
            f"CUBLAS_WORKSPACE_CONFIG={found}: images on CUDA depend on it, and are the same each "
            f"time with {CUBLAS_WORKSPACE} alone; unset it, before Python starts"
        )
    torch.use_deterministic_algorithms(True)
    # Memory that nobody wrote to is not filled: nothing reads it.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    matmul = torch.backends.cuda.matmul
    matmul.allow_tf32 = False
    matmul.allow_fp16_reduced_precision_reduction = False
    matmul.allow_bf16_reduced_precision_reduction = False
    matmul.allow_fp16_accumulation = False
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(False)
    # Of attention, FlashAttention where shape and dtype let it, then the memory-efficient one, then
    # the plain one: by rule. cuDNN's chooses a plan by heuristics of its own version.
    torch.backends.cuda.enable_flash_sdp(True)
    torch.backends.cuda.enable_mem_efficient_sdp(True)
    torch.backends.cuda.enable_math_sdp(True)
    torch.backends.cuda.enable_cudnn_sdp(False)


@contextmanager
def compiling_every_shape(denoiser: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Inside this block `torch.compile` compiles every shape, however many came before; nothing
    changes where nothing is to be compiled.

    By itself it runs what comes after eight shapes uncompiled, so that last bits would depend on
    the order of arrival; on CUDA it also times kernels and takes the quickest. torch has these
    settings for each thread, so that they are set where it computes.
    """
    if getattr(denoiser, "_compiled_call_impl", None) is None:
        yield
        return
    from torch._dynamo import config as dynamo
    from torch._inductor import config as inductor

    limits: dict[str, Any] = {
        "recompile_limit": MAX_COMPILED_SHAPES,
        "accumulated_recompile_limit": MAX_COMPILED_SHAPES,
        "fail_on_recompile_limit_hit": True,
    }
    with dynamo.patch(**limits), inductor.patch(deterministic=device.type == "cuda"):
        yield

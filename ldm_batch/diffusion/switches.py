"""Switches that make a loaded model faster on its device without changing what it computes.

They change last bits, which is why they are part of the job's fingerprint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ldm_batch.config import ModelConfig
from ldm_batch.config.model import ATTENTIONS
from ldm_batch.diffusion.load import TORCH_DTYPES, Components
from ldm_batch.errors import JobError

if TYPE_CHECKING:
    from diffusers import ModelMixin


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
        _fix_cuda_numerics()
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


def _fix_cuda_numerics() -> None:
    """Choose kernels by rule, not by timing, and never round float32 to TF32."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False

"""Keep the parts of a pipeline in the processor's memory, and each on its device while it computes.

By diffusers, with accelerate's hooks. Must not know what is drawn.
"""

from __future__ import annotations

from typing import Any

import torch

from ldm_batch.config import ModelConfig

DEVICES = ("cuda",)
"""Kinds of devices with a memory of their own: on any other there is nothing to bring."""


def offload_on(model: ModelConfig, device: torch.device) -> str:
    """How parts are kept off a device, by what the model says and what the device is: `none`,
    `model` or `sequential`."""
    return model.offload if device.type in DEVICES else "none"


def offload(pipe: Any, how: str, device: torch.device) -> None:
    """Bring the parts of a pipeline to `device` only while they compute; before, they are in the
    processor's memory.

    Args:
        how: see `offload_on`; `none` does nothing.
    """
    if how == "model":
        pipe.enable_model_cpu_offload(device=device)
    if how == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)

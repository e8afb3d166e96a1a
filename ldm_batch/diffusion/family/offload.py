"""Keep the parts of a pipeline in the processor's memory, and each on its device while it computes.

By diffusers, with accelerate's hooks. Must not know what is drawn.
"""

from __future__ import annotations

from typing import Any

import torch

from ldm_batch.config import ModelConfig
from ldm_batch.errors import JobError

DEVICES = ("cuda",)
"""Kinds of devices with a memory of their own."""


def storage_device(model: ModelConfig, device: torch.device) -> torch.device:
    """Where the parts of a model are kept: on its device, or in the processor's memory.

    Raises:
        JobError: the device has no memory of its own to spare.
    """
    if model.offload == "none":
        return device
    if device.type not in DEVICES:
        raise JobError(
            f"model.offload={model.offload}: this worker has no CUDA device, and computes where "
            "the parts are kept; leave it out"
        )
    return torch.device("cpu")


def offload(pipe: Any, model: ModelConfig, device: torch.device) -> None:
    """Bring the parts of a pipeline to `device` only while they compute, as the model says."""
    if model.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    if model.offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)

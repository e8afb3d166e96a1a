"""What images depend on besides their requests, as JSON for provenance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ldm_batch.config import SchedulerConfig
from ldm_batch.diffusion.load import Components
from ldm_batch.diffusion.schedulers import effective_settings

if TYPE_CHECKING:
    from diffusers import SchedulerMixin


def describe(
    components: Components,
    scheduler: SchedulerMixin,
    sampling: SchedulerConfig,
    *,
    batch_size: int,
    num_threads: int | None,
) -> dict[str, Any]:
    """Describe a loaded pipeline: classes, effective scheduler settings, numerics, versions.

    Args:
        num_threads: of torch, while it computes; None: as many as torch has now.
    """
    import diffusers
    import transformers

    unet, vqvae = components["unet"], components["vqvae"]
    is_cuda = unet.device.type == "cuda"
    modules = sorted(components.modules.items())
    return {
        "pipeline": components.pipeline,
        "components": {name: type(module).__name__ for name, module in modules},
        "scheduler": type(scheduler).__name__,
        "scheduler_settings": effective_settings(scheduler),
        "guidance_interval": list(sampling.guidance_interval),
        "guidance_rescale": sampling.guidance_rescale,
        "cache_interval": sampling.cache_interval,
        "dtype": str(unet.dtype).removeprefix("torch."),
        "decode_dtype": str(vqvae.dtype).removeprefix("torch."),
        "device": unet.device.type,
        "device_name": torch.cuda.get_device_name(unet.device) if is_cuda else "cpu",
        "batch_size": batch_size,
        "num_threads": num_threads or torch.get_num_threads(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }

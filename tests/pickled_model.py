"""The demo model as older repositories hold theirs: pickled, with the paper's betas misnamed."""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ldm_batch.config import ModelConfig
from ldm_batch.diffusion.load import load
from ldm_batch.diffusion.models.find import find_model

DEMO = find_model(ModelConfig(path="demo:text_to_image"))
WEIGHTS = {
    "bert": ("model.safetensors", "pytorch_model.bin"),
    "unet": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    "vqvae": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
}
HUBS = {
    "_class_name": "DDIMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "timestep_values": None,
    "trained_betas": None,
}
"""What the repository of the paper's text-to-image model says in its scheduler_config.json."""


def pickled(folder: Path, **options: Any) -> Path:
    """The demo model as older pipelines were published: all weights as `.bin`."""
    shutil.copytree(DEMO, folder)
    for name, (safe, bin_name) in WEIGHTS.items():
        torch.save(load_file(folder / name / safe), folder / name / bin_name, **options)
        (folder / name / safe).unlink()
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value
        for name, module in load(folder).modules.items()
        if isinstance(module, torch.nn.Module)
        for key, value in module.state_dict().items()
    }


def assert_same_weights(one: Path, other: Path) -> None:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)

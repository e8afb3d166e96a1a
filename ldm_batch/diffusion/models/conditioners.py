"""Conditions that diffusers has no class for: the paper's class embedder and spatial rescaler.

Loaded from an imported model's folder. Must not know what they condition.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ldm_batch.diffusion.models.side_file import (
    CONDITION_WEIGHTS,
    ClassEmbedder,
    Rescaler,
    read_side_file,
)
from ldm_batch.errors import JobError

Module = TypeVar("Module", bound=torch.nn.Module)


class ClassTokens(torch.nn.Module):
    """Class numbers `[B]` to one token each, `[B, 1, dim]`."""

    def __init__(self, said: ClassEmbedder) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(said.num_classes, said.dim)

    def forward(self, classes_B: torch.Tensor) -> torch.Tensor:
        """Look the classes up."""
        return self.embedding(classes_B[:, None])  # type: ignore[no-any-return]


class SpatialRescaler(torch.nn.Module):
    """Maps `[B, in_channels, H, W]` to `[B, out_channels, H / 2**n, W / 2**n]`."""

    def __init__(self, said: Rescaler) -> None:
        super().__init__()
        self.num_halvings = said.num_halvings
        self.channel_mapper = torch.nn.Conv2d(
            said.in_channels, said.out_channels, kernel_size=1, bias=said.has_bias
        )

    def forward(self, maps_BCHW: torch.Tensor) -> torch.Tensor:
        """Halve bilinearly, then mix the channels."""
        for _ in range(self.num_halvings):
            maps_BCHW = torch.nn.functional.interpolate(
                maps_BCHW, scale_factor=0.5, mode="bilinear"
            )
        return self.channel_mapper(maps_BCHW)  # type: ignore[no-any-return]


def load_class_embedder(folder: Path) -> ClassTokens:
    """Load the class embedder of an imported model, in evaluation mode, without gradients.

    Raises:
        JobError: the model has none, or its weights do not fit.
    """
    said = read_side_file(folder).class_embedder
    if said is None:
        raise JobError(f"{folder}: has no class_embedder; it is no model of classes")
    return _load(ClassTokens(said), folder / "class_embedder")


def load_rescaler(folder: Path) -> SpatialRescaler:
    """Load the rescaler of an imported model, in evaluation mode, without gradients.

    Raises:
        JobError: the model has none, or its weights do not fit.
    """
    said = read_side_file(folder).rescaler
    if said is None:
        raise JobError(f"{folder}: has no rescaler; it is no model of segmentations")
    return _load(SpatialRescaler(said), folder / "rescaler")


def _load(module: Module, folder: Path) -> Module:
    path = folder / CONDITION_WEIGHTS
    try:
        module.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise JobError(f"model file {path} does not load: {error}") from error
    for name, value in module.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise JobError(f"model file {path}: weight {name} is not finite")
    return module.eval().requires_grad_(False)

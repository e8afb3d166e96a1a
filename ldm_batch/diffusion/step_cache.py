"""Reuse of deep UNet features between steps (DeepCache, Ma et al. 2023, section 3.2).

Neighbouring steps change the deep features little, so only every n-th step computes the whole
UNet; the steps between run its outermost blocks on the features of the last whole step. diffusers
0.42 has no such cache for UNets (its cache hooks are for transformers). Must not know what the UNet
denoises; it works for `UNet2DConditionModel` and `UNet2DModel` alike.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from diffusers import ModelMixin


class StepCache:
    """A UNet whose deep features live for `interval` calls; holds no weights of its own.

    The UNet given is never changed: both variants of it are shallow copies that share its blocks.
    """

    def __init__(self, unet: ModelMixin, interval: int) -> None:
        """Wrap `unet`; with `interval` 1, or one level only, all is computed at every call."""
        self._interval = interval
        self._features = _Features()
        self._whole = self._shallow = unet
        if interval > 1 and len(unet.up_blocks) > 1:
            recorder = _Recorder(unet.up_blocks[-2], self._features)
            self._whole = _with_blocks(unet, up={-2: recorder})
            self._shallow = _shallow(unet, self._features)
        self._calls_since_whole = 0
        self._num_rows = 0

    def start(self) -> None:
        """Forget the features: every batch starts with a whole step."""
        self._calls_since_whole = 0
        self._features.value = None

    def __call__(self, latents: torch.Tensor, *args: object, **kwargs: object) -> Any:
        """Run the UNet with its own arguments; a batch of another size is always run whole."""
        reuse = (
            self._features.value is not None
            and self._calls_since_whole < self._interval - 1
            and self._num_rows == len(latents)
        )
        self._calls_since_whole = self._calls_since_whole + 1 if reuse else 0
        self._num_rows = len(latents)
        return (self._shallow if reuse else self._whole)(latents, *args, **kwargs)


class _Features:
    """The input of the outermost up block at the last whole step."""

    value: torch.Tensor | None = None


class _Recorder(nn.Module):
    """An up block that notes what it gives on."""

    def __init__(self, block: Any, features: _Features) -> None:
        super().__init__()
        self.block = block
        self.resnets = block.resnets
        self.has_cross_attention = getattr(block, "has_cross_attention", False)
        self._features = features

    def forward(self, *args: object, **kwargs: object) -> torch.Tensor | None:
        self._features.value = self.block(*args, **kwargs)
        return self._features.value


class _SkippedDown(nn.Module):
    """In place of a deep down block: as many skip connections as the block has, of no content."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self._num_skips = len(block.resnets) + (1 if block.downsamplers else 0)

    def forward(
        self, hidden_states: torch.Tensor, **_: object
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        return hidden_states, (hidden_states,) * self._num_skips


class _SkippedMid(nn.Module):
    """In place of the middle block: nothing."""

    def forward(self, hidden_states: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return hidden_states


class _SkippedUp(nn.Module):
    """In place of a deep up block: takes its skip connections, gives the noted features."""

    def __init__(self, block: Any, features: _Features) -> None:
        super().__init__()
        self.resnets = block.resnets
        self._features = features

    def forward(self, *_: object, **__: object) -> torch.Tensor | None:
        return self._features.value


def _shallow(unet: ModelMixin, features: _Features) -> nn.Module:
    """The UNet with everything between its outermost blocks skipped."""
    depth = len(unet.down_blocks)
    shallow = _with_blocks(
        unet,
        down={i: _SkippedDown(unet.down_blocks[i]) for i in range(1, depth)},
        up={i: _SkippedUp(unet.up_blocks[i], features) for i in range(depth - 1)},
    )
    if unet.mid_block is not None:
        shallow._modules["mid_block"] = _SkippedMid()
    return shallow


def _with_blocks(
    unet: ModelMixin,
    down: dict[int, nn.Module] | None = None,
    up: dict[int, nn.Module] | None = None,
) -> nn.Module:
    """Copy a UNet's shell with some blocks exchanged; weights are shared, not copied."""
    shell: nn.Module = copy.copy(unet)
    # Private: a shallow copy shares its table of modules with the UNet, so that setting a block by
    # its name would change both; the public way, a deep copy, would copy the weights.
    shell._modules = dict(unet._modules)
    for name, changes in (("down_blocks", down or {}), ("up_blocks", up or {})):
        blocks = list(unet._modules[name])
        for index, block in changes.items():
            blocks[index] = block
        shell._modules[name] = nn.ModuleList(blocks)
    return shell

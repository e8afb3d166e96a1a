"""Measures of pictures that training and evaluation share."""

import torch
from torch import Tensor

from ldm_batch.demo.checker import check
from ldm_batch.demo.train.scenes import to_pixels
from ldm_batch.demo.world import SceneSpec


def psnr(images: Tensor, target: Tensor) -> float:
    """Mean peak signal-to-noise ratio in dB of (N, 3, H, W) images in -1..1."""
    error = ((images.clamp(-1, 1) - target) / 2).pow(2).flatten(1).mean(1)
    return float((-10 * torch.log10(error + 1e-10)).mean())


def share_right(images: Tensor, specs: list[SceneSpec]) -> float:
    """Share of (N, 3, 64, 64) images in -1..1 that the checker passes."""
    passed = [check(p, s).is_right for p, s in zip(to_pixels(images), specs, strict=True)]
    return sum(passed) / len(passed)

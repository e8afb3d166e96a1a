"""The codebook of the super-resolution autoencoder: k-means on latents, rare ones not forgotten."""

import random

import torch
from diffusers import VQModel
from torch import Tensor

from ldm_batch.demo.train.details import draw_details
from ldm_batch.demo.train.scenes import to_tensor

NUM_SAMPLES = 24_000
NUM_ITERATIONS = 6
BIN_SIDE = 0.15
THINNING = 0.7
CHUNK = 4000


@torch.no_grad()
def install_codebook(autoencoder: VQModel, num_codes: int, seed: int) -> None:
    """Give the latents mean 0 and deviation 1, and fit the codebook to them, in place."""
    rng = random.Random(f"codebook {seed}")
    generator = torch.Generator().manual_seed(seed)
    batches = [to_tensor(draw_details(rng, 32, 48)) for _ in range(24)]
    latents = torch.cat([autoencoder.encode(images).latents for images in batches])
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    before, after = autoencoder.quant_conv, autoencoder.post_quant_conv
    before.weight.div_(deviation[:, None, None, None])
    before.bias.copy_((before.bias - mean) / deviation)
    after.bias.add_(after.weight[:, :, 0, 0] @ mean)
    after.weight.mul_(deviation[None, :, None, None])
    latents = (latents - mean[:, None, None]) / deviation[:, None, None]
    points = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
    codes = fit_codes(_thin(points, generator), num_codes, generator)
    autoencoder.quantize.embedding.weight.copy_(codes)


def fit_codes(points: Tensor, num_codes: int, generator: torch.Generator) -> Tensor:
    """Fit (num_codes, width) centres to (N, width) points by Lloyd's iteration."""
    codes = points[torch.randperm(len(points), generator=generator)[:num_codes]].clone()
    for _ in range(NUM_ITERATIONS):
        nearest = torch.cat([torch.cdist(c, codes).argmin(1) for c in torch.split(points, CHUNK)])
        counts = torch.bincount(nearest, minlength=num_codes)[:, None]
        sums = torch.zeros_like(codes).index_add_(0, nearest, points)
        fresh = points[torch.randint(0, len(points), (num_codes,), generator=generator)]
        codes = torch.where(counts > 0, sums / counts.clamp(min=1), fresh)
    return codes


def _thin(points: Tensor, generator: torch.Generator) -> Tensor:
    """Draw points, seldom from where they are dense, so that flat colours do not take all codes."""
    bins = (points / BIN_SIDE).floor().long()
    _, bin_of, counts = torch.unique(bins, dim=0, return_inverse=True, return_counts=True)
    weights = counts[bin_of].float().pow(-THINNING)
    return points[torch.multinomial(weights, NUM_SAMPLES, generator=generator)]

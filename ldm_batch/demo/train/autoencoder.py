"""The autoencoder of text-to-image: 64 x 64 pixels <-> 8 x 8 latents that bear noise.

Latents are decoded with noise of up to `MAX_NOISE` of their own deviation added in training, so the
UNet that will make them need not be exact; a judge of shape and place on the latents keeps them
telling, and is thrown away.
"""

import random
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ldm_batch.demo.render import render
from ldm_batch.demo.train.loop import step_generator
from ldm_batch.demo.train.metrics import psnr, share_right
from ldm_batch.demo.train.scenes import (
    NO_SHAPE,
    Windows,
    draw_laid_out,
    draw_windows,
    to_tensor,
)
from ldm_batch.demo.world import SceneSpec, draw_specs, layout

LATENT_CHANNELS = 8
MAX_NOISE = 0.7
EDGE_CONTRAST = 0.15


class JudgedAutoencoder(nn.Module):
    """An autoencoder and the judge that reads shape (6 logits) and offset (2) from each latent."""

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.judge = nn.Conv2d(LATENT_CHANNELS, NO_SHAPE + 3, 1)


@dataclass
class AutoencoderStage:
    """Training of the autoencoder; windows of 32 px and whole scenes by turns."""

    model: JudgedAutoencoder
    seed: int
    name: str = "autoencoder"
    validation: list[SceneSpec] = field(default_factory=lambda: draw_specs(99, 128, split="test"))

    def loss(self, step: int) -> Tensor:
        """Edge-weighted L1 + L2 of the decoding of noisy latents, plus the judge's loss."""
        rng = random.Random(f"autoencoder {self.seed} {step}")
        generator = step_generator(self.seed, step)
        windows = draw_windows(rng, 8, 64) if step % 2 == 0 else draw_windows(rng, 16, 32)
        latents = self.model.autoencoder.encode(windows.images).latent_dist.mode()
        deviation = latents.detach().std((0, 2, 3), keepdim=True)
        amount = MAX_NOISE * torch.rand(len(latents), 1, 1, 1, generator=generator)
        noise = amount * deviation * torch.randn(latents.shape, generator=generator)
        images = self.model.autoencoder.decode(latents + noise).sample
        return edge_weighted_loss(images, windows.images) + self._judge_loss(latents, windows)

    def evaluate(self) -> dict[str, float]:
        """Share of reconstructions that the checker passes, with and without latent noise."""
        images = render_scenes(self.validation, seed=7)
        latents = self.model.autoencoder.encode(images).latent_dist.mode()
        deviation = latents.std((0, 2, 3), keepdim=True)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
        decoded = self.model.autoencoder.decode(latents).sample
        noisy = self.model.autoencoder.decode(latents + 0.5 * deviation * noise).sample
        return {
            "psnr_db": psnr(decoded, images),
            "right": share_right(decoded, self.validation),
            "right_at_noise_0.5": share_right(noisy, self.validation),
        }

    def _judge_loss(self, latents: Tensor, windows: Windows) -> Tensor:
        judged = self.model.judge(latents)
        shape_loss = F.cross_entropy(judged[:, : NO_SHAPE + 1], windows.shapes)
        offset_loss = F.mse_loss(judged[:, NO_SHAPE + 1 :], windows.offsets)
        return 0.05 * (shape_loss + offset_loss) + 1e-4 * latents.pow(2).mean()


def edge_weighted_loss(images: Tensor, target: Tensor) -> Tensor:
    """L1 + L2 with pixels within 2 px of an edge weighted five times, weights averaging 1."""
    local_range = F.max_pool2d(target, 5, 1, 2) + F.max_pool2d(-target, 5, 1, 2)
    weights = 1 + 4 * (local_range.amax(1, keepdim=True) > EDGE_CONTRAST).float()
    error = (images - target).abs()
    return (weights / weights.mean() * (error + error.pow(2))).mean()


@torch.no_grad()
def fold_statistics(autoencoder: AutoencoderKL, seed: int) -> None:
    """Give the latents mean 0 and deviation 1 by changing the convolutions around them."""
    rng = random.Random(f"fold {seed}")
    scenes = [draw_laid_out(rng) for _ in range(512)]
    images = to_tensor([render(spec, placements) for spec, placements in scenes])
    latents = torch.cat(
        [autoencoder.encode(part).latent_dist.mode() for part in torch.split(images, 64)]
    )
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    before, after = autoencoder.quant_conv, autoencoder.post_quant_conv
    before.weight[:LATENT_CHANNELS].div_(deviation[:, None, None, None])
    before.bias[:LATENT_CHANNELS] = (before.bias[:LATENT_CHANNELS] - mean) / deviation
    after.bias.add_(after.weight[:, :, 0, 0] @ mean)
    after.weight.mul_(deviation[None, :, None, None])


def render_scenes(specs: list[SceneSpec], seed: int) -> Tensor:
    """Draw one image of each scene, (N, 3, 64, 64) in -1..1."""
    rng = random.Random(seed)
    return to_tensor([render(spec, layout(spec, rng)) for spec in specs])

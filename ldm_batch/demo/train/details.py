"""Pairs of high- and low-resolution pictures for super-resolution, drawn, never photographed."""

import random
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from ldm_batch.demo.render import render
from ldm_batch.demo.train.scenes import to_tensor, vary_colours
from ldm_batch.demo.world import Placement, SceneSpec, Split, draw_spec, layout

SCALE = 4
SCENE_SIDE = 64
DOWNSAMPLING = (Image.Resampling.BICUBIC,) * 4 + (Image.Resampling.BOX, Image.Resampling.LANCZOS)


def downsample(
    image: Image.Image, resampling: Image.Resampling = Image.Resampling.BICUBIC
) -> Image.Image:
    """Make an image four times smaller, by default as the evaluation does."""
    return image.resize((image.width // SCALE, image.height // SCALE), resampling)


def draw_details(rng: random.Random, num: int, size: int) -> list[Image.Image]:
    """Draw size x size pixel windows of training scenes at high resolution, around edges."""
    return [_draw_detail(rng, size) for _ in range(num)]


def _draw_detail(rng: random.Random, size: int) -> Image.Image:
    spec = draw_spec(rng, split="train")
    placements = layout(spec, rng)
    colours = vary_colours(spec, rng, 60) if rng.random() < 0.3 else None
    x, y = _detail_corner(placements, rng, size // SCALE)
    window = (float(x), float(y), size / SCALE)
    return render(spec, placements, size=size, window=window, colours=colours)


def _detail_corner(
    placements: tuple[Placement, ...], rng: random.Random, extent: int
) -> tuple[int, int]:
    """Corner of a window of `extent` low-resolution pixels, on one, somewhere over an object."""
    place = rng.choice(placements)

    def corner(centre: float) -> int:
        wished = centre + rng.uniform(-1, 1) * place.radius - extent / 2
        return round(min(SCENE_SIDE - extent, max(0.0, wished)))

    return corner(place.x), corner(place.y)


def draw_scenes_in_detail(
    seed: int, num: int, *, size: int = 256, split: Split = "test"
) -> list[Image.Image]:
    """Draw whole scenes at high resolution."""
    rng = random.Random(seed)
    specs = [draw_spec(rng, split=split) for _ in range(num)]
    return [render(spec, layout(spec, rng), size=size) for spec in specs]


@dataclass(frozen=True)
class Imitations:
    """Scenes as text-to-image would paint them: low-resolution images (N, 3, 64, 64) in -1..1."""

    scenes: list[tuple[SceneSpec, tuple[Placement, ...]]]
    images: Tensor

    def draw_pairs(self, rng: random.Random, num: int, size: int) -> tuple[Tensor, Tensor]:
        """Draw true high-resolution windows of `size` pixels and the imitations of them."""
        extent = size // SCALE
        details, imitations = [], []
        for index in rng.choices(range(len(self.scenes)), k=num):
            spec, placements = self.scenes[index]
            x, y = _detail_corner(placements, rng, extent)
            window = (float(x), float(y), float(extent))
            details.append(render(spec, placements, size=size, window=window))
            imitations.append(self.images[index, :, y : y + extent, x : x + extent])
        return to_tensor(details), torch.stack(imitations)


@torch.no_grad()
def make_imitations(autoencoder: AutoencoderKL, num: int, max_noise: float) -> Imitations:
    """Pass scenes through text-to-image's autoencoder with noise on its unit latents."""
    rng = random.Random("imitations")
    generator = torch.Generator().manual_seed(0)
    specs = [draw_spec(rng, split="train") for _ in range(num)]
    scenes = [(spec, layout(spec, rng)) for spec in specs]
    images = []
    for start in range(0, num, 64):
        part = to_tensor([render(spec, places) for spec, places in scenes[start : start + 64]])
        latents = autoencoder.encode(part).latent_dist.mode()
        amount = max_noise * torch.rand(len(part), 1, 1, 1, generator=generator)
        noise = amount * torch.randn(latents.shape, generator=generator)
        images.append(autoencoder.decode(latents + noise).sample.clamp(-1, 1))
    return Imitations(scenes, torch.cat(images))

"""Batches of rendered scenes as tensors."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm_batch.demo.render import PALETTE, Colour, render
from ldm_batch.demo.world import SCENE_EXTENT, SHAPES, Placement, SceneSpec, draw_spec, layout

LATENT_CELL = 8
NO_SHAPE = len(SHAPES)


def to_tensor(images: Sequence[Image.Image]) -> Tensor:
    """Stack equal-sized RGB images as float32 (N, 3, H, W) in -1..1."""
    pixels = np.stack([np.asarray(image, np.float32) for image in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1


def to_pixels(images: Tensor) -> np.ndarray:
    """Turn (N, 3, H, W) in -1..1 into what the checker reads: float32 (N, H, W, 3) in 0..255."""
    levels: np.ndarray = ((images.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    return levels


def draw_laid_out(rng: random.Random) -> tuple[SceneSpec, tuple[Placement, ...]]:
    """Draw a scene of any split and lay it out."""
    spec = draw_spec(rng)
    return spec, layout(spec, rng)


def vary_colours(spec: SceneSpec, rng: random.Random, sigma: float) -> list[Colour]:
    """The scene's colours, background first, with Gaussian noise of `sigma` levels."""
    names = [spec.background, *(o.colour for o in spec.objects)]

    def vary(level: int) -> int:
        return round(min(255, max(0, level + rng.gauss(0, sigma))))

    return [(vary(r), vary(g), vary(b)) for r, g, b in (PALETTE[name] for name in names)]


@dataclass(frozen=True)
class Windows:
    """Square parts of scenes: images (N, 3, S, S) in -1..1, and per latent cell what lies there.

    `shapes` (N, S/8, S/8) holds the index of the shape, `NO_SHAPE` for none; `offsets`
    (N, 2, S/8, S/8) the cell's place in the object in units of its radius.
    """

    images: Tensor
    shapes: Tensor
    offsets: Tensor


def draw_windows(rng: random.Random, num: int, size: int) -> Windows:
    """Draw windows of size x size pixels around objects, aligned to the latent grid."""
    parts = [_draw_window(rng, size) for _ in range(num)]
    return Windows(
        to_tensor([image for image, _, _ in parts]),
        torch.from_numpy(np.stack([shapes for _, shapes, _ in parts])),
        torch.from_numpy(np.stack([offsets for _, _, offsets in parts])),
    )


def _draw_window(rng: random.Random, size: int) -> tuple[Image.Image, np.ndarray, np.ndarray]:
    spec, placements = draw_laid_out(rng)
    colours = vary_colours(spec, rng, 12) if rng.random() < 0.2 else None
    corner = _window_corner(rng.choice(placements), rng, size)
    window = (corner[0], corner[1], float(size))
    image = render(spec, placements, size=size, window=window, colours=colours)
    return image, *_cell_targets(spec, placements, corner, size // LATENT_CELL)


def _window_corner(place: Placement, rng: random.Random, size: int) -> tuple[float, float]:
    def corner(centre: float) -> float:
        wished = centre - size / 2 + rng.uniform(-0.7, 0.7) * place.radius
        aligned = LATENT_CELL * round(wished / LATENT_CELL)
        return min(SCENE_EXTENT - size, max(0.0, float(aligned)))

    return corner(place.x), corner(place.y)


def _cell_targets(
    spec: SceneSpec,
    placements: Sequence[Placement],
    corner: tuple[float, float],
    num_cells: int,
) -> tuple[np.ndarray, np.ndarray]:
    centres = LATENT_CELL * (np.arange(num_cells) + 0.5)
    shapes = np.full((num_cells, num_cells), NO_SHAPE)
    offsets = np.zeros((2, num_cells, num_cells), np.float32)
    for scene_object, place in zip(spec.objects, placements, strict=True):
        dx, dy = corner[0] + centres - place.x, corner[1] + centres - place.y
        reach = place.radius + 3
        inside = (np.abs(dx) < reach)[None, :] & (np.abs(dy) < reach)[:, None]
        shapes[inside] = SHAPES.index(scene_object.shape)
        here = np.stack(np.broadcast_arrays(dx[None, :], dy[:, None])) / place.radius
        offsets[:, inside] = here[:, inside]
    return shapes, offsets

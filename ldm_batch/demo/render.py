"""Scenes as pixels: a spec, its placements and a size in; an anti-aliased RGB image out.

Deterministic: the same arguments give the same bytes, and a seed enters only through `draw_scene`.
"""

import math
import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ldm_batch.demo.world import SCENE_EXTENT, SHAPES, Placement, SceneSpec, layout

PALETTE = {
    "red": (225, 35, 45),
    "green": (40, 165, 70),
    "blue": (40, 75, 220),
    "yellow": (250, 220, 50),
    "purple": (135, 50, 170),
    "orange": (250, 135, 25),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
}
Colour = tuple[int, int, int]


def _outline(shape: str) -> list[tuple[float, float]]:
    if shape == "circle":
        return [(math.cos(a), math.sin(a)) for a in (math.tau * i / 64 for i in range(64))]
    if shape == "square":
        return [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]
    if shape == "triangle":
        return [(0.0, -1.0), (1.05, 0.85), (-1.05, 0.85)]
    if shape == "star":
        tips = [(1.12 if i % 2 == 0 else 0.48, i * math.pi / 5) for i in range(10)]
        return [(r * math.sin(a), -r * math.cos(a)) for r, a in tips]
    a, b = 0.34, 1.0
    arm = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)]
    return arm + [(-x, -y) for x, y in arm]


OUTLINES: dict[str, NDArray[np.float64]] = {s: np.array(_outline(s)) for s in SHAPES}
"""Polygon of each shape around (0, 0) at radius 1, (points, 2), y down."""


def render(
    spec: SceneSpec,
    placements: Sequence[Placement],
    *,
    size: int = 64,
    window: tuple[float, float, float] = (0.0, 0.0, SCENE_EXTENT),
    colours: Sequence[Colour] | None = None,
) -> Image.Image:
    """Draw the window (x, y, extent) of a scene at size x size RGB pixels, 4x supersampled.

    `colours` replaces the palette's: background first, then one per object.
    """
    supersampling = 4
    if colours is None:
        colours = [PALETTE[spec.background], *(PALETTE[o.colour] for o in spec.objects)]
    image = Image.new("RGB", (size * supersampling, size * supersampling), colours[0])
    draw = ImageDraw.Draw(image)
    scale = size * supersampling / window[2]
    for scene_object, place, colour in zip(spec.objects, placements, colours[1:], strict=True):
        points = OUTLINES[scene_object.shape] * place.radius + (place.x, place.y)
        points = (points - window[:2]) * scale
        draw.polygon([(float(x), float(y)) for x, y in points], fill=colour)
    return image.reduce(supersampling)


def draw_scene(spec: SceneSpec, seed: int, *, size: int = 64) -> Image.Image:
    """Draw a scene at size x size RGB pixels; the seed chooses among its possible layouts."""
    return render(spec, layout(spec, random.Random(seed)), size=size)

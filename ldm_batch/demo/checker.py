"""An automatic judge: does this picture show what the caption says?

It measures an image without knowing how it was made (no layout, no model) and compares the
measurement with a scene, attribute by attribute. It must be able to fail: `evaluate` reports it on
true renders and on renders with one attribute changed.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from itertools import permutations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from ldm_batch.demo.render import OUTLINES, PALETTE
from ldm_batch.demo.world import PAIR_RADIUS, RADIUS, SceneObject, SceneSpec

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

OBJECT_CONTRAST = 40.0
MIN_OBJECT_PIXELS = 24
MAX_COLOUR_ERROR = 60.0
MIN_SHAPE_OVERLAP = 0.75
TEMPLATE_SIDE = 32

_COLOUR_NAMES = tuple(PALETTE)
_COLOUR_VALUES = np.array([PALETTE[name] for name in _COLOUR_NAMES], np.float32)


@dataclass(frozen=True)
class FoundObject:
    """One measured object; `colour_error` is an RGB distance, `overlap` a match in 0..1."""

    shape: str
    overlap: float
    colour: str
    colour_error: float
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Measurement:
    """What an image shows; `stray_pixels` counts contrast too small to be an object."""

    background: str
    background_error: float
    objects: tuple[FoundObject, ...]
    stray_pixels: int


@dataclass(frozen=True)
class Verdict:
    """One judgement per attribute of the caption; an attribute that the caption lacks is right."""

    background: bool
    count: bool
    colour: bool
    shape: bool
    size: bool
    relation: bool

    @property
    def is_right(self) -> bool:
        """Whether every attribute is right."""
        return all(astuple(self))


def check(image: ArrayLike | Image.Image, spec: SceneSpec) -> Verdict:
    """Judge a 64 x 64 RGB image (H, W, 3), values 0..255, against a scene.

    Two objects are matched with the scene's in the order that agrees best.
    """
    found = measure(image)
    background = found.background == spec.background and found.background_error < MAX_COLOUR_ERROR
    num = len(spec.objects)
    count = len(found.objects) == num and found.stray_pixels < MIN_OBJECT_PIXELS
    if len(found.objects) < num:
        return Verdict(background, count, False, False, False, False)
    verdicts = [
        Verdict(background, count, *_judge_objects(order, spec))
        for order in permutations(found.objects[:num])
    ]
    return max(verdicts, key=lambda verdict: sum(astuple(verdict)))


def measure(image: ArrayLike | Image.Image) -> Measurement:
    """Measure a 64 x 64 RGB image (H, W, 3), values 0..255; objects come largest first."""
    pixels = np.asarray(image, np.float32)
    if pixels.shape != (64, 64, 3):
        raise ValueError(f"expected a 64 x 64 RGB image, not an array of shape {pixels.shape}")
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    background = np.median(border, axis=0).astype(np.float32)
    name, error = _nearest_colour(background)
    regions = _regions(np.linalg.norm(pixels - background, axis=2) > OBJECT_CONTRAST)
    large = [region for region in regions if region.sum() >= MIN_OBJECT_PIXELS]
    objects = tuple(_measure_object(pixels, region, background) for region in large)
    stray = sum(int(region.sum()) for region in regions[len(large) :])
    return Measurement(name, error, objects, stray)


def _judge_objects(found: Sequence[FoundObject], spec: SceneSpec) -> tuple[bool, bool, bool, bool]:
    """Judge colour, shape, size and relation of objects given in the scene's order."""
    pairs = list(zip(found, spec.objects, strict=True))
    colour = all(f.colour == o.colour and f.colour_error < MAX_COLOUR_ERROR for f, o in pairs)
    shape = all(f.shape == o.shape and f.overlap > MIN_SHAPE_OVERLAP for f, o in pairs)
    size = all(_has_size(f, o, is_pair=len(pairs) == 2) for f, o in pairs)
    return colour, shape, size, _has_relation(found, spec.relation)


def _has_size(found: FoundObject, wanted: SceneObject, *, is_pair: bool) -> bool:
    if is_pair:
        return 0.75 * PAIR_RADIUS < found.radius < 1.25 * PAIR_RADIUS
    return min(RADIUS, key=lambda name: abs(RADIUS[name] - found.radius)) == wanted.size


def _has_relation(found: Sequence[FoundObject], relation: str) -> bool:
    if not relation:
        return True
    dx, dy = found[1].x - found[0].x, found[1].y - found[0].y
    return {
        "left of": dx > abs(dy),
        "right of": -dx > abs(dy),
        "above": dy > abs(dx),
        "below": -dy > abs(dx),
    }[relation]


def _measure_object(pixels: Floats, region: Bools, background: Floats) -> FoundObject:
    inside = pixels[region]
    contrast = np.linalg.norm(inside - background, axis=1)
    core = np.median(inside[contrast >= np.quantile(contrast, 0.4)], axis=0).astype(np.float32)
    towards = core - background
    coverage = np.clip((pixels - background) @ towards / float(towards @ towards), 0.0, 1.0)
    coverage = coverage * _grow(region)
    left, right = _extent(coverage.max(axis=0))
    top, bottom = _extent(coverage.max(axis=1))
    overlaps = {
        shape: _overlap(coverage, (left, top, right, bottom), template)
        for shape, template in _TEMPLATES.items()
    }
    shape = max(overlaps, key=overlaps.__getitem__)
    colour, colour_error = _nearest_colour(core)
    return FoundObject(
        shape=shape,
        overlap=overlaps[shape],
        colour=colour,
        colour_error=colour_error,
        x=(left + right) / 2,
        y=(top + bottom) / 2,
        radius=(right - left + bottom - top) / 2 / float(np.ptp(OUTLINES[shape], axis=0).mean()),
    )


def _nearest_colour(value: Floats) -> tuple[str, float]:
    distances = np.linalg.norm(_COLOUR_VALUES - value, axis=1)
    nearest = int(distances.argmin())
    return _COLOUR_NAMES[nearest], float(distances[nearest])


def _make_template(shape: str) -> tuple[Floats, float]:
    """The shape filling a square, (32, 32) in 0..1, and its width over its height."""
    outline = OUTLINES[shape]
    low, extent = outline.min(axis=0), np.ptp(outline, axis=0)
    image = Image.new("L", (256, 256), 0)
    corners = [(float(x), float(y)) for x, y in (outline - low) / extent * 255]
    ImageDraw.Draw(image).polygon(corners, fill=255)
    small = image.resize((TEMPLATE_SIDE, TEMPLATE_SIDE), Image.Resampling.BOX)
    mask = np.asarray(small, np.float32) / np.float32(255)
    return mask, float(extent[0] / extent[1])


_TEMPLATES = {shape: _make_template(shape) for shape in OUTLINES}


def _overlap(
    coverage: Floats, box: tuple[float, float, float, float], template: tuple[Floats, float]
) -> float:
    """Intersection over union of boxed coverage and template, times the ratio of their aspects."""
    left, top, right, bottom = box
    if right - left < 1 or bottom - top < 1:
        return 0.0
    levels = Image.fromarray((coverage * 255).astype(np.uint8))
    side = (TEMPLATE_SIDE, TEMPLATE_SIDE)
    crop = np.asarray(levels.resize(side, Image.Resampling.BILINEAR, box=box), np.float32) / 255
    mask, aspect = template
    overlap = np.minimum(crop, mask).sum() / np.maximum(crop, mask).sum()
    stretch = (right - left) / (bottom - top) / aspect
    return float(overlap * min(stretch, 1 / stretch))


def _extent(profile: Floats) -> tuple[float, float]:
    """Ends of a coverage profile, to a fraction of a pixel by the partly covered ones."""
    inside = np.nonzero(profile > 0.5)[0]
    if len(inside) == 0:
        return 0.0, 0.0
    low, high = int(inside[0]), int(inside[-1]) + 1
    before = float(profile[low - 1]) if low > 0 else 0.0
    after = float(profile[high]) if high < len(profile) else 0.0
    return low - before, high + after


def _grow(region: Bools) -> Bools:
    grown = region.copy()
    grown[1:] |= region[:-1]
    grown[:-1] |= region[1:]
    grown[:, 1:] |= region[:, :-1]
    grown[:, :-1] |= region[:, 1:]
    return grown


def _regions(mask: Bools) -> list[Bools]:
    """Split a mask into its 4-connected regions, largest first."""
    rest, regions = mask.copy(), []
    while rest.any():
        region = np.zeros_like(mask)
        start = np.unravel_index(int(rest.argmax()), rest.shape)
        region[start] = True
        size = 0
        while size != (size := int(region.sum())):
            for _ in range(8):
                region = _grow(region) & rest
        regions.append(region)
        rest &= ~region
    return sorted(regions, key=lambda region: -int(region.sum()))

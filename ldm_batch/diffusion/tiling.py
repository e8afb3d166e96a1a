"""Sides that the network can take, and large images as overlapping tiles of one shape.

The padded size is a function of the image's own size, so that what an image becomes does not
depend on the images beside it; must not know models or noise. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ldm_batch.config.upscale import TILE_GRANULE

GRANULES = ((64, 8), (128, 16))
"""Sides grow to multiples of 8 up to 64 pixels, of 16 up to 128, of 32 beyond: few different
shapes to batch, little waste, and multiples of 32 (all that diffusers takes) stay as they are."""


def padded_side(side: int, multiple: int) -> int:
    """Pixels to which a side of an image is padded.

    Args:
        side: 1 or more.
        multiple: what the network needs, a power of two.
    """
    granule = next((g for limit, g in GRANULES if side <= limit), TILE_GRANULE)
    granule = max(granule, multiple)
    return -(-side // granule) * granule


def pad(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Pad `[h, w, 3]` to `[height, width, 3]` at the bottom and the right by reflection."""
    grow = ((0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0))
    return np.pad(pixels, grow, mode="reflect")


@dataclass(frozen=True, slots=True)
class Tile:
    """One tile of one image of a group: its corner in low-resolution pixels."""

    image: int
    top: int
    left: int


@dataclass(frozen=True, slots=True)
class Tiling:
    """How images of one padded size are cut: tiles of one shape, overlapping, in rows."""

    tile_height: int
    tile_width: int
    tops: Sequence[int]
    lefts: Sequence[int]
    overlap: int

    @property
    def num_tiles(self) -> int:
        """Tiles of one image; 1: it is not cut."""
        return len(self.tops) * len(self.lefts)

    def tiles(self, num_images: int) -> list[Tile]:
        """The tiles of all images of a group, image by image."""
        return [
            Tile(image, top, left)
            for image in range(num_images)
            for top in self.tops
            for left in self.lefts
        ]

    def weights(self, scale: int) -> Iterator[NDArray[np.float32]]:
        """Yield each tile's share of the result, `[tile_height * scale, tile_width * scale]`.

        Shares fall off linearly across the overlap and add up to 1 at every pixel.
        """
        rows = _shares(self.tops, self.tile_height, self.overlap, scale)
        columns = _shares(self.lefts, self.tile_width, self.overlap, scale)
        for row in rows:
            for column in columns:
                yield np.outer(row, column).astype(np.float32)


def make_tiling(height: int, width: int, *, tile_size: int, overlap: int, multiple: int) -> Tiling:
    """Cut a padded size into tiles no larger than `tile_size`.

    Args:
        height: padded height.
        width: padded width.
        tile_size: largest side of a tile, a multiple of `multiple`.
        overlap: pixels that neighbours share at least, less than half of `tile_size`.
        multiple: every tile starts at one, so that all tiles see the same pixel grid.
    """
    step = (tile_size - overlap) // multiple * multiple
    return Tiling(
        min(height, tile_size),
        min(width, tile_size),
        _starts(height, tile_size, step),
        _starts(width, tile_size, step),
        overlap,
    )


def _starts(side: int, tile_size: int, step: int) -> list[int]:
    if side <= tile_size:
        return [0]
    return [*range(0, side - tile_size, step), side - tile_size]


def _shares(
    starts: Sequence[int], length: int, overlap: int, scale: int
) -> list[NDArray[np.float64]]:
    """Along one axis: each tile's ramps, divided by the sum of all at that pixel."""
    places = np.arange(length * scale) + 0.5
    total = np.zeros((starts[-1] + length) * scale)
    ramps = []
    for i, start in enumerate(starts):
        ramp = np.ones(length * scale)
        if i > 0 and overlap:
            ramp = np.minimum(ramp, places / (overlap * scale))
        if i < len(starts) - 1 and overlap:
            ramp = np.minimum(ramp, places[::-1] / (overlap * scale))
        ramps.append(ramp)
        total[start * scale : (start + length) * scale] += ramp
    return [
        ramp / total[start * scale : (start + length) * scale]
        for start, ramp in zip(starts, ramps, strict=True)
    ]

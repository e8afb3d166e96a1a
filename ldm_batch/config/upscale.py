"""How images are made larger, and the second model of a job of two stages; the checks of that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

from ldm_batch.columns import COLUMNS
from ldm_batch.config.bounds import fits, one_of, within
from ldm_batch.config.model import ModelConfig, SchedulerConfig

UPSCALE = 4
"""How many times super-resolution enlarges each side."""
Alpha = Literal["flatten", "keep"]
ALPHA_POLICIES: tuple[Alpha, ...] = get_args(Alpha)
TILE_GRANULE = 32
"""Sides of tiles are multiples of this, in low-resolution pixels: what diffusers itself takes."""
LARGEST_TILE = 4096


@dataclass
class UpscaleConfig:
    """How images are made four times as large, and the second model of a job of two stages.

    A job whose own model is super-resolution takes steps and eta from `call`, and of this section
    only tiles and alpha; by engine `diffusers` no tiles either, and of alpha only `flatten`, as
    where images are changed by a prompt. What such a job has no use for is refused.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    """Enlarges what the job's own model made from text; without a path images stay as they are."""
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    """The second model's scheduler."""
    num_inference_steps: int = COLUMNS["num_inference_steps"].default
    """The second model's denoising steps, 1 to 1000."""
    eta: float = COLUMNS["eta"].default
    """The second model's noise of DDIM steps, 0 to 1."""
    keep_low_resolution: bool = False
    """Keep what the first stage made, in the column `low_resolution`."""
    tile_size: int = 128
    """Larger images are made in overlapping tiles of this side, in low-resolution pixels; a
    multiple of 32."""
    tile_overlap: int = 16
    """Low-resolution pixels that neighbouring tiles share and blend, less than half a tile."""
    alpha: str = "flatten"
    """Transparent images: `flatten` on `background`, or `keep`: alpha is enlarged by itself."""
    background: str = "#ffffff"
    """Colour behind transparent images, with or without a `#` before `rrggbb`."""


def check_upscale(upscale: UpscaleConfig) -> Iterator[str]:
    """Problems of the fields of `upscale` but its model's, a line each."""
    for name in ("num_inference_steps", "eta"):
        yield from fits(f"upscale.{name}", getattr(upscale, name), COLUMNS[name])
    yield from check_tiles(upscale.tile_size, upscale.tile_overlap)
    yield from one_of("upscale.alpha", upscale.alpha, ALPHA_POLICIES)
    try:
        parse_colour(upscale.background)
    except ValueError:
        yield f"upscale.background: {upscale.background!r} is not a colour such as '#ffffff'"


def check_tiles(tile_size: int, overlap: int, multiple: int = 0) -> Iterator[str]:
    """Problems of the settings of tiles, in low-resolution pixels, a line each.

    Args:
        multiple: pixels at whose multiples tiles may start; a loaded model says, and may take less
            overlap than half a tile.
    """
    granule = max(TILE_GRANULE, multiple)
    if tile_size % granule:
        yield f"upscale.tile_size: {tile_size} is not a multiple of {granule}"
    elif not granule <= tile_size <= LARGEST_TILE:
        yield from within("upscale.tile_size", tile_size, granule, LARGEST_TILE)
    else:
        yield from within("upscale.tile_overlap", overlap, 0, tile_size // 2 - multiple)


def parse_colour(text: str) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of `rrggbb` or `#rrggbb`; ValueError for anything else."""
    digits = text.removeprefix("#")
    if len(digits) != 6:
        raise ValueError(text)
    red, green, blue = bytes.fromhex(digits)
    return red, green, blue

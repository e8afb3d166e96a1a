"""Run a network over the tiles of some images at one fixed shape and blend what comes out.

Must not know what the network does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from ldm_batch.diffusion.tiling import Tile, Tiling

RunTiles = Callable[[Sequence[Tile], int], torch.Tensor]
"""(tiles, number of the call) -> `[len(tiles), C, tile_height * scale, tile_width * scale]`."""


def cut_tiles(images: torch.Tensor, tiles: Sequence[Tile], tiling: Tiling) -> torch.Tensor:
    """Cut tiles out of `[N, C, H, W]`; returns `[len(tiles), C, tile_height, tile_width]`."""
    height, width = tiling.tile_height, tiling.tile_width
    if tiling.num_tiles == 1 and [tile.image for tile in tiles] == list(range(len(images))):
        return images
    return torch.stack(
        [images[t.image, :, t.top : t.top + height, t.left : t.left + width] for t in tiles]
    )


def run_tiles(
    run: RunTiles, tiling: Tiling, num_images: int, *, num_rows: int, scale: int
) -> Iterator[torch.Tensor]:
    """Run a network over all tiles of all images and yield the images, blended, in order.

    Calls are filled across images, the last one padded by repeating its last tile, so every call
    has `num_rows` rows. Only one image is being put together at a time.

    Args:
        run: the network.
        tiling: how the images, all of one size, are cut.
        num_images: how many.
        num_rows: rows of every call.
        scale: output pixels per input pixel.

    Yields:
        `[C, H * scale, W * scale]`, one per image.
    """
    tiles = tiling.tiles(num_images)
    if tiling.num_tiles == 1:
        for number, start in enumerate(range(0, num_images, num_rows)):
            yield from _run_padded(run, tiles[start : start + num_rows], number, num_rows)
        return
    weights = [torch.from_numpy(share) for share in tiling.weights(scale)]
    height = (tiling.tops[-1] + tiling.tile_height) * scale
    width = (tiling.lefts[-1] + tiling.tile_width) * scale
    canvas = torch.empty(0)
    for number, start in enumerate(range(0, len(tiles), num_rows)):
        chunk = tiles[start : start + num_rows]
        for i, part in enumerate(_run_padded(run, chunk, number, num_rows), start):
            if i % tiling.num_tiles == 0:
                canvas = part.new_zeros(part.shape[0], height, width)
            top, left = tiles[i].top * scale, tiles[i].left * scale
            place = canvas[:, top : top + part.shape[1], left : left + part.shape[2]]
            place += part * weights[i % tiling.num_tiles].to(part.device)
            if (i + 1) % tiling.num_tiles == 0:
                yield canvas


def _run_padded(
    run: RunTiles, tiles: Sequence[Tile], number: int, num_rows: int
) -> Sequence[torch.Tensor]:
    padding = [tiles[-1]] * (num_rows - len(tiles))
    return list(run([*tiles, *padding], number)[: len(tiles)])

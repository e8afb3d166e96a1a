"""Run a network over the tiles of some images at one fixed shape and blend what comes out.

Must not know what the network does. A tensor's suffix names its axes: N images, C channels, H and
W, its sides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from ldm_batch.diffusion.tiling import Tile, Tiling

RunTiles = Callable[[Sequence[Tile], int], torch.Tensor]
"""(tiles, number of the call) -> `[len(tiles), C, tile_height * scale, tile_width * scale]`."""


def cut_tiles(images_NCHW: torch.Tensor, tiles: Sequence[Tile], tiling: Tiling) -> torch.Tensor:
    """Cut tiles out of `[N, C, H, W]`; returns `[len(tiles), C, tile_height, tile_width]`."""
    height, width = tiling.tile_height, tiling.tile_width
    if tiling.num_tiles == 1 and [tile.image for tile in tiles] == list(range(len(images_NCHW))):
        return images_NCHW
    return torch.stack(
        [images_NCHW[t.image, :, t.top : t.top + height, t.left : t.left + width] for t in tiles]
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
    weights_HW = [torch.from_numpy(share) for share in tiling.weights(scale)]
    height = (tiling.tops[-1] + tiling.tile_height) * scale
    width = (tiling.lefts[-1] + tiling.tile_width) * scale
    canvas_CHW = torch.empty(0)
    for number, start in enumerate(range(0, len(tiles), num_rows)):
        chunk = tiles[start : start + num_rows]
        for i, part_CHW in enumerate(_run_padded(run, chunk, number, num_rows), start):
            if i % tiling.num_tiles == 0:
                canvas_CHW = part_CHW.new_zeros(part_CHW.shape[0], height, width)
            top, left = tiles[i].top * scale, tiles[i].left * scale
            _, tile_height, tile_width = part_CHW.shape
            place_CHW = canvas_CHW[:, top : top + tile_height, left : left + tile_width]
            place_CHW += part_CHW * weights_HW[i % tiling.num_tiles].to(part_CHW.device)
            if (i + 1) % tiling.num_tiles == 0:
                yield canvas_CHW


def _run_padded(
    run: RunTiles, tiles: Sequence[Tile], number: int, num_rows: int
) -> Sequence[torch.Tensor]:
    padding = [tiles[-1]] * (num_rows - len(tiles))
    return list(run([*tiles, *padding], number)[: len(tiles)])

"""The image cells of a row -> what the images are, with their bytes in a spool until they are used.

Every image is decoded once to know that it can be, and dropped; must not know models or shards of
the output. What of a mask is to be repainted is said here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldm_batch.columns import IMAGE, MASK, TaskColumns
from ldm_batch.config import JobConfig
from ldm_batch.config.upscale import parse_colour
from ldm_batch.read.decode import DecodedImage, ImageLimits, decode_image, flatten
from ldm_batch.read.row_files import RowFiles
from ldm_batch.read.window import Longer
from ldm_batch.records import Fault, InputImage, Reason, Shard
from ldm_batch.write.encode import MAX_SIDES, sha256
from ldm_batch.write.spool import Spool

LEAST_REPAINTED = 128
"""Of 255: from half grey to white a mask says that a pixel is to be repainted."""


class InputImages:
    """The images of one shard: checked as rows are read, decoded again when they are used."""

    def __init__(self, job: JobConfig, columns: TaskColumns, shard: Shard, spool: Spool) -> None:
        self._spool, self._fields = spool, columns.pictures
        self._files = RowFiles(job.source, shard.file.uri, len(self._fields))
        self._keeps_alpha = job.upscale.alpha == "keep"
        self._background = parse_colour(job.upscale.background)
        self._limits = ImageLimits(
            max_bytes=job.source.max_image_bytes,
            max_pixels=job.source.max_image_pixels,
            max_side=largest_asked(job, columns),
        )

    def keep(self, slot: int, cell: Mapping[str, Any] | None) -> InputImage | Fault:
        """Check the image of a row and keep its bytes.

        Args:
            slot: the row's place in the shard.
            cell: `bytes` (of a whole file), or `path` (UTF-8, below the image root), or both.

        Raises:
            StorageError: the store is in trouble.
        """
        found = self._decode(cell)
        if isinstance(found, Fault):
            return found
        data, image = found
        self._spool.add((slot, IMAGE), data)
        return _described(data, image, cell, self._apply_alpha(image)[1])

    def keep_mask(
        self, slot: int, cell: Mapping[str, Any] | None, image: InputImage
    ) -> InputImage | Fault:
        """Check the mask of a row and keep its bytes: it has the size of the row's image and says
        of some pixel that it is to be repainted.

        Args:
            slot: the row's place in the shard.
            cell: as of an image.
            image: the row's own.

        Raises:
            StorageError: the store is in trouble.
        """
        found = self._decode(cell, is_colour=False)
        if isinstance(found, Fault):
            return Fault(found.reason, f"mask: {found.message}")
        data, mask = found
        if fault := _mask_fault(mask, image):
            return fault
        self._spool.add((slot, MASK), data)
        return _described(data, mask, cell, ())

    def read_ahead(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """The rows in their order, with the files that they name read ahead, a few at a time.

        Raises:
            StorageError: the store is in trouble, by which no row is judged.
            AccessError: it lets nobody in.
        """
        return self._files.read_ahead(rows, self._fields)

    def load(self, slot: int) -> NDArray[np.uint8]:
        """The pixels of an image that was kept: `[h, w, 3]`, or `[h, w, 4]` with its alpha."""
        image = decode_image(self._spool.get((slot, IMAGE)), self._limits)
        assert isinstance(image, DecodedImage)
        return self._apply_alpha(image)[0]

    def load_mask(self, slot: int) -> NDArray[np.bool_]:
        """The mask of a row that was kept: `[h, w]`, true where to repaint."""
        mask = decode_image(self._spool.get((slot, MASK)), self._limits, is_colour=False)
        assert isinstance(mask, DecodedImage)
        return is_repainted(mask.pixels)

    def _decode(
        self, cell: Mapping[str, Any] | None, *, is_colour: bool = True
    ) -> tuple[bytes, DecodedImage] | Fault:
        """The bytes of an image's file, and what it shows."""
        cell = cell or {}
        data = cell["found"] if "found" in cell else self._files.fetch(cell)
        if isinstance(data, Longer):
            data = self._files.read_whole(data)
        if isinstance(data, Fault):
            return data
        image = decode_image(data, self._limits, is_colour=is_colour)
        if isinstance(image, Fault):
            return image
        assert data is not None
        return data, image

    def _apply_alpha(self, image: DecodedImage) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
        if image.alpha is None:
            return image.pixels, ()
        if self._keeps_alpha:
            return np.dstack([image.pixels, image.alpha]), ()
        return flatten(image.pixels, image.alpha, self._background), ("alpha_flattened",)


def largest_asked(job: JobConfig, columns: TaskColumns) -> int:
    """Longest side in pixels that a row may ask for, or bring, before anything enlarges it."""
    stored = MAX_SIDES[job.image.format]
    if job.source.max_side is not None:
        stored = min(stored, job.source.max_side)
    return stored // columns.scale


def is_repainted(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a mask says that its image is to be repainted: from half grey on.

    Args:
        pixels: uint8 `[h, w, 3]`, sRGB; colours count by their luma (ITU-R BT.601).

    Returns:
        Bool `[h, w]`.
    """
    return _luma(pixels) >= 1000 * LEAST_REPAINTED


def _luma(pixels: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """A thousand times the luma of `[h, w, 3]` (ITU-R BT.601), `[h, w]`."""
    luma: NDArray[np.uint32] = pixels.astype(np.uint32) @ np.array([299, 587, 114], np.uint32)
    return luma


def _mask_fault(mask: DecodedImage, image: InputImage) -> Fault | None:
    """Why a mask says nothing of an image."""
    height, width, _ = mask.pixels.shape
    if (height, width) != (image.height, image.width):
        return Fault(
            Reason.OTHER_MASK_SIZE,
            f"the mask has {width}x{height} pixels, its image {image.width}x{image.height}",
        )
    if mask.alpha is not None:
        return Fault(
            Reason.UNSUPPORTED_IMAGE,
            "mask: some of it is transparent, and nothing says whether that is to be repainted; "
            "give white for what is, black for what stays",
        )
    if not is_repainted(mask.pixels).any():
        return Fault(Reason.EMPTY_MASK, _why_empty(mask))
    return None


def _why_empty(mask: DecodedImage) -> str:
    """Why a mask marks nothing, and what may have been meant."""
    largest = int(_luma(mask.pixels).max()) // 1000
    told = (
        f"the mask leaves nothing to repaint: its largest value is {largest} of 255, from "
        f"{LEAST_REPAINTED} on is repainted"
    )
    if np.ptp(mask.pixels, axis=2).any():
        return f"{told}; colours count by their luma, red is 76: give white"
    levels = np.unique(mask.pixels)
    if mask.mode.startswith("I;16"):
        return f"{told}; it has 16 bits, of which 65535 is white: make 0 and 1 of it 0 and 65535"
    if largest and len(levels) <= 2 and levels[0] == 0:
        return f"{told}; if it says 0 and {largest}, make that 0 and 255"
    return told


def _described(
    data: bytes, image: DecodedImage, cell: Mapping[str, Any] | None, more: tuple[str, ...]
) -> InputImage:
    """What is recorded of an image of a row.

    Args:
        more: conversions beside those of decoding.
    """
    path = (cell or {}).get("path")
    height, width, _ = image.pixels.shape
    return InputImage(
        sha256=sha256(data),
        path=path.decode("utf-8", "backslashreplace") if path else None,
        format=image.format,
        mode=image.mode,
        height=height,
        width=width,
        conversions=(*image.conversions, *more),
    )

"""The low-resolution images of a call from Python: PIL, numpy or torch -> float arrays.

Must not know models; files and bytes are decode.py's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ldm_batch.diffusion.call_values import items
from ldm_batch.read.colour import is_convertible, to_rgb

ImageLike = Image.Image | np.ndarray | torch.Tensor
"""One image, or an axis of them; see `to_images`."""


def to_images(
    image: ImageLike | Iterable[ImageLike],
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.uint8] | None]]:
    """Spread what a caller may hand in into single images.

    Args:
        image: one of, or a list of: a PIL image of any mode, an array `[h, w, 3]` (uint8, or
            float 0..1), a tensor `[3, h, w]` (float -1..1, as diffusers' pipeline takes it);
            an array or tensor may have a leading axis of images.

    Returns:
        float32 `[h, w, 3]` in -1..1 each, and the alpha (uint8 `[h, w]`) of those that have one.

    Raises:
        ValueError: another type, shape, dtype or range, a PIL mode that has no rule, or a file that
            is damaged.
    """
    several = None if isinstance(image, ImageLike) else items(image)
    parts: Sequence[object] = [image] if several is None else several
    arrays: list[NDArray[np.float32]] = []
    alphas: list[NDArray[np.uint8] | None] = []
    for part in parts:
        if isinstance(part, Image.Image):
            pixels, alpha = _from_pil(part)
            arrays.append(to_signed(pixels))
            alphas.append(alpha)
        else:
            found = _from_tensor(part) if isinstance(part, torch.Tensor) else _from_array(part)
            arrays += found
            alphas += [None] * len(found)
    if not arrays:
        raise ValueError("image: must be an image or a list of at least one image")
    return arrays, alphas


def to_signed(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Map uint8 0..255, `[h, w, 3]`, to float32 -1..1 by diffusers' arithmetic, to the bit."""
    return np.float32(2) * (pixels.astype(np.float32) / np.float32(255)) - np.float32(1)


def _from_pil(image: Image.Image) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    if not is_convertible(image):
        raise ValueError(f"image: mode {image.mode} cannot be converted to RGB by a fixed rule")
    if 0 in image.size:
        raise ValueError(f"image: size {image.width} x {image.height}; must have pixels")
    try:
        pixels, alpha, _ = to_rgb(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"image: cannot be decoded: {error}") from error
    return pixels, alpha


def _from_array(array: object) -> list[NDArray[np.float32]]:
    if not isinstance(array, np.ndarray):
        remedy = "; open a file with PIL.Image.open" if isinstance(array, str | Path) else ""
        raise ValueError(
            f"image: {type(array).__name__}; must be a PIL image, an array or a tensor, or a list "
            f"of these{remedy}"
        )
    if array.ndim not in (3, 4) or array.shape[-1] != 3 or 0 in array.shape:
        raise ValueError(f"image: shape {array.shape}; an array must be [h, w, 3] or [n, h, w, 3]")
    stacked = array if array.ndim == 4 else array[None]
    if array.dtype == np.uint8:
        return [to_signed(one) for one in stacked]
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"image: dtype {array.dtype}; an array must be uint8 or float")
    _refuse_outside(float(array.min()), float(array.max()), 0)
    return [np.float32(2) * one.astype(np.float32) - np.float32(1) for one in stacked]


def _from_tensor(tensor: torch.Tensor) -> list[NDArray[np.float32]]:
    stacked = tensor if tensor.ndim == 4 else tensor[None]
    if stacked.ndim != 4 or stacked.shape[1] != 3 or 0 in stacked.shape:
        shape = tuple(tensor.shape)
        raise ValueError(f"image: shape {shape}; a tensor must be [3, h, w] or [n, 3, h, w]")
    if not tensor.is_floating_point():
        raise ValueError(f"image: dtype {tensor.dtype}; a tensor must be float, -1..1")
    _refuse_outside(float(tensor.min()), float(tensor.max()), -1)
    return list(stacked.detach().float().cpu().permute(0, 2, 3, 1).numpy())


def _refuse_outside(smallest: float, largest: float, lower: int) -> None:
    if not (lower <= smallest and largest <= 1):
        raise ValueError(
            f"image: values {smallest:.3g} to {largest:.3g}; must be within {lower} and 1"
        )

"""From decoded tensors to pictures.

Must not know where the tensors came from.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image

from ldm_batch.read.colour import enlarge_alpha

OutputType = Literal["pil", "np", "pt"]
Pictures = list[Image.Image] | np.ndarray | torch.Tensor
"""What becomes of a call, one kind for each of these."""
OUTPUT_TYPES: tuple[OutputType, ...] = get_args(OutputType)


def to_unit_range(decoded: torch.Tensor) -> torch.Tensor:
    """Map a first stage's output `[..., 3, H, W]`, nominally -1..1, to float32 0..1, clamped;
    not-finite values stay so."""
    return (decoded.float() / 2 + 0.5).clamp(0, 1)


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """Turn float `[B, 3, H, W]` in 0..1 into uint8 `[B, H, W, 3]`, rounded as diffusers does; what
    is not a number is 0."""
    pixels = (images.nan_to_num() * 255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def to_output(images: torch.Tensor, output_type: OutputType) -> Pictures:
    """Turn float32 `[N, 3, H, W]` in 0..1 into diffusers' output types.

    Returns:
        `pil`: a list of PIL images; `np`: float32 `[N, H, W, 3]`; `pt`: float32 `[N, 3, H, W]`.
    """
    if output_type == "pt":
        return images
    if output_type == "np":
        return images.permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(image) for image in to_uint8(images)]


def to_picture(image: torch.Tensor, alpha: np.ndarray | None) -> Image.Image:
    """Turn float32 `[3, H, W]` in 0..1 into a PIL image, with an alpha channel where there is one.

    Args:
        image: the colours.
        alpha: uint8 `[h, w]`, enlarged here to the size of the image.
    """
    picture = Image.fromarray(to_uint8(image[None])[0])
    if alpha is not None:
        picture.putalpha(Image.fromarray(enlarge_alpha(alpha, picture.height // len(alpha))))
    return picture

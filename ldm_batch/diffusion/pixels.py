"""From decoded tensors to pictures, and the check that a picture is one.

Must not know where the tensors came from.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from ldm_batch.read.colour import enlarge_alpha
from ldm_batch.records import Fault, Reason

OUTPUT_TYPES = ("pil", "np", "pt")


def to_unit_range(decoded: torch.Tensor) -> torch.Tensor:
    """Map a first stage's output, nominally -1..1, to float32 0..1; not-finite values stay so."""
    return (decoded.float() / 2 + 0.5).clamp(0, 1)


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """Turn float `[B, 3, H, W]` in 0..1 into uint8 `[B, H, W, 3]`, rounded as diffusers does."""
    pixels = (images * 255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def find_faults(decoded: torch.Tensor, pixels: np.ndarray) -> list[Fault | None]:
    """Judge each image of a batch.

    Args:
        decoded: the first stage's output before clamping, `[B, 3, H, W]`.
        pixels: the same images, uint8 `[B, H, W, 3]`.
    """
    is_finite = torch.isfinite(decoded).flatten(1).all(dim=1).tolist()
    faults: list[Fault | None] = []
    for finite, image in zip(is_finite, pixels, strict=True):
        if not finite:
            faults.append(Fault(Reason.NOT_FINITE, "the image has values that are not finite"))
        elif (image == image[0, 0]).all():
            colour = tuple(int(value) for value in image[0, 0])
            faults.append(Fault(Reason.CONSTANT_IMAGE, f"every pixel of the image is {colour}"))
        else:
            faults.append(None)
    return faults


def judge_enlarged(decoded: torch.Tensor, small: np.ndarray) -> np.ndarray | Fault:
    """Return an enlarged picture, uint8 `[H, W, 3]`, or its fault.

    Args:
        decoded: the first stage's output before clamping, `[3, H, W]`.
        small: what was enlarged, uint8 `[h, w, 3]`; where it has one colour, so may the picture.
    """
    (image,) = to_uint8(to_unit_range(decoded[None]).nan_to_num())
    (fault,) = find_faults(decoded[None], image[None])
    is_flat = fault is not None and fault.reason == Reason.CONSTANT_IMAGE
    if fault is None or (is_flat and bool((small == small[0, 0]).all())):
        return image  # type: ignore[no-any-return]
    return fault


def to_output(
    images: torch.Tensor, output_type: str
) -> list[Image.Image] | np.ndarray | torch.Tensor:
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

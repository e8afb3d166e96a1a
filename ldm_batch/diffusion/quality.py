"""Whether a picture is usable, and what is measured of it: a list of checks.

A check is one function; a new one is a function and its name in `CHECKS`. Must not know models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ldm_batch.columns import IMAGE
from ldm_batch.records import Fault, Made, Reason, Request, UpscaleRequest

Check = Callable[[NDArray[np.uint8], Request | UpscaleRequest], Mapping[str, Any] | Fault]
"""(pixels, uint8 `[H, W, 3]`, what was asked for) -> columns to record, or why it is unusable.

Columns are recorded where the task has them; an unusable image of a model in half precision is made
once more in float32 before it counts."""


def refuse_constant(
    pixels: NDArray[np.uint8], request: Request | UpscaleRequest
) -> Mapping[str, Any] | Fault:
    """A picture, uint8 `[H, W, 3]`, of one colour is none, unless it was made of such a one."""
    if not _is_constant(pixels):
        return {}
    given = request.pixels if isinstance(request, UpscaleRequest) else request.inputs.get(IMAGE)
    if given is not None and _is_constant(given):
        return {}
    colour = tuple(int(value) for value in pixels[0, 0])
    return Fault(Reason.CONSTANT_IMAGE, f"every pixel of the image is {colour}")


CHECKS: tuple[Check, ...] = (refuse_constant,)


def judge(
    decoded: torch.Tensor, pixels: NDArray[np.uint8], request: Request | UpscaleRequest
) -> NDArray[np.uint8] | Made | Fault:
    """The picture, with what was measured of it if that is anything, or why it is unusable.

    Args:
        decoded: the first stage's output before clamping, `[3, H, W]`.
        pixels: the same picture, uint8 `[H, W, 3]`.
    """
    if not bool(torch.isfinite(decoded).all()):
        return Fault(Reason.NOT_FINITE, "the image has values that are not finite")
    columns: dict[str, Any] = {}
    for check in CHECKS:
        found = check(pixels, request)
        if isinstance(found, Fault):
            return found
        columns |= found
    return Made(pixels, columns=columns) if columns else pixels


def _is_constant(pixels: NDArray[np.uint8]) -> bool:
    return bool((pixels == pixels[0, 0]).all())

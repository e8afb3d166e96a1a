"""Images -> images four times as large: every request brings its own.

Joins a loaded model to what jobs ask of a pipeline; torch comes in only with the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ldm_batch.config import UPSCALE
from ldm_batch.errors import JobError
from ldm_batch.read.colour import enlarge_alpha
from ldm_batch.records import Call, Fault, PromptCount, Request, UpscaleRequest

MAX_OUTPUT_PIXELS = 2**26
"""Pixels of the large images of one call: bounds memory, not results."""


class Enlarger(Protocol):
    """What a loaded super-resolution model offers; see `diffusion.super_resolution`."""

    scale: int
    batch_size: int

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Size at which an image is computed."""

    def generate(self, requests: Sequence[UpscaleRequest]) -> list[NDArray[np.uint8] | Fault]:
        """The images, larger."""

    def pop_notes(self) -> list[str]:
        """What the receipt should tell."""

    def describe(self) -> dict[str, Any]:
        """What made the images."""


class ImagesLarger:
    """A job that enlarges images: every request brings its image."""

    def __init__(self, upscaler: Enlarger) -> None:
        self._upscaler = check_scale(upscaler)

    def count_tokens(self, prompts: Sequence[str]) -> list[PromptCount]:
        """No prompts, no tokens."""
        return [PromptCount(0, False)] * len(prompts)

    def batch_key(self, call: Call) -> tuple[Call, int]:
        """Images of one padded size share a batch; fewer of them, the larger they are."""
        height, width = self._upscaler.padded_size(call.height, call.width)
        fitting = max(1, MAX_OUTPUT_PIXELS // (height * width * UPSCALE**2))
        key = replace(call, height=height, width=width)
        return key, min(self._upscaler.batch_size, fitting)

    def generate(self, requests: Sequence[Request]) -> list[NDArray[np.uint8] | Fault]:
        """Enlarge images `[h, w, 3]`; those `[h, w, 4]` with their alpha, bicubic."""
        made = self._upscaler.generate(
            [
                UpscaleRequest(
                    request.image[..., :3],
                    request.seed,
                    request.call.num_inference_steps,
                    request.call.eta,
                )
                for request in requests
            ]
        )
        return [
            large if isinstance(large, Fault) else _with_alpha(large, request.image)
            for large, request in zip(made, requests, strict=True)
        ]

    def pop_notes(self) -> list[str]:
        """What the receipt should tell."""
        return self._upscaler.pop_notes()

    def describe(self) -> dict[str, Any]:
        """What made the images."""
        return self._upscaler.describe()


def check_scale(upscaler: Enlarger) -> Enlarger:
    if upscaler.scale != UPSCALE:
        raise JobError(
            f"model: enlarges {upscaler.scale} times; jobs take models that do {UPSCALE} times"
        )
    return upscaler


def _with_alpha(large: NDArray[np.uint8], small: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if small.shape[2] == 3:
        return large
    return np.dstack([large, enlarge_alpha(small[..., 3], UPSCALE)])

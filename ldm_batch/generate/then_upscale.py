"""Super-resolution as a pipeline of jobs, alone or after text-to-image in the same worker.

Joins loaded models to what generate.py asks of a pipeline; torch comes in only with the models.
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
from ldm_batch.records import Call, Fault, Made, PromptCount, Request, UpscaleRequest

MAX_OUTPUT_PIXELS = 2**26
"""Pixels of the large images of one call: bounds memory, not results."""


class Upscaler(Protocol):
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


class Painter(Protocol):
    """What a loaded text-to-image model offers."""

    batch_size: int

    def count_tokens(self, prompts: Sequence[str]) -> list[PromptCount]:
        """Tokens of each prompt."""

    def batch_key(self, call: Call) -> tuple[Call, int]:
        """What images of one batch have in common, and how many make one."""

    def generate(self, requests: Sequence[Request]) -> list[NDArray[np.uint8] | Fault]:
        """The images."""

    def pop_notes(self) -> list[str]:
        """What the receipt should tell."""

    def describe(self) -> dict[str, Any]:
        """What made the images."""


class ImagesLarger:
    """A job that enlarges images: every request brings its image."""

    def __init__(self, upscaler: Upscaler) -> None:
        self._upscaler = _check_scale(upscaler)

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


class TextToLargeImages:
    """A chained job: images from text, enlarged before they leave the worker."""

    def __init__(
        self, painter: Painter, upscaler: Upscaler, *, num_inference_steps: int, eta: float
    ) -> None:
        self._painter, self._upscaler = painter, _check_scale(upscaler)
        self._steps, self._eta = num_inference_steps, eta

    def count_tokens(self, prompts: Sequence[str]) -> list[PromptCount]:
        """Tokens of each prompt."""
        return self._painter.count_tokens(prompts)

    def batch_key(self, call: Call) -> tuple[Call, int]:
        """As for the first stage; fewer images share a batch where they get very large."""
        key, size = self._painter.batch_key(call)
        fitting = max(1, MAX_OUTPUT_PIXELS // (call.height * call.width * UPSCALE**2))
        return key, min(size, fitting)

    def generate(self, requests: Sequence[Request]) -> list[Made | Fault]:
        """Make images and enlarge them; a fault of either stage is the image's."""
        small = self._painter.generate(requests)
        good = [i for i, image in enumerate(small) if not isinstance(image, Fault)]
        wanted = [self._request(small[i], requests[i]) for i in good]
        large = self._upscaler.generate(wanted) if wanted else []
        made: dict[int, Made | Fault] = {
            i: image if isinstance(image, Fault) else Made(image, low_resolution=small[i])
            for i, image in zip(good, large, strict=True)
        }
        return [image if isinstance(image, Fault) else made[i] for i, image in enumerate(small)]

    def pop_notes(self) -> list[str]:
        """What the receipt should tell."""
        return [*self._painter.pop_notes(), *self._upscaler.pop_notes()]

    def describe(self) -> dict[str, Any]:
        """What made the images, the second stage under `upscale`."""
        return {**self._painter.describe(), "upscale": self._upscaler.describe()}

    def _request(self, pixels: Any, request: Request) -> UpscaleRequest:
        assert request.upscale_seed is not None
        return UpscaleRequest(pixels, request.upscale_seed, self._steps, self._eta)


def _check_scale(upscaler: Upscaler) -> Upscaler:
    if upscaler.scale != UPSCALE:
        raise JobError(
            f"model: enlarges {upscaler.scale} times; jobs take models that do {UPSCALE} times"
        )
    return upscaler


def _with_alpha(large: NDArray[np.uint8], small: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if small.shape[2] == 3:
        return large
    return np.dstack([large, enlarge_alpha(small[..., 3], UPSCALE)])

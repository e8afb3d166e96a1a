"""Two stages in one worker: images from text, enlarged before they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ldm_batch.config import UPSCALE
from ldm_batch.generate.pipeline import Pipeline
from ldm_batch.generate.super_resolution import MAX_OUTPUT_PIXELS, Enlarger, check_scale
from ldm_batch.records import Call, Fault, Made, PromptCount, Request, UpscaleRequest


class TextToLargeImages:
    """A chained job: images from text, enlarged before they leave the worker."""

    def __init__(
        self, first: Pipeline, upscaler: Enlarger, *, num_inference_steps: int, eta: float
    ) -> None:
        self._first, self._upscaler = first, check_scale(upscaler)
        self._steps, self._eta = num_inference_steps, eta

    def count_tokens(self, prompts: Sequence[str]) -> list[PromptCount]:
        """Tokens of each prompt."""
        return self._first.count_tokens(prompts)

    def batch_key(self, call: Call) -> tuple[Call, int]:
        """As for the first stage; fewer images share a batch where they get very large."""
        key, size = self._first.batch_key(call)
        fitting = max(1, MAX_OUTPUT_PIXELS // (call.height * call.width * UPSCALE**2))
        return key, min(size, fitting)

    def generate(self, requests: Sequence[Request]) -> list[Made | Fault]:
        """Make images and enlarge them; a fault of either stage is the image's."""
        small = self._first.generate(requests)
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
        return [*self._first.pop_notes(), *self._upscaler.pop_notes()]

    def describe(self) -> dict[str, Any]:
        """What made the images, the second stage under `upscale`."""
        return {**self._first.describe(), "upscale": self._upscaler.describe()}

    def _request(self, pixels: Any, request: Request) -> UpscaleRequest:
        assert request.upscale_seed is not None
        return UpscaleRequest(pixels, request.upscale_seed, self._steps, self._eta)

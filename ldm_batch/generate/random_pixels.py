"""Random pixels in place of a model's images, to measure everything around a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldm_batch.records import Call, Fault, PromptCount, Request

RANDOM_PIXELS_SIDE, RANDOM_PIXELS_BATCH = 8, 16


class RandomPixels:
    """Pictures of random pixels without a model, to measure everything around one."""

    def __init__(self, batch_size: int = RANDOM_PIXELS_BATCH) -> None:
        self._batch_size = batch_size

    def count_tokens(self, prompts: Sequence[str]) -> list[PromptCount]:
        """Count words."""
        return [PromptCount(len(prompt.split()), False) for prompt in prompts]

    def batch_key(self, call: Call) -> tuple[Call, int]:
        """Images of an equal call share a batch."""
        return call, self._batch_size

    def generate(self, requests: Sequence[Request]) -> list[NDArray[np.uint8] | Fault]:
        """Random pixels from each request's seed."""
        return [self._draw(request) for request in requests]

    def describe(self) -> dict[str, Any]:
        """Name itself."""
        return {"pipeline": "random_pixels", "scheduler": "none", "device": "cpu"}

    def pop_notes(self) -> list[str]:
        """Nothing ever happens."""
        return []

    @staticmethod
    def _draw(request: Request) -> NDArray[np.uint8]:
        bits = np.random.Generator(np.random.Philox(request.seed))
        shape = (request.call.height, request.call.width, 3)
        return bits.integers(0, 256, shape, dtype=np.uint8)

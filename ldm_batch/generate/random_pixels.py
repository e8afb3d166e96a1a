"""Engine `random_pixels`: noise in place of a model's images, to measure everything around one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldm_batch.config import JobConfig
from ldm_batch.generate.task import Engine, FoundModels, Lock, Task
from ldm_batch.made_as import MadeAs
from ldm_batch.records import Call, Fault, PromptCount, Request

SIDE = 8
"""Pixels of height and width where a job does not say."""
BATCH_SIZE = 16


class RandomPixels:
    """Pictures of random pixels, uint8 `[height, width, 3]`, from each request's seed."""

    def __init__(self, batch_size: int = BATCH_SIZE) -> None:
        self._batch_size = batch_size

    def count_tokens(self, prompts: Sequence[str]) -> list[PromptCount]:
        """Count words."""
        return [PromptCount(len(prompt.split()), False) for prompt in prompts]

    def batch_key(self, call: Call) -> tuple[Call, int]:
        """Images of an equal call share a batch."""
        return call, self._batch_size

    def generate(self, requests: Sequence[Request]) -> list[NDArray[np.uint8] | Fault]:
        """Draw one picture per request, uint8 `[height, width, 3]`."""
        return [self._draw(request) for request in requests]

    def as_made(self, _how: MadeAs) -> RandomPixels:
        """Nothing is ever otherwise than planned."""
        return self

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


def check(job: JobConfig, task: Task) -> Iterator[str]:
    """It enlarges nothing, and makes nothing of images."""
    if task.columns.has_image and task.columns.scale == 1:
        yield f"model.engine: random_pixels makes nothing of images, but task={task.name} does"
    if task.columns.scale > 1:
        section = task.stages(job)[-1].section
        where = f"{section}model: set" if section else f"model.engine: task={task.name}"
        yield f"{where}, but random_pixels enlarges nothing; use model.engine=ldm"


def find(_job: JobConfig, _task: Task) -> FoundModels:
    """No files."""
    return FoundModels({}, (SIDE, SIDE))


def check_models(_job: JobConfig, _task: Task) -> list[str]:
    """No models."""
    return []


def load(job: JobConfig, _task: Task, _lock: Lock) -> RandomPixels:
    """Nothing to load."""
    return RandomPixels(job.batch_size)


def measure_batch_size(_job: JobConfig, _native_size: tuple[int, int]) -> int:
    """Any would do."""
    return BATCH_SIZE


RANDOM_PIXELS = Engine(
    name="random_pixels",
    has_models=False,
    check=check,
    find=find,
    check_models=check_models,
    load=load,
    measure_batch_size=measure_batch_size,
)

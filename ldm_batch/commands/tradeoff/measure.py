"""Run the same requests under many settings, interleaved, and compare the pictures.

Must not know how results are shown or where requests came from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ldm_batch.config import JobConfig, SchedulerConfig
from ldm_batch.errors import JobError
from ldm_batch.generate.pipeline import Picture
from ldm_batch.records import Fault, Made, Request

MAX_BATCH_SIZE = 16


@dataclass(frozen=True, slots=True)
class Setting:
    """One way of sampling."""

    label: str
    scheduler: SchedulerConfig
    num_inference_steps: int


@dataclass(frozen=True, slots=True)
class Result:
    """What a setting gave, beside the reference."""

    label: str
    num_inference_steps: int
    images: list[NDArray[np.uint8]]
    cpu_s: float
    """CPU seconds per image: what matters on CPUs, comparable on a busy machine."""
    wall_s: float
    """Seconds per image: what matters on a GPU."""
    distance: float
    """Root mean square distance of pixels to the reference's, on a scale of 0 to 1."""
    share_right: float | None = None
    """Share of images that show what their prompt says; None where nobody can tell."""


ShareRight = Callable[[Sequence[NDArray[np.uint8]], Sequence[str]], float | None]
"""(pictures, their prompts) -> the share, 0 to 1, of those that show what their prompt says; None
where that cannot be told."""


def cannot_tell(_images: Sequence[NDArray[np.uint8]], _prompts: Sequence[str]) -> None:
    """Whether pictures are right takes somebody who knows the world of their prompts."""


Generate = Callable[[Sequence[Request]], Sequence[Picture]]


def measure(
    job: JobConfig,
    requests: Sequence[Request],
    settings: Sequence[Setting],
    share_right: ShareRight = cannot_tell,
) -> list[Result]:
    """Make every request under every setting; the first setting is the reference.

    Args:
        share_right: who judges whether pictures show what their prompts say.

    Raises:
        JobError: the model does not load or a setting is wrong.
    """
    import torch

    from ldm_batch.diffusion.text_to_image import TextToImage

    torch.set_num_threads(job.num_threads)
    wished = job.batch_size if isinstance(job.batch_size, int) else MAX_BATCH_SIZE
    size = min(wished, MAX_BATCH_SIZE, len(requests))
    first = TextToImage.from_config(job.model, settings[0].scheduler, batch_size=size)
    ways = {s.label: _generate_with(first.with_scheduler(s.scheduler), s) for s in settings}
    runs = run_interleaved(ways, requests, size)
    reference = runs[settings[0].label][0]
    prompts = [request.inputs["prompt"] for request in requests]
    results = [_compare(setting, *runs[setting.label], reference) for setting in settings]
    return [replace(r, share_right=share_right(r.images, prompts)) for r in results]


def _generate_with(pipeline: object, setting: Setting) -> Generate:
    def generate(requests: Sequence[Request]) -> Sequence[Picture]:
        steps = setting.num_inference_steps
        changed = [replace(r, call=replace(r.call, num_inference_steps=steps)) for r in requests]
        return pipeline.generate(changed)  # type: ignore[attr-defined,no-any-return]

    return generate


def run_interleaved(
    ways: dict[str, Generate], requests: Sequence[Request], batch_size: int
) -> dict[str, tuple[list[NDArray[np.uint8]], float, float]]:
    """Run batch by batch, in each batch every way, so that a busy machine slows all alike.

    Returns:
        images, CPU seconds and seconds of each way; full batches alone are timed.
    """
    runs: dict[str, tuple[list[NDArray[np.uint8]], float, float]] = {}
    for label, generate in ways.items():
        _images(generate(requests[:1]))  # loads kernels and encodes the null prompt
        runs[label] = ([], 0.0, 0.0)
    for start in range(0, len(requests), batch_size):
        for label, generate in ways.items():
            cpu, wall = time.process_time(), time.perf_counter()
            made = _images(generate(requests[start : start + batch_size]))
            images, cpu_s, wall_s = runs[label]
            cpu_s += time.process_time() - cpu
            wall_s += time.perf_counter() - wall
            runs[label] = ([*images, *made], cpu_s, wall_s)
    return runs


def _images(made: Sequence[Picture]) -> list[NDArray[np.uint8]]:
    faults = [image for image in made if isinstance(image, Fault)]
    if faults:
        raise JobError(f"an image came out unusable: {faults[0].message}")
    return [i.pixels if isinstance(i, Made) else i for i in made if not isinstance(i, Fault)]


def _compare(
    setting: Setting,
    images: list[NDArray[np.uint8]],
    cpu_s: float,
    wall_s: float,
    reference: list[NDArray[np.uint8]],
) -> Result:
    error = (np.stack(images).astype(np.float64) - np.stack(reference)) / 255
    return Result(
        setting.label,
        setting.num_inference_steps,
        images,
        cpu_s=cpu_s / len(images),
        wall_s=wall_s / len(images),
        distance=float(np.sqrt((error**2).mean())),
    )

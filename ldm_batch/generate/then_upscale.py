"""Two stages in one worker: what a task makes is enlarged before it is stored.

A function over any task whose images are RGB; what that task does is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldm_batch.columns import IMAGE, IMAGE_COLUMNS
from ldm_batch.config import UPSCALE, JobConfig, ModelConfig
from ldm_batch.config.identified import identify_model, identify_scheduler
from ldm_batch.diffusion.models.files import LDM_SUPER_RESOLUTION
from ldm_batch.generate.pipeline import Picture, Pipeline
from ldm_batch.generate.super_resolution import (
    MAX_OUTPUT_PIXELS,
    SUPER_RESOLUTION,
    Enlarger,
    check_scale,
    identify_tiles,
)
from ldm_batch.generate.task import Lock, Stage, Task
from ldm_batch.identity import Form, fingerprint
from ldm_batch.made_as import MadeAs, how_made, with_made_as
from ldm_batch.records import (
    Call,
    Fault,
    Made,
    PlannedImage,
    PromptCount,
    Request,
    Row,
    UpscaleRequest,
    split_lock,
)

SECTION = "upscale."
RECORDED = (
    "upscale_seed",
    "upscale_num_inference_steps",
    "upscale_eta",
    "upscale_scheduler",
    "upscale_model",
    "upscale_model_sha256",
    "low_resolution_height",
    "low_resolution_width",
    "low_resolution_pixel_sha256",
)
"""What a second stage adds to the columns of a task; height and width are the large image's."""


def then_upscale(task: Task, *, keep_low_resolution: bool) -> Task:
    """The task whose images are made four times as large in the same worker.

    Args:
        keep_low_resolution: store what the first stage made, too.
    """

    def stages(job: JobConfig) -> list[Stage]:
        second = Stage(SECTION, job.upscale.model, job.upscale.scheduler, LDM_SUPER_RESOLUTION)
        return [*task.stages(job), second]

    def identify(job: JobConfig, lock: Lock) -> dict[str, Any]:
        first, second = split_lock(lock)
        return task.identify(job, first) | _identify_second(job, second)

    def plan_image(row: Row, image_index: int, job_seed: int, form: Form) -> PlannedImage:
        image = task.plan_image(row, image_index, job_seed, form)
        key = form.image_key(row.key, image_index)
        return replace(image, upscale_seed=form.upscale_seed(job_seed, key, 0))

    def load(job: JobConfig, lock: Lock) -> Pipeline:
        assert task.load is not None
        return load_both(task.load, job, lock, scale=task.columns.scale)

    def record(image: PlannedImage, count: PromptCount, low: str | None) -> dict[str, Any]:
        return task.record(image, count, None) | {
            "upscale_seed": image.upscale_seed,
            "low_resolution_height": image.row.call.height * task.columns.scale,
            "low_resolution_width": image.row.call.width * task.columns.scale,
            "low_resolution_pixel_sha256": low,
        }

    images = IMAGE_COLUMNS if keep_low_resolution else (IMAGE,)
    columns = replace(
        task.columns,
        recorded=(*task.columns.recorded, *RECORDED),
        images=images,
        scale=task.columns.scale * UPSCALE,
    )
    return replace(
        task,
        columns=columns,
        check=lambda job: _check(task, job),
        stages=stages,
        identify=identify,
        plan_image=plan_image,
        load=load,
        origin=_origin,
        record=record,
    )


def _check(task: Task, job: JobConfig) -> Iterator[str]:
    yield from task.check(job)
    if task.columns.scale > 1 and task.load is not None:
        yield f"upscale.model: set, but task={task.name} by engine ldm has no second stage"


def _identify_second(job: JobConfig, lock: Lock) -> dict[str, Any]:
    upscale = job.upscale
    return {
        "second_stage": {
            "model": identify_model(upscale.model, lock, SUPER_RESOLUTION.name),
            "scheduler": identify_scheduler(upscale.scheduler),
            "num_inference_steps": upscale.num_inference_steps,
            "eta": upscale.eta,
            "keep_low_resolution": upscale.keep_low_resolution,
        },
        "tiles": identify_tiles(job),
    }


def _origin(
    job: JobConfig, lock: Lock, described: Mapping[str, Any], model_names: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "upscale_num_inference_steps": job.upscale.num_inference_steps,
        "upscale_eta": job.upscale.eta,
        "upscale_scheduler": str(described["upscale"]["scheduler"]),
        "upscale_model": model_names[SECTION],
        "upscale_model_sha256": fingerprint(split_lock(lock)[1]),
    }


def load_both(
    load: Callable[[JobConfig, Lock], Pipeline], job: JobConfig, lock: Lock, *, scale: int
) -> Pipeline:
    """Load the models of both stages; what they have in common is loaded once.

    Args:
        load: the first one's.
        scale: how many times larger what it makes is than its call says.
    """
    from ldm_batch.diffusion.pipeline import LoadedPipeline
    from ldm_batch.diffusion.super_resolution import SuperResolution

    locks = split_lock(lock)
    first = load(job, locks[0])
    models = (job.model, job.upscale.model)
    names = shared_components(locks, models) if isinstance(first, LoadedPipeline) else []
    upscaler = SuperResolution.from_config(
        job.upscale.model,
        job.upscale.scheduler,
        batch_size=job.batch_size,
        num_threads=job.num_threads,
        lock=locks[1],
        shared=first.modules(names) if isinstance(first, LoadedPipeline) else {},
        tile_size=job.upscale.tile_size,
        tile_overlap=job.upscale.tile_overlap,
    )
    steps, eta = job.upscale.num_inference_steps, job.upscale.eta
    return ThenLarger(first, upscaler, num_inference_steps=steps, eta=eta, scale=scale)


def shared_components(
    locks: tuple[Lock, Lock], models: tuple[ModelConfig, ModelConfig]
) -> list[str]:
    """Names of the components that two models have in common, file by file, and load alike."""
    first, second = (replace(m, path=None, repo_id=None, revision=None) for m in models)
    if first != second:
        return []

    def of(name: str, lock: Lock) -> dict[str, str]:
        return {path: digest for path, digest in lock.items() if path.startswith(f"{name}/")}

    names = {path.split("/")[0] for path in locks[1] if "/" in path} - {"scheduler"}
    return sorted(name for name in names if of(name, locks[0]) == of(name, locks[1]))


class ThenLarger:
    """A pipeline whose images a second one enlarges before they leave the worker."""

    def __init__(
        self,
        first: Pipeline,
        upscaler: Enlarger,
        *,
        num_inference_steps: int,
        eta: float,
        scale: int = 1,
    ) -> None:
        """Take two pipelines; what the first makes is `scale` times as large as its call says."""
        self._first, self._upscaler = first, check_scale(upscaler)
        self._steps, self._eta, self._scale = num_inference_steps, eta, scale

    def count_tokens(self, prompts: Sequence[str]) -> list[PromptCount]:
        """Tokens of each prompt."""
        return self._first.count_tokens(prompts)

    def batch_key(self, call: Call) -> tuple[Call, int]:
        """As for the first stage; fewer images share a batch where they get very large."""
        key, size = self._first.batch_key(call)
        num_pixels = call.height * call.width * (self._scale * UPSCALE) ** 2
        fitting = max(1, MAX_OUTPUT_PIXELS // num_pixels)
        return key, min(size, fitting)

    def generate(self, requests: Sequence[Request]) -> list[Made | Fault]:
        """Make images and enlarge them; a fault of either stage is the image's."""
        first = self._first.generate(requests)
        small = [_pixels(image) for image in first]
        good = {i: image for i, image in enumerate(small) if not isinstance(image, Fault)}
        wanted = [self._request(pixels, requests[i]) for i, pixels in good.items()]
        large = self._upscaler.generate(wanted) if wanted else []
        made: dict[int, Made | Fault] = {
            i: image if isinstance(image, Fault) else _made(image, pixels, how_made(first[i]))
            for (i, pixels), image in zip(good.items(), large, strict=True)
        }
        return [image if isinstance(image, Fault) else made[i] for i, image in enumerate(small)]

    def as_made(self, how: MadeAs) -> ThenLarger:
        """Each stage as it was when it made images so."""
        first = self._first.as_made(replace(how, upscale=None))
        upscaler = self._upscaler.as_made(how.upscale or MadeAs())
        steps, eta, scale = self._steps, self._eta, self._scale
        return ThenLarger(first, upscaler, num_inference_steps=steps, eta=eta, scale=scale)

    def pop_notes(self) -> list[str]:
        """What the receipt should tell."""
        return [*self._first.pop_notes(), *self._upscaler.pop_notes()]

    def describe(self) -> dict[str, Any]:
        """What made the images, the second stage under `upscale`."""
        return {**self._first.describe(), "upscale": self._upscaler.describe()}

    def _request(self, pixels: NDArray[np.uint8], request: Request) -> UpscaleRequest:
        assert request.upscale_seed is not None
        return UpscaleRequest(pixels, request.upscale_seed, self._steps, self._eta)


def _pixels(image: Picture) -> NDArray[np.uint8] | Fault:
    """What a first stage made; what was measured of it is no more true when it is enlarged, but
    for how it was made."""
    return image.pixels if isinstance(image, Made) else image


def _made(large: NDArray[np.uint8] | Made, small: NDArray[np.uint8], first: MadeAs) -> Made:
    made = large if isinstance(large, Made) else Made(large)
    how = replace(first, upscale=how_made(large))
    noted: Made = with_made_as(made, how) if str(how) else made
    return replace(noted, low_resolution=small)

"""The arguments of a pipeline call as a job sets them; their ranges stand in `columns.py`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ldm_batch.columns import ARGUMENTS, COLUMNS, TaskColumns
from ldm_batch.config.bounds import fits


@dataclass
class CallConfig:
    """Defaults of the pipeline call; a mapped column of the same name wins per row."""

    num_inference_steps: int = COLUMNS["num_inference_steps"].default
    """Denoising steps, 1 to 1000."""
    guidance_scale: float = COLUMNS["guidance_scale"].default
    """Classifier-free guidance weight, 0 to 100; 1 is no guidance, 0 the unconditional image.
    Engine `diffusers`: as the model's pipeline takes it, where 0 is no guidance, too."""
    eta: float = COLUMNS["eta"].default
    """Noise of DDIM steps, 0 (deterministic) to 1 (DDPM); ignored by other schedulers."""
    height: int | None = None
    """Height in pixels, a multiple of 8; null: the model's own size."""
    width: int | None = None
    """Width in pixels, a multiple of 8; null: the model's own size."""
    guidance_rescale: float | None = None
    """How far guidance's gain in contrast is taken back, 0 (not) to 1; null:
    `scheduler.guidance_rescale`. A column of the input is used where `source.columns` names it."""
    strength: float | None = None
    """How far an image is turned to noise before it is denoised, 0.001 to 1 (nothing is left of
    it); null: 0.8 for image to image, 1 for inpainting."""
    noise_level: int | None = None
    """Noise added to an image before it is enlarged, in steps of its model's training; null: 20.
    Of super-resolution by engine `diffusers` alone."""
    negative_prompt: str = COLUMNS["negative_prompt"].default
    """The text guided away from; empty: the null prompt."""


def with_size(call: CallConfig, native_size: tuple[int, int]) -> CallConfig:
    """The call with height and width filled in by the model's own, in pixels, where they are not
    set."""
    height, width = native_size
    return replace(call, height=call.height or height, width=call.width or width)


def check_call(call: CallConfig, columns: TaskColumns) -> Iterator[str]:
    """Problems of the fields of `call` for a task with these columns, a line each.

    The first arguments there were are taken by every task, as they always were, and told apart by
    the fingerprint.
    """
    for name in ARGUMENTS:
        value = getattr(call, name)
        yield from fits(f"call.{name}", value, COLUMNS[name])
        if COLUMNS[name].is_particular and value is not None and name not in columns.fields:
            yield f"call.{name}: this task has no use for it; leave it out"

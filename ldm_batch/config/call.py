"""The arguments of a pipeline call: a job's defaults, their ranges, and the checks of that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ldm_batch.config.bounds import within

STEPS_RANGE = (1, 1000)
GUIDANCE_RANGE = (0.0, 100.0)
ETA_RANGE = (0.0, 1.0)
SIDE_RANGE = (8, 4096)
"""Pixels of height and width."""
SIDE_MULTIPLE = 8


@dataclass
class CallConfig:
    """Defaults of the pipeline call; a mapped column of the same name wins per row."""

    num_inference_steps: int = 50
    """Denoising steps, 1 to 1000."""
    guidance_scale: float = 1.0
    """Classifier-free guidance weight, 0 to 100; 1 is no guidance, 0 the unconditional image."""
    eta: float = 0.0
    """Noise of DDIM steps, 0 (deterministic) to 1 (DDPM); ignored by other schedulers."""
    height: int | None = None
    """Height in pixels, a multiple of 8; null: the model's own size."""
    width: int | None = None
    """Width in pixels, a multiple of 8; null: the model's own size."""
    negative_prompt: str = ""
    """The text guided away from; empty: the null prompt."""


def with_size(call: CallConfig, native_size: tuple[int, int]) -> CallConfig:
    """The call with height and width filled in by the model's own, in pixels, where they are not
    set."""
    height, width = native_size
    return replace(call, height=call.height or height, width=call.width or width)


def check_call(call: CallConfig) -> Iterator[str]:
    """Problems of the fields of `call`, a line each."""
    yield from within("call.num_inference_steps", call.num_inference_steps, *STEPS_RANGE)
    yield from within("call.guidance_scale", call.guidance_scale, *GUIDANCE_RANGE)
    yield from within("call.eta", call.eta, *ETA_RANGE)
    for name, pixels in (("call.height", call.height), ("call.width", call.width)):
        yield from within(name, pixels, *SIDE_RANGE)
        if pixels is not None and pixels % SIDE_MULTIPLE:
            yield f"{name}: {pixels} is not a multiple of {SIDE_MULTIPLE}"

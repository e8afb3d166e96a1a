"""A short drawing when a pipeline is loaded, that it can and that its noise is the images' own.

Must not know rows or shards.
"""

from __future__ import annotations

import copy

import torch

from ldm_batch.config import UPSCALE
from ldm_batch.diffusion.family.call import FamilyCall
from ldm_batch.diffusion.family.pictures import made_up_pictures
from ldm_batch.errors import JobError, LdmBatchError, one_line
from ldm_batch.records import Call, Request

PROBE_SIDE = 64
"""Pixels of height and width of the image that is drawn when a pipeline is loaded, at least; of
one that enlarges, after it."""
PROBE_STEPS = (2, 10)
"""How many steps that image is drawn in: the first number that its scheduler takes."""


def probe(call: FamilyCall) -> None:
    """Draw one small image in a few steps, guided and with all the noise that a row may ask for.

    Raises:
        JobError: the pipeline draws noise that is not the image's own, or cannot draw at all; or in
            float32 it draws what is no picture.
    """
    loaded, family, drawing = call.loaded, call.loaded.family, call.loaded.drawing
    side = PROBE_SIDE // UPSCALE if drawing.has_noise_level else PROBE_SIDE
    side = -(-side // loaded.size_multiple) * loaded.size_multiple
    texts = {"prompt": "a", "negative_prompt": "b" if family.has_negative else ""}
    steps = _probe_steps(call)
    request = Request(
        inputs={**texts, **made_up_pictures(drawing.pictures, side)},
        seed=0,
        call=Call(
            num_inference_steps=2 * steps if drawing.has_strength else steps,
            guidance_scale=2.0,
            eta=1.0 if family.has_eta else 0.0,
            height=side,
            width=side,
            strength=0.5 if drawing.has_strength else None,
            noise_level=1 if drawing.has_noise_level else None,
        ),
    )
    try:
        drawn = call.draw([request])
    except LdmBatchError:
        raise
    except Exception as error:  # of many kinds, where parts do not fit each other
        told = f"{type(error).__name__}: {one_line(error)}"
        raise JobError(f"model: {call.who} does not draw: {told}") from error
    if call.is_float32 and not bool(torch.isfinite(drawn).all()):
        raise JobError(
            f"model: {call.who} draws values that are not finite, in float32; a number of its "
            "configuration or of the scheduler's settings is wrong"
        )


def _probe_steps(call: FamilyCall) -> int:
    """PNDM with Runge-Kutta steps, for one, cannot do with two."""
    few, more = PROBE_STEPS
    if not call.loaded.family.is_flow:
        try:
            copy.deepcopy(call.loaded.pipe.scheduler).set_timesteps(few)
        except ValueError:
            return more
    return few

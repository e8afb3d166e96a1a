"""Task super_resolution where the model takes a prompt: an image becomes one four times as large.

As the other one's, its rows need nothing but an image. Must not know who draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ldm_batch.columns import IMAGE, TaskColumns
from ldm_batch.config import UPSCALE
from ldm_batch.generate import from_images, super_resolution
from ldm_batch.generate.image_to_image import IMAGE_TO_IMAGE
from ldm_batch.read.rows import RowContext, RowPlace, parse_all_carried, parse_seed
from ldm_batch.records import Row

ARGUMENTS = ("num_inference_steps", "guidance_scale", "eta", "noise_level")
NOISE_LEVEL = 20
"""Where neither the row nor the job says."""
COLUMNS = TaskColumns(
    fields=(IMAGE, "prompt", *from_images.FIELDS, *ARGUMENTS),
    recorded=from_images.recorded(ARGUMENTS),
    scale=UPSCALE,
)


def parse_row(values: Mapping[str, Any], place: RowPlace, context: RowContext) -> Row:
    """Make the row of an image to enlarge, with a prompt or none; its file is checked and kept.

    Raises:
        InvalidRow: a value is of the wrong type or out of range, or is no usable image.
    """
    texts = from_images.parse_texts(values, context, is_needed=False)
    arguments = from_images.parse_call(values, context, ARGUMENTS, {"noise_level": NOISE_LEVEL})
    seed, carry = parse_seed(values, context.form), parse_all_carried(values)
    image = from_images.keep_image(values, context, place.index)
    call = from_images.sized(arguments, image)
    return place.row({IMAGE: image, **texts}, call, seed=seed, carry=carry)


PROMPTED_SUPER_RESOLUTION = replace(
    IMAGE_TO_IMAGE,
    name=super_resolution.SUPER_RESOLUTION.name,
    columns=COLUMNS,
    parse_row=parse_row,
    plan_image=super_resolution.plan_image,
    seed_of=super_resolution.SUPER_RESOLUTION.seed_of,
    strength=None,
)

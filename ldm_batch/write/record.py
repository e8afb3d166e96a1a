"""What is recorded of each image: the columns beside its bytes.

Pure, without a clock: time, host and attempt belong into the receipt, or an image made again
could not be compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ldm_batch.records import InputImage, PlannedImage, PromptCount


@dataclass(frozen=True, slots=True)
class Origin:
    """What all images of a job have in common."""

    scheduler: str
    model: str
    model_sha256: str
    image_format: str
    fingerprint: str
    second_stage: Mapping[str, Any] = field(default_factory=dict)
    """What all images of a chained job have in common: its `upscale_` columns but the seed."""


def make_record(
    image: PlannedImage,
    *,
    origin: Origin,
    input_file: str,
    count: PromptCount,
    digests: tuple[str, str],
    scale: int = 1,
) -> dict[str, Any]:
    """Everything that is recorded of one image, by column.

    Args:
        image: the image as it was planned.
        origin: what all images of the job share.
        input_file: name of the planned file that the row stands in.
        count: tokens of its prompt.
        digests: SHA-256 (hexadecimal) of the encoded bytes and of the pixels as generated.
        scale: how much larger the image is than its call says.
    """
    row, call = image.row, image.row.call
    return {
        "key": row.key,
        "prompt": row.prompt,
        "negative_prompt": row.negative_prompt,
        "image_index": image.image_index,
        "seed": image.seed,
        "num_inference_steps": call.num_inference_steps,
        "guidance_scale": call.guidance_scale,
        "eta": call.eta,
        "height": call.height * scale,
        "width": call.width * scale,
        "prompt_tokens": count.num_tokens,
        "prompt_truncated": count.is_truncated,
        "scheduler": origin.scheduler,
        "model": origin.model,
        "model_sha256": origin.model_sha256,
        "image_format": origin.image_format,
        "image_sha256": digests[0],
        "pixel_sha256": digests[1],
        "input_file": input_file,
        "input_row": row.input_row,
        "fingerprint": origin.fingerprint,
        **_input_record(row.image),
        **row.carry,
    }


def second_stage_record(
    image: PlannedImage, origin: Origin, low_resolution_pixel_sha256: str
) -> dict[str, Any]:
    """What a chained job records of an image beside `make_record`."""
    return {
        **origin.second_stage,
        "upscale_seed": image.upscale_seed,
        "low_resolution_height": image.row.call.height,
        "low_resolution_width": image.row.call.width,
        "low_resolution_pixel_sha256": low_resolution_pixel_sha256,
    }


def _input_record(image: InputImage | None) -> dict[str, Any]:
    """What is recorded of the image that a row brought to be enlarged."""
    if image is None:
        return {}
    return {
        "input_path": image.path,
        "input_sha256": image.sha256,
        "input_format": image.format,
        "input_mode": image.mode,
        "input_height": image.height,
        "input_width": image.width,
        "input_conversions": " ".join(image.conversions),
    }

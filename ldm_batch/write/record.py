"""What is recorded of each image: the columns beside its bytes.

Pure, without a clock: time, host and attempt belong into the receipt, or an image made again
could not be compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ldm_batch.columns import ARGUMENTS
from ldm_batch.records import PlannedImage


@dataclass(frozen=True, slots=True)
class Origin:
    """What all images of a job have in common."""

    scheduler: str
    model: str
    model_sha256: str
    image_format: str
    fingerprint: str
    of_task: Mapping[str, Any] = field(default_factory=dict)
    """Columns that its task has more."""


def make_record(
    image: PlannedImage,
    *,
    origin: Origin,
    input_file: str,
    digests: tuple[str, str],
    of_task: Mapping[str, Any],
    scale: int = 1,
) -> dict[str, Any]:
    """Everything that is recorded of one image, by column.

    Args:
        image: the image as it was planned.
        origin: what all images of the job share.
        input_file: name of the planned file that the row stands in.
        digests: SHA-256 (hexadecimal) of the encoded bytes and of the pixels as generated.
        of_task: the columns of this image that only its task has.
        scale: how much larger the image is than its call says.
    """
    row, call = image.row, image.row.call
    return {
        "key": row.key,
        "image_index": image.image_index,
        "seed": image.seed,
        **{name: getattr(call, name) for name in ARGUMENTS},
        "height": call.height * scale,
        "width": call.width * scale,
        "scheduler": origin.scheduler,
        "model": origin.model,
        "model_sha256": origin.model_sha256,
        "image_format": origin.image_format,
        "image_sha256": digests[0],
        "pixel_sha256": digests[1],
        "made_as": "",
        "input_file": input_file,
        "input_row": row.input_row,
        "fingerprint": origin.fingerprint,
        **origin.of_task,
        **of_task,
        **row.carry,
    }

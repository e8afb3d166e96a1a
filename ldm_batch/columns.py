"""The columns of a dataset beside the bytes of its images, and what marks a dataset as ours.

Must not know where a value comes from.
"""

from __future__ import annotations

from collections.abc import Mapping

METADATA_KEY = b"ldm_batch"
"""Key of a Parquet file's metadata under which an object says what it is (JSON)."""
IMAGE, LOW_RESOLUTION = "image", "low_resolution"
IMAGE_COLUMNS = (IMAGE, LOW_RESOLUTION)
"""Columns that hold images; the second one only where a job keeps what its first stage made."""

COLUMNS: Mapping[str, str] = {
    "key": "string",
    "prompt": "string",
    "negative_prompt": "string",
    "image_index": "int32",
    "seed": "uint64",
    "num_inference_steps": "int32",
    "guidance_scale": "float64",
    "eta": "float64",
    "height": "int32",
    "width": "int32",
    "prompt_tokens": "int32",
    "prompt_truncated": "bool",
    "scheduler": "string",
    "model": "string",
    "model_sha256": "string",
    "image_format": "string",
    "image_sha256": "string",
    "pixel_sha256": "string",
    "input_file": "string",
    "input_row": "int64",
    "fingerprint": "string",
}
"""Column -> Arrow type, in the order of the output object, after `image`."""

UPSCALE_COLUMNS: Mapping[str, str] = {
    "key": "string",
    "image_index": "int32",
    "seed": "uint64",
    "num_inference_steps": "int32",
    "eta": "float64",
    "height": "int32",
    "width": "int32",
    "scheduler": "string",
    "model": "string",
    "model_sha256": "string",
    "image_format": "string",
    "image_sha256": "string",
    "pixel_sha256": "string",
    "input_file": "string",
    "input_row": "int64",
    "input_path": "string",
    "input_sha256": "string",
    "input_format": "string",
    "input_mode": "string",
    "input_height": "int32",
    "input_width": "int32",
    "input_conversions": "string",
    "fingerprint": "string",
}
"""The columns of a job that enlarges images, after `image`; what it carries comes after them."""

SECOND_STAGE_COLUMNS: Mapping[str, str] = {
    "upscale_seed": "uint64",
    "upscale_num_inference_steps": "int32",
    "upscale_eta": "float64",
    "upscale_scheduler": "string",
    "upscale_model": "string",
    "upscale_model_sha256": "string",
    "low_resolution_height": "int32",
    "low_resolution_width": "int32",
    "low_resolution_pixel_sha256": "string",
}
"""What a chained job adds to `COLUMNS`; `height` and `width` are those of the large image."""

REPEATED_COLUMNS = (
    "prompt",
    "negative_prompt",
    "scheduler",
    "model",
    "model_sha256",
    "image_format",
    "input_file",
    "input_format",
    "input_mode",
    "input_conversions",
    "upscale_scheduler",
    "upscale_model",
    "upscale_model_sha256",
    "fingerprint",
)
"""Columns in which one value stands many times in a shard: worth a dictionary."""

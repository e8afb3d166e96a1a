"""What tasks have in common whose rows bring an image, and texts that say what becomes of it.

The image decides the size. Must not know any one of them, nor who draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ldm_batch.columns import COLUMNS, IMAGE
from ldm_batch.config import JobConfig, UpscaleConfig
from ldm_batch.generate.task import OF_EVERY_IMAGE
from ldm_batch.read.rows import InvalidRow, RowContext, parse_arguments, parse_seed, parse_text
from ldm_batch.records import Call, Fault, InputImage, PromptCount, Reason, Row

FIELDS = ("id", "image_index", "seed", "negative_prompt")
"""What a row may bring beside its image, its prompt and the arguments of the call."""
PARENT_SEED = "parent_seed"
"""What a row may bring where its image is changed, and not enlarged."""
ABOUT_IMAGE = (
    "input_path",
    "input_sha256",
    "input_format",
    "input_mode",
    "input_height",
    "input_width",
    "input_conversions",
)
"""What is recorded of the image that a row brought."""


def recorded(arguments: Sequence[str], more: Sequence[str] = ()) -> tuple[str, ...]:
    """The columns of a dataset, in their order.

    Args:
        arguments: of the call, as rows may bring them.
        more: after what is recorded of a row's image.
    """
    return (
        "key",
        "prompt",
        "negative_prompt",
        "image_index",
        "seed",
        *(name for name in arguments if not COLUMNS[name].is_named),
        "height",
        "width",
        "prompt_tokens",
        "prompt_truncated",
        *OF_EVERY_IMAGE,
        *ABOUT_IMAGE,
        *more,
        "fingerprint",
    )


def check(job: JobConfig) -> Iterator[str]:
    """Problems of a job's fields, a line each."""
    if job.batch_size == "auto":
        yield "batch_size: 'auto' measures text to image only; give a number, e.g. 8"
    for name in ("height", "width"):
        if (side := getattr(job.call, name)) is not None:
            yield f"call.{name}: {side}, but the images decide the size; leave it at null"
    if job.upscale.alpha == "keep":
        yield (
            "upscale.alpha: 'keep' is for super-resolution by engine ldm; transparent images are "
            "laid on upscale.background here"
        )
    second = job.upscale.model
    if second.path is None and second.repo_id is None:
        yield from _unused(job.upscale)


def _unused(upscale: UpscaleConfig) -> Iterator[str]:
    """Fields that only a second stage makes use of, a line each that is set."""
    usual = UpscaleConfig()
    for name in ("num_inference_steps", "eta", "keep_low_resolution", "tile_size", "tile_overlap"):
        if (value := getattr(upscale, name)) != getattr(usual, name):
            yield (
                f"upscale.{name}: {value!r}, which changes nothing here without a second model "
                "(upscale.model.path); leave it out"
            )


def identify(job: JobConfig) -> dict[str, Any]:
    """How images are read."""
    source, upscale = job.source, job.upscale
    return {
        "input_images": {
            "max_image_bytes": source.max_image_bytes,
            "max_image_pixels": source.max_image_pixels,
            "alpha": upscale.alpha,
            "background": upscale.background,
        }
    }


def parse_texts(
    values: Mapping[str, Any], context: RowContext, *, is_needed: bool = True
) -> dict[str, str]:
    """The texts of a row; an empty prompt is one.

    Args:
        is_needed: whether a null prompt is a rejection, and not an empty one.

    Raises:
        InvalidRow: the prompt is null, or a text is too long or no UTF-8.
    """
    max_chars = context.source.max_prompt_chars
    negative = parse_text(values, "negative_prompt", max_chars)
    prompt = parse_text(values, "prompt", max_chars)
    if prompt is None and is_needed:
        raise InvalidRow(Reason.NULL_PROMPT, "the prompt is null; an empty text is one")
    default = context.call.negative_prompt
    return {"prompt": prompt or "", "negative_prompt": default if negative is None else negative}


def parse_call(
    values: Mapping[str, Any],
    context: RowContext,
    names: Sequence[str],
    usual: Mapping[str, float],
) -> dict[str, Any]:
    """Arguments of the call by name, the size aside.

    Args:
        usual: what they are where neither the row nor the job says.

    Raises:
        InvalidRow: a value is of the wrong type or out of range.
    """
    found = parse_arguments(values, context.call, names)
    return {name: usual.get(name) if value is None else value for name, value in found.items()}


def keep_image(values: Mapping[str, Any], context: RowContext, index: int) -> InputImage:
    """The image of the row at a place of its shard; its file is checked and kept.

    Raises:
        InvalidRow: it is no usable image.
    """
    assert context.images is not None
    return found_or_invalid(context.images.keep(index, values[IMAGE]))


def found_or_invalid(image: InputImage | Fault) -> InputImage:
    """An image that was found usable.

    Raises:
        InvalidRow: it was not.
    """
    if isinstance(image, Fault):
        raise InvalidRow(image.reason, image.message)
    return image


def with_parent_seed(row: Row, values: Mapping[str, Any], context: RowContext) -> Row:
    """The row with the seed that its image was made by, where that is known.

    Raises:
        InvalidRow: that is no seed.
    """
    return replace(row, parent_seed=parse_seed(values, context.form, PARENT_SEED))


def sized(arguments: Mapping[str, Any], image: InputImage) -> Call:
    """The call of a row whose image decides the size."""
    return Call(**arguments, height=image.height, width=image.width)


def record_image(original: InputImage) -> dict[str, Any]:
    """What the image that a row brought was."""
    return {
        "input_path": original.path,
        "input_sha256": original.sha256,
        "input_format": original.format,
        "input_mode": original.mode,
        "input_height": original.height,
        "input_width": original.width,
        "input_conversions": " ".join(original.conversions),
    }


def record_texts(inputs: Mapping[str, Any], count: PromptCount) -> dict[str, Any]:
    """The texts of a row, and how many tokens its prompt has."""
    return {
        "prompt": inputs["prompt"],
        "negative_prompt": inputs["negative_prompt"],
        "prompt_tokens": count.num_tokens,
        "prompt_truncated": count.is_truncated,
    }

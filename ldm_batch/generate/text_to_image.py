"""Task: a prompt becomes an image (Rombach et al. 2022, section 4.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldm_batch.columns import ARGUMENTS as ALL_ARGUMENTS
from ldm_batch.columns import COLUMNS as ALL
from ldm_batch.columns import TaskColumns
from ldm_batch.config import JobConfig
from ldm_batch.diffusion.models.files import LDM_TEXT_TO_IMAGE
from ldm_batch.generate.pipeline import Pipeline
from ldm_batch.generate.task import OF_EVERY_IMAGE, LoadImages, Lock, Stage, Task, nothing_to_check
from ldm_batch.identity import Form
from ldm_batch.read.rows import (
    InvalidRow,
    RowContext,
    RowPlace,
    parse_all_carried,
    parse_arguments,
    parse_seed,
    parse_size,
    parse_text,
)
from ldm_batch.records import Call, PlannedImage, PromptCount, Reason, Request, Row

OF_IMAGES = ("strength", "noise_level")
ARGUMENTS = tuple(name for name in ALL_ARGUMENTS if name not in OF_IMAGES)
COLUMNS = TaskColumns(
    fields=("prompt", "id", "seed", "negative_prompt", *ARGUMENTS),
    recorded=(
        "key",
        "prompt",
        "negative_prompt",
        "image_index",
        "seed",
        *(name for name in ARGUMENTS if not ALL[name].is_named),
        "prompt_tokens",
        "prompt_truncated",
        *OF_EVERY_IMAGE,
        "fingerprint",
    ),
)


def parse_row(values: Mapping[str, Any], place: RowPlace, context: RowContext) -> Row:
    """Make the row of a prompt; a null takes the job's default.

    Raises:
        InvalidRow: a value is missing, of the wrong type, out of range or too large.
    """
    max_chars = context.source.max_prompt_chars
    negative = parse_text(values, "negative_prompt", max_chars)
    prompt = parse_text(values, "prompt", max_chars)
    if prompt is None:
        raise InvalidRow(Reason.NULL_PROMPT, "the prompt is null")
    if not prompt.strip():
        raise InvalidRow(Reason.EMPTY_PROMPT, "the prompt is empty or blank")
    default = context.call.negative_prompt
    return place.row(
        {"prompt": prompt, "negative_prompt": default if negative is None else negative},
        Call(**parse_arguments(values, context.call, ARGUMENTS) | parse_size(values, context)),
        seed=parse_seed(values, context.form),
        carry=parse_all_carried(values),
    )


def plan_image(row: Row, image_index: int, job_seed: int, form: Form) -> PlannedImage:
    """Image `image_index` of a row, with its seed."""
    seed = form.image_seed(job_seed, row.key, image_index, row.seed)
    return PlannedImage(row, image_index, seed)


def make_request(image: PlannedImage, _images: LoadImages | None) -> Request:
    """The texts of the row, and the image's seeds."""
    row = image.row
    return Request(
        inputs=row.inputs, seed=image.seed, call=row.call, upscale_seed=image.upscale_seed
    )


def request_again(record: Mapping[str, Any], columns: TaskColumns) -> Request:
    """The request of an image from its record; of two stages, the first one's size."""
    arguments = {name: record[name] for name in ARGUMENTS if name in columns.recorded}
    size = {s: record.get(f"low_resolution_{s}") or record[s] for s in ("height", "width")}
    return Request(
        inputs={name: record[name] for name in ("prompt", "negative_prompt")},
        seed=record["seed"],
        call=Call(**arguments | size),
        upscale_seed=record.get("upscale_seed"),
    )


def stages(job: JobConfig) -> list[Stage]:
    """One model."""
    return [Stage("", job.model, job.scheduler, LDM_TEXT_TO_IMAGE)]


def load(job: JobConfig, lock: Lock) -> Pipeline:
    """Load the model; a JobError where it does not, or is not that of the lock."""
    from ldm_batch.diffusion.text_to_image import TextToImage

    return TextToImage.from_config(
        job.model,
        job.scheduler,
        batch_size=job.batch_size,
        num_threads=job.num_threads,
        lock=lock,
    )


def record(image: PlannedImage, count: PromptCount, _low: str | None) -> dict[str, Any]:
    """The texts, and how many tokens the prompt has."""
    return {
        **image.row.inputs,
        "prompt_tokens": count.num_tokens,
        "prompt_truncated": count.is_truncated,
    }


def identify(_job: JobConfig, _lock: Lock) -> dict[str, Any]:
    """What every task has is enough."""
    return {}


def origin(*_: object) -> dict[str, Any]:
    """What every task has is enough."""
    return {}


TEXT_TO_IMAGE = Task(
    name="text_to_image",
    columns=COLUMNS,
    check=nothing_to_check,
    stages=stages,
    identify=identify,
    parse_row=parse_row,
    plan_image=plan_image,
    seed_of=lambda form: form.image_seed,
    make_request=make_request,
    request_again=request_again,
    load=load,
    origin=origin,
    record=record,
)

"""Task: a row of an id alone becomes an image. For the engine `random_pixels`; has no model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldm_batch.columns import TaskColumns
from ldm_batch.config import JobConfig
from ldm_batch.generate.pipeline import Pipeline
from ldm_batch.generate.task import Lock, Stage, Task, nothing_to_check
from ldm_batch.generate.text_to_image import identify, make_request, origin, plan_image
from ldm_batch.read.rows import RowContext, RowPlace, parse_all_carried, parse_arguments, parse_seed
from ldm_batch.records import Call, PlannedImage, PromptCount, Request, Row

ARGUMENTS = ("num_inference_steps", "height", "width")
COLUMNS = TaskColumns(
    fields=("id", "seed", *ARGUMENTS),
    recorded=("key", "image_index", "seed", *ARGUMENTS, "image_format", "image_sha256",
              "pixel_sha256", "input_file", "input_row", "fingerprint"),
)  # fmt: skip


def parse_row(values: Mapping[str, Any], place: RowPlace, context: RowContext) -> Row:
    """Make a row of its numbers."""
    call = Call(**parse_arguments(values, context.call, ARGUMENTS))
    return place.row({}, call, seed=parse_seed(values), carry=parse_all_carried(values))


def request_again(record: Mapping[str, Any]) -> Request:
    """The request of an image from its record."""
    call = Call(**{name: record[name] for name in ARGUMENTS})
    return Request(inputs={}, seed=record["seed"], call=call)


def record(_image: PlannedImage, _count: PromptCount, _low: str | None) -> dict[str, Any]:
    """What every task has is enough."""
    return {}


def stages(_job: JobConfig) -> list[Stage]:
    """No model."""
    return []


def load(_job: JobConfig, _lock: Lock) -> Pipeline:
    """There is nothing to load."""
    raise NotImplementedError


TOY = Task(
    name="toy",
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

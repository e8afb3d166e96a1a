"""Raw values of one input row -> a checked row, or the reason why there is none.

Pure; must not know Parquet files, shards or pipelines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ldm_batch.config import CallConfig, SourceConfig
from ldm_batch.config.call import ETA_RANGE, GUIDANCE_RANGE, SIDE_MULTIPLE, SIDE_RANGE, STEPS_RANGE
from ldm_batch.identity import MAX_GIVEN_SEED, Form
from ldm_batch.read import footer as footers
from ldm_batch.read.images import InputImages
from ldm_batch.records import Call, Fault, Reason, Row

MAX_ID_CHARS = 512
MAX_CARRIED_BYTES = 1024 * 1024
MAX_IMAGES_PER_ROW = 10**6


@dataclass(frozen=True, slots=True)
class RowPlace:
    """Where a row stands: in its shard and in its input file, both 0-based, and its key."""

    index: int
    input_row: int
    key: str


class InvalidRow(Exception):
    """A value that makes its row a rejection."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def parse_prompt_row(
    values: Mapping[str, Any], place: RowPlace, source: SourceConfig, call: CallConfig
) -> Row:
    """Make the row of a prompt from its raw values; a null takes the job's default.

    Raises:
        InvalidRow: a value is missing, of the wrong type, out of range or too large.
    """
    negative = _text(values, "negative_prompt", source.max_prompt_chars)
    return Row(
        index=place.index,
        input_row=place.input_row,
        key=place.key,
        prompt=_parse_prompt(values, source),
        negative_prompt=call.negative_prompt if negative is None else negative,
        call=_parse_call(values, call),
        seed=_whole(values, "seed", None, 0, MAX_GIVEN_SEED),
        carry=_parse_all_carried(values),
    )


def parse_image_row(
    values: Mapping[str, Any], place: RowPlace, call: CallConfig, images: InputImages
) -> Row:
    """Make the row of an image to enlarge; its pixels are checked and kept in `images`.

    Raises:
        InvalidRow: a value is missing, of the wrong type or out of range, or is no usable image.
    """
    steps = _required_whole(values, "num_inference_steps", call.num_inference_steps, STEPS_RANGE)
    eta = _number(values, "eta", call.eta, ETA_RANGE)
    seed = _whole(values, "seed", None, 0, MAX_GIVEN_SEED)
    carry = _parse_all_carried(values)
    image = images.keep(place.index, values["image"])
    if isinstance(image, Fault):
        raise InvalidRow(image.reason, image.message)
    return Row(
        index=place.index,
        input_row=place.input_row,
        key=place.key,
        prompt="",
        negative_prompt="",
        call=Call(steps, 1.0, eta, image.height, image.width),
        seed=seed,
        carry=carry,
        image=image,
    )


def parse_key(values: Mapping[str, Any], derived: str, form: Form) -> str:
    """The row's own id, with the image's number where the input has one, else the derived key.

    Raises:
        InvalidRow: the id is null, empty, too long or no UTF-8.
    """
    if "id" not in values:
        return derived
    image_index = _whole(values, "image_index", 0, 0, MAX_IMAGES_PER_ROW)
    return form.image_key(_parse_id(values["id"]), image_index or 0)


def _parse_id(value: Any) -> str:
    if value is None:
        raise InvalidRow(Reason.INVALID_ID, "the id is null")
    if isinstance(value, int):
        return str(value)
    if not value or len(value) > MAX_ID_CHARS:
        raise InvalidRow(
            Reason.INVALID_ID, f"the id has {len(value)} bytes, it may have 1 to {MAX_ID_CHARS}"
        )
    return _decode(value, "id")


def _parse_prompt(values: Mapping[str, Any], source: SourceConfig) -> str:
    prompt = _text(values, "prompt", source.max_prompt_chars)
    if prompt is None:
        raise InvalidRow(Reason.NULL_PROMPT, "the prompt is null")
    if not prompt.strip():
        raise InvalidRow(Reason.EMPTY_PROMPT, "the prompt is empty or blank")
    return prompt


def _text(values: Mapping[str, Any], name: str, max_chars: int) -> str | None:
    value = values.get(name)
    if value is None:
        return None
    if len(value) <= 4 * max_chars:
        text = _decode(value, name)
        if len(text) <= max_chars:
            return text
    raise InvalidRow(
        Reason.PROMPT_TOO_LARGE,
        f"{name} has {len(value)} bytes; at most {max_chars} characters (source.max_prompt_chars)",
    )


def _decode(value: bytes, name: str) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRow(Reason.INVALID_TEXT, f"{name} is not UTF-8: {error.reason}") from None


def _parse_call(values: Mapping[str, Any], call: CallConfig) -> Call:
    return Call(
        num_inference_steps=_required_whole(
            values, "num_inference_steps", call.num_inference_steps, STEPS_RANGE
        ),
        guidance_scale=_number(values, "guidance_scale", call.guidance_scale, GUIDANCE_RANGE),
        eta=_number(values, "eta", call.eta, ETA_RANGE),
        height=_parse_side(values, "height", call.height),
        width=_parse_side(values, "width", call.width),
    )


def _parse_side(values: Mapping[str, Any], name: str, default: int | None) -> int:
    assert default is not None
    pixels = _required_whole(values, name, default, SIDE_RANGE)
    if pixels % SIDE_MULTIPLE:
        raise InvalidRow(
            Reason.OUT_OF_RANGE, f"{name} {pixels} is not a multiple of {SIDE_MULTIPLE}"
        )
    return pixels


def _required_whole(
    values: Mapping[str, Any], name: str, default: int, limits: tuple[int, int]
) -> int:
    value = _whole(values, name, default, *limits)
    assert value is not None
    return value


def _whole(
    values: Mapping[str, Any], name: str, default: int | None, low: int, high: int
) -> int | None:
    value = values.get(name)
    if value is None:
        return default
    if isinstance(value, float) and not value.is_integer():
        raise InvalidRow(Reason.WRONG_TYPE, f"{name} {value} is not a whole number")
    _refuse_outside(name, value, low, high)
    return int(value)


def _number(
    values: Mapping[str, Any], name: str, default: float, limits: tuple[float, float]
) -> float:
    value = values.get(name)
    if value is None:
        return default
    _refuse_outside(name, value, *limits)
    return float(value)


def _refuse_outside(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InvalidRow(Reason.OUT_OF_RANGE, f"{name} {value} is not between {low} and {high}")


def _parse_all_carried(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name.removeprefix("carry."): _parse_carried(value, name.removeprefix("carry."))
        for name, value in values.items()
        if name.startswith("carry.")
    }


def _parse_carried(value: Any, name: str) -> Any:
    if isinstance(value, int):
        raise InvalidRow(
            Reason.OUT_OF_RANGE,
            f"carried column {name!r} holds {value} bytes, at most {MAX_CARRIED_BYTES}",
        )
    try:
        value.validate(full=True)
    except pa.ArrowInvalid as error:
        message = f"carried column {name!r}: {footers.first_line(error)}"
        raise InvalidRow(Reason.INVALID_TEXT, message) from None
    return value

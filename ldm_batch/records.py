"""The values that flow through a job: files, shards, rows, requests, images, rejections, receipts.

Frozen, plain, with little behaviour of their own; this module imports no third party and
must not know where a value came from or where it goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Reason(StrEnum):
    """Why a row could not become images: the closed list of reason codes."""

    NULL_PROMPT = "null_prompt"
    EMPTY_PROMPT = "empty_prompt"
    PROMPT_TOO_LARGE = "prompt_too_large"
    TOO_MANY_TOKENS = "too_many_tokens"
    INVALID_TEXT = "invalid_text"
    WRONG_TYPE = "wrong_type"
    OUT_OF_RANGE = "out_of_range"
    INVALID_ID = "invalid_id"
    DUPLICATE_ID = "duplicate_id"
    NULL_IMAGE = "null_image"
    UNREADABLE_IMAGE = "unreadable_image"
    UNDECODABLE_IMAGE = "undecodable_image"
    IMAGE_TOO_LARGE = "image_too_large"
    UNSUPPORTED_IMAGE = "unsupported_image"
    NOT_FINITE = "not_finite"
    CONSTANT_IMAGE = "constant_image"
    OTHER_MASK_SIZE = "other_mask_size"
    EMPTY_MASK = "empty_mask"
    MALFORMED_LINE = "malformed_line"
    """A line of a text file that is no row."""


@dataclass(frozen=True, slots=True)
class StoredInput:
    """What a text file was converted into: a Parquet file beside the plan, read instead of it."""

    path: str
    """Below the sink."""
    size_bytes: int
    text_sha256: str
    """SHA-256 (hexadecimal) of the text file, by which that is still the same."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """One planned file, with what tells whether it is still the same file."""

    name: str
    """Path relative to the source's root, `/`-separated; part of derived keys, unique in a plan."""
    uri: str
    size_bytes: int
    version: str
    """The store's own version token (a local file's modification time, an S3 object's ETag)."""
    num_rows: int
    footer_sha256: str
    """Of a text file, that of the Parquet file which it was converted into."""
    stored: StoredInput | None = None
    """Where its rows are read, if it is a text file."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A row range of one input file: the unit of work, retry and commit."""

    index: int
    file: InputFile
    row_start: int
    num_rows: int

    @property
    def id(self) -> str:
        """The shard's name in every path and message, e.g. `00017`."""
        return f"{self.index:05d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """The arguments of a pipeline call; rows with an equal call may share a batch.

    `columns.py` says what each means and may be; height and width are in pixels.
    """

    num_inference_steps: int
    guidance_scale: float = 1.0
    eta: float = 0.0
    height: int
    width: int
    guidance_rescale: float | None = None
    strength: float | None = None
    noise_level: int | None = None


@dataclass(frozen=True, slots=True)
class InputImage:
    """An image that a row brings, as it was found; sides in pixels, upright."""

    sha256: str
    """Of the file's bytes, hexadecimal."""
    path: str | None
    """As the input names it."""
    format: str
    mode: str
    height: int
    width: int
    conversions: tuple[str, ...]
    """What was done to make it RGB; see `decode.py`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One valid input row.

    `index` is its place in the shard, `input_row` its place in the input file, both 0-based.
    """

    index: int
    input_row: int
    key: str
    inputs: Mapping[str, Any]
    """What its task makes an image of, by field: a prompt, an `InputImage`, ..."""
    call: Call
    seed: int | None
    carry: Mapping[str, Any] = field(default_factory=dict)
    parent_seed: int | None = None
    """Seed that the image which it brings was made by, where that is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One image to make: all that a pipeline may know of it."""

    inputs: Mapping[str, Any]
    """As a row's, but for images, which are pixels here: uint8 `[h, w, 3]`, or 4 with alpha; and
    masks: bool `[h, w]`, true where to repaint."""
    seed: int
    call: Call
    upscale_seed: int | None = None
    """Seed of the second stage of a chained job."""


@dataclass(frozen=True, slots=True)
class UpscaleRequest:
    """One image to make larger; requests of one padded size, steps and eta may share a batch."""

    pixels: Any
    """uint8 `[height, width, 3]`, any size."""
    seed: int
    num_inference_steps: int
    eta: float = 0.0


@dataclass(frozen=True, slots=True)
class Rejection:
    """A row (or its images) that could not be made, with the reason, for the user to read."""

    key: str
    input_row: int
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Fault:
    """What a pipeline returns in place of pixels when an image came out unusable."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class PromptCount:
    """How many tokens a prompt has (special tokens included) and whether the encoder cuts it."""

    num_tokens: int
    is_truncated: bool


Slot = tuple[int, str]
"""Where a picture of a shard belongs: the number of its image in the shard, and its column."""


@dataclass(frozen=True, slots=True)
class Made:
    """An image and what there is beside it."""

    pixels: Any
    """uint8 `[height, width, 3]`."""
    low_resolution: Any = None
    """What the first of two stages made, uint8 `[h, w, 3]`."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """What was measured of it."""


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """Image `image_index` of a row, with its seed, and the seed of the second stage if any."""

    row: Row
    image_index: int
    seed: int
    upscale_seed: int | None = None


SECOND_STAGE = "upscale/"
"""Before the paths of the second model's files in the lock of a job of two stages."""


def join_locks(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, str]:
    """The lock of a job of two stages; `split_lock` takes it apart."""
    return {**first, **{f"{SECOND_STAGE}{path}": digest for path, digest in second.items()}}


def split_lock(lock: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The files of the job's model, and those of its second stage if it has one."""
    first = {path: digest for path, digest in lock.items() if not path.startswith(SECOND_STAGE)}
    second = {
        path.removeprefix(SECOND_STAGE): digest
        for path, digest in lock.items()
        if path.startswith(SECOND_STAGE)
    }
    return first, second


class Outcome(StrEnum):
    """What became of an attempt at a shard that made its object."""

    COMMITTED = "committed"
    REPLACED = "replaced"
    FOUND = "found"
    """Another attempt had committed it before this one began; nothing was made."""
    LOST_TO_SAME = "lost_to_same"
    """Another attempt committed the same bytes first."""
    LOST_TO_OTHER = "lost_to_other"
    """Another attempt committed other bytes first; these stand."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What happened when a shard was made: counts, timings, where; never read to decide anything.

    Times are in seconds, sizes in bytes.
    """

    shard: int
    outcome: Outcome
    num_rows: int
    num_rows_with_images: int
    num_images: int
    rejected: Mapping[str, int]
    object_bytes: int
    object_sha256: str
    attempt: str = ""
    started_at: str = ""
    laps: Mapping[str, float] = field(default_factory=dict)
    """Seconds of each stage: `read_s`, `wait_s` (for the device), `generate_s`, `write_s`."""
    host: str = ""
    pid: int = 0
    pipeline: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def num_rejected(self) -> int:
        """Rows that became no image."""
        return sum(self.rejected.values())


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a shard could not be made, after all its attempts."""

    shard: int
    attempts: int
    message: str
    traceback: str = ""
    is_final: bool = False
    """Whether it would fail again unless the job is changed as the message says."""


@dataclass(frozen=True, slots=True)
class Notice:
    """Something about the cluster that whoever watches a job should read."""

    message: str

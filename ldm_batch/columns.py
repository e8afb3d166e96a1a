"""Every column once: what it is called, what it holds, within which bounds, and who brings it.

What a row may bring, what is recorded of an image, the defaults of a job's call and the checks of
all of these come from this table. Must not know tasks, files or models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from ldm_batch.identity import MAX_SEED

ArrowType = Literal["bool", "float64", "int32", "int64", "string", "uint64"]
METADATA_KEY = b"ldm_batch"
"""Key of a Parquet file's metadata under which an object says what it is (JSON)."""
IMAGE, LOW_RESOLUTION, MASK = "image", "low_resolution", "mask"
IMAGE_COLUMNS = (IMAGE, LOW_RESOLUTION)
"""Columns that hold images; the second one only where a job keeps what its first stage made."""


class By(StrEnum):
    """Who brings the value of a column."""

    ROW = "row"
    """The input alone."""
    CALL = "call"
    """The input where it has the column, else the job's `call`."""
    US = "us"
    """ldm_batch: provenance."""
    CHECK = "check"
    """A check of quality (`diffusion/quality.py`); null where an engine has none."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of an input, of a dataset, or of both."""

    name: str
    type: ArrowType | Literal["image"]
    """Arrow type where it is recorded; `image` for pictures."""
    by: By
    meaning: str
    default: Any = None
    """Of the job's `call`; None: somebody else says, as the model says its size."""
    low: float | None = None
    high: float | None = None
    """Smallest and largest value, both allowed."""
    multiple: int | None = None
    """Of whole numbers: what a value must be a multiple of."""
    repeats: bool = False
    """One value stands many times in a shard: worth a dictionary."""
    is_particular: bool = False
    """Of the job's `call`: refused where the job's task has no use for it."""
    is_named: bool = False
    """Read from the input only where `source.columns` names it, and recorded only where a job uses
    it: plans from before it was known had neither."""
    since: int = 1
    """Number of the first form of plans that have it recorded."""

    @property
    def about(self) -> str:
        """What it means, and when it is read if that is not wherever the input has it."""
        return f"{self.meaning}{' Read only where `source.columns` names it.' * self.is_named}"

    @property
    def is_text(self) -> bool:
        """Tell whether it holds text."""
        return self.type == "string"

    @property
    def is_whole(self) -> bool:
        """Tell whether it holds whole numbers."""
        return "int" in self.type


_ALL = (
    Column("id", "string", By.ROW, "Name of the row, text or a whole number; becomes `key`."),
    Column("key", "string", By.US, "Who the row is: its id, else its place in the input."),
    Column("prompt", "string", By.ROW, "What the image shows.", repeats=True),
    Column(
        "negative_prompt",
        "string",
        By.CALL,
        "The text guided away from; empty: the null prompt.",
        default="",
        repeats=True,
    ),
    Column(
        "image",
        "image",
        By.ROW,
        "The image to enlarge, to change or to repaint: bytes, {bytes, path}, or a path.",
    ),
    Column(
        "mask",
        "image",
        By.ROW,
        "Where to repaint it: an image of its size, brought in the same ways; from half grey (128 "
        "of 255) to white is repainted, the rest stays, to the bit. Colours count by their luma; a "
        "transparent one is rejected.",
    ),
    Column(
        "image_index",
        "int32",
        By.US,
        "Number of the image among those of its row, from 0.",
        low=0,
        high=10**6,
    ),
    Column(
        "seed",
        "uint64",
        By.ROW,
        "Seed of the image's noise: the row's own, or derived.",
        low=0,
        high=MAX_SEED,
    ),
    Column(
        "parent_seed",
        "uint64",
        By.ROW,
        "Seed that the row's image was itself made by, which noise that is derived then differs "
        "from; of a dataset of ours its column `seed`.",
        low=0,
        high=MAX_SEED,
        is_named=True,
    ),
    Column(
        "num_inference_steps", "int32", By.CALL, "Denoising steps.", default=50, low=1, high=1000
    ),
    Column(
        "guidance_scale",
        "float64",
        By.CALL,
        "Classifier-free guidance weight; 1 is no guidance, 0 the unconditional image (engine "
        "`diffusers`: no guidance).",
        default=1.0,
        low=0.0,
        high=100.0,
    ),
    Column(
        "eta",
        "float64",
        By.CALL,
        "Noise of DDIM steps, 0 (deterministic) to 1 (DDPM); ignored by other schedulers.",
        default=0.0,
        low=0.0,
        high=1.0,
    ),
    Column("height", "int32", By.CALL, "Height in pixels.", low=8, high=4096, multiple=8),
    Column("width", "int32", By.CALL, "Width in pixels.", low=8, high=4096, multiple=8),
    Column(
        "guidance_rescale",
        "float64",
        By.CALL,
        "How far guidance's gain in contrast is taken back; null: `scheduler.guidance_rescale`.",
        low=0.0,
        high=1.0,
        is_particular=True,
        is_named=True,
    ),
    Column(
        "strength",
        "float64",
        By.CALL,
        "How far an image is turned to noise before it is denoised, which takes this share of the "
        "steps; 1: nothing is left of it.",
        low=0.001,
        high=1.0,
        is_particular=True,
    ),
    Column(
        "noise_level",
        "int32",
        By.CALL,
        "Noise added to an image before it is enlarged, in steps of its model's training.",
        low=0,
        high=1000,
        is_particular=True,
    ),
    Column("prompt_tokens", "int32", By.US, "Tokens of the prompt, special ones included."),
    Column("prompt_truncated", "bool", By.US, "Whether the text encoder cut the prompt."),
    Column("scheduler", "string", By.US, "diffusers' class of the scheduler.", repeats=True),
    Column("model", "string", By.US, "The model's folder, or hub repository.", repeats=True),
    Column("model_sha256", "string", By.US, "SHA-256 of its files' SHA-256.", repeats=True),
    Column("image_format", "string", By.US, "webp, png or jpeg.", repeats=True),
    Column("image_sha256", "string", By.US, "SHA-256 of the image's bytes."),
    Column("pixel_sha256", "string", By.US, "SHA-256 of its pixels, RGB, row by row."),
    Column(
        "made_as",
        "string",
        By.US,
        "What was otherwise than planned when it was made: `batch_size=4` (out of memory), "
        "`float32`, of a second stage `upscale:float32`; empty as a rule.",
        repeats=True,
        since=2,
    ),
    Column("input_file", "string", By.US, "Name of the planned input file.", repeats=True),
    Column("input_row", "int64", By.US, "Place of the row in that file, from 0."),
    Column("input_path", "string", By.US, "Path of the row's image, as it was named."),
    Column("input_sha256", "string", By.US, "SHA-256 of its file's bytes."),
    Column("input_format", "string", By.US, "Its file format.", repeats=True),
    Column("input_mode", "string", By.US, "Its pixel format, Pillow's name.", repeats=True),
    Column("input_height", "int32", By.US, "Its height in pixels, upright."),
    Column("input_width", "int32", By.US, "Its width in pixels, upright."),
    Column("input_conversions", "string", By.US, "What made it RGB, by name.", repeats=True),
    Column("mask_path", "string", By.US, "Path of the row's mask, as it was named."),
    Column("mask_sha256", "string", By.US, "SHA-256 of its file's bytes."),
    Column("upscale_seed", "uint64", By.US, "Seed of the second stage's noise."),
    Column("upscale_num_inference_steps", "int32", By.US, "The second stage's steps."),
    Column("upscale_eta", "float64", By.US, "The second stage's eta."),
    Column("upscale_scheduler", "string", By.US, "The second stage's scheduler.", repeats=True),
    Column("upscale_model", "string", By.US, "The second stage's model.", repeats=True),
    Column("upscale_model_sha256", "string", By.US, "The same of its files.", repeats=True),
    Column("low_resolution_height", "int32", By.US, "Height of what the first stage made."),
    Column("low_resolution_width", "int32", By.US, "Width of what the first stage made."),
    Column("low_resolution_pixel_sha256", "string", By.US, "SHA-256 of its pixels."),
    Column(
        "fingerprint", "string", By.US, "SHA-256 of all that can change an image.", repeats=True
    ),
)
COLUMNS: Mapping[str, Column] = {column.name: column for column in _ALL}
"""All columns, by name."""
NULLABLE = ("seed", "parent_seed", "image_index")
"""What rows need not say although nobody else has a default for it."""
ARGUMENTS = tuple(c.name for c in _ALL if c.by is By.CALL and not c.is_text)
"""The arguments of a pipeline call: numbers that a row may bring, and a job has defaults for."""


@dataclass(frozen=True, slots=True)
class TaskColumns:
    """The columns of a task, as data for all who must not know tasks."""

    fields: tuple[str, ...]
    """What a row may bring; the first one it must."""
    recorded: tuple[str, ...]
    """What a dataset has beside images and carried columns, in this order."""
    images: tuple[str, ...] = (IMAGE,)
    """Which columns of a dataset hold images, in this order."""
    scale: int = 1
    """How many times larger an image is than the height and width of its call."""
    also_needed: tuple[str, ...] = ()
    """What every row must bring beside the first of the fields."""

    @property
    def main(self) -> str:
        """The field that every row must bring."""
        return self.fields[0]

    @property
    def needed(self) -> tuple[str, ...]:
        """The fields that every row must bring."""
        return (self.main, *self.also_needed)

    @property
    def pictures(self) -> tuple[str, ...]:
        """The fields that hold images."""
        return tuple(name for name in self.fields if COLUMNS[name].type == "image")

    @property
    def has_image(self) -> bool:
        """Tell whether rows bring images, which then decide the size of what is made of them."""
        return IMAGE in self.fields

    @property
    def types(self) -> dict[str, ArrowType]:
        """Name and Arrow type of the recorded columns."""
        return {n: kind for n in self.recorded if (kind := COLUMNS[n].type) != "image"}

    def of_dataset(self, form: int, carried: Mapping[str, str]) -> list[tuple[str, str]]:
        """Name and type of every column of a dataset that begins now, in order.

        Args:
            form: number of its plan's form, which knows no columns that came after it.
            carried: Arrow types of the columns that rows bring along, by name.
        """
        own = [(n, kind) for n, kind in self.types.items() if COLUMNS[n].since <= form]
        return [*((name, "image") for name in self.images), *own, *carried.items()]


def json_schema(fields: Iterable[str], needed: Iterable[str] | None = None) -> dict[str, Any]:
    """A JSON schema of rows that bring some columns (draft 2020-12).

    Args:
        needed: those that every row has; None: the first.
    """
    names = list(fields)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {name: _property(COLUMNS[name]) for name in names},
        "required": names[:1] if needed is None else list(needed),
    }


def _property(column: Column) -> dict[str, Any]:
    """One column as a property; null takes the job's default, where there may be one. The default
    itself is the job's to say."""
    kind = "string" if column.is_text else "integer" if column.is_whole else "number"
    kinds = ["string", "integer"] if column.name == "id" else [kind]
    described: dict[str, Any] = {"description": column.about}
    if column.type != "image":
        may_be_null = column.by is By.CALL or column.name in NULLABLE
        described["type"] = [*kinds, "null"] if may_be_null else kinds
    bounds = {"minimum": column.low, "maximum": column.high}
    described |= {name: value for name, value in bounds.items() if value is not None}
    return described | ({"multipleOf": column.multiple} if column.multiple else {})

"""The whole document: a job of its sections, its own fields, and the checks of these.

Knows nothing of where the values come from (Hydra, Python) or who uses them; imports neither
Hydra, torch nor Ray.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ldm_batch.columns import COLUMNS
from ldm_batch.config.bounds import fits, one_of, whole_or_auto, within
from ldm_batch.config.call import CallConfig
from ldm_batch.config.cluster import ClusterConfig
from ldm_batch.config.model import ModelConfig, SchedulerConfig
from ldm_batch.config.places import PLACE
from ldm_batch.config.s3 import S3Config
from ldm_batch.config.source import SourceConfig
from ldm_batch.config.storage import StorageAccess
from ldm_batch.config.upscale import UpscaleConfig

MAX_BATCH_SIZE, MAX_THREADS, MAX_IMAGES_PER_PROMPT = 4096, 1024, 1000
SHARDS = re.compile(r"([0-9]{1,9})(?: *- *([0-9]{1,9}))?")
ImageFormat = Literal["webp", "png", "jpeg"]
IMAGE_FORMATS: tuple[ImageFormat, ...] = get_args(ImageFormat)


@dataclass
class SinkConfig:
    """Where the dataset is written."""

    uri: str | None = field(default=None, metadata=PLACE)
    """The dataset's folder: a path, or `s3://bucket/prefix`, `gs://...`, `az://...`."""
    s3: S3Config = field(default_factory=S3Config)
    """How to reach the dataset where it is in S3."""
    storage: dict[str, Any] = field(default_factory=dict)
    """Options of fsspec for the dataset's store, e.g. `{project: p}` of `gs://`: a closed list for
    each kind of URL, never credentials."""
    allow_unconditional: bool = False
    """Accept a store that ignores the condition of a create: one driver at a time (by a lease), and
    the same bytes again wherever a shard is made twice are then your promise, not the store's."""

    @property
    def access(self) -> StorageAccess:
        """How its storage is reached, for storage/ alone to read."""
        return StorageAccess(self.s3, self.storage)


@dataclass
class ImageConfig:
    """How images are stored."""

    format: str = "webp"
    """`webp` (lossless), `png` (level 1) or `jpeg` (quality 95, 4:4:4)."""
    mark: bool = True
    """Mark every file as made by a trained model (IPTC DigitalSourceType, XMP, 0.5 kB)."""


@dataclass
class JobConfig:
    """One job: a source, a model, a sink, and how much of it to do."""

    name: str = "job"
    """Shown in messages and recorded; letters, digits, `_`, `-` and `.`."""
    task: str = "text_to_image"
    """What rows become images by: `text_to_image`; `image_to_image`: another image by a prompt;
    `inpainting`: what a mask marks, painted anew; or `super_resolution`: images four times as
    large."""
    model: ModelConfig = field(default_factory=ModelConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    call: CallConfig = field(default_factory=CallConfig)
    upscale: UpscaleConfig = field(default_factory=UpscaleConfig)
    """Super-resolution: tiles and transparency, and the model of a second stage; where rows bring
    images, what is behind transparent ones."""
    source: SourceConfig = field(default_factory=SourceConfig)
    sink: SinkConfig = field(default_factory=SinkConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    seed: int = 0
    """Job seed; every image's seed is derived from it, the row's key and the image's number."""
    num_images_per_prompt: int = 1
    """Images of each row, each with a seed of its own."""
    # OmegaConf would refuse 8.5 of an `int | str` in its own words, before the check below does.
    batch_size: Any = 16
    """Images per model call: a fixed shape, short batches are padded; part of the fingerprint.
    `auto` measures, where a worker runs, what suits the model when the dataset is first planned:
    on a GPU the largest that fits, on a CPU the smallest that is about as quick as any; for text
    to image only."""
    num_threads: int = 1
    """torch threads per worker; changes last bits, so it is part of the fingerprint. With more than
    one an image's last bits may depend on its place in its batch, too."""
    rows_per_shard: Any = "auto"
    """Rows of one output object at most; fixed when a dataset is first planned. `auto` chooses by
    the number of rows and workers: about 32 shards a worker, of 1024 images at most."""
    max_object_bytes: int = 256 * 1024 * 1024
    """Upper bound of one output object; shards are planned small enough to stay below it, as far as
    the sizes of images are known. May be raised when a job is resumed."""
    max_rejected_fraction: float = 0.1
    """Share of the dataset's rows that may be rejected before the job stops as going wrong; 1:
    never stop."""
    # A list as OmegaConf knows it would refuse `17` and `3-9`.
    shards: Any = field(default_factory=list)
    """Only these shards: a number, a range as `3-9`, or a list of these; empty: all that are
    missing. A job of named shards is never stopped by `max_rejected_fraction`."""
    overwrite: bool = False
    """Make the shards named in `shards` again, replacing what is committed."""
    plan_again: bool = False
    """Replace the plan of a dataset of which nothing is committed, with other settings or another
    input; refused while another driver is at work on it."""
    strict_environment: bool = False
    """Refuse to go on with other versions of torch, diffusers, transformers, Pillow or simplejpeg,
    or another kind of device, than the dataset was begun with; false: tell of it."""
    dry_run: bool = False
    """Print the plan and generate nothing."""


def check_own_fields(job: JobConfig) -> Iterator[str]:
    """Problems of the fields that stand in no section, of `sink` and of `image`, a line each."""
    if not job.name or not all(c.isalnum() or c in "_-." for c in job.name):
        yield f"name: {job.name!r} may hold letters, digits, '_', '-' and '.'"
    yield from one_of("image.format", job.image.format, IMAGE_FORMATS)
    yield from fits("seed", job.seed, COLUMNS["seed"])
    yield from within("num_images_per_prompt", job.num_images_per_prompt, 1, MAX_IMAGES_PER_PROMPT)
    yield from whole_or_auto("batch_size", job.batch_size, MAX_BATCH_SIZE)
    yield from within("num_threads", job.num_threads, 1, MAX_THREADS)
    yield from whole_or_auto("rows_per_shard", job.rows_per_shard, 1_000_000)
    yield from within("max_object_bytes", job.max_object_bytes, 64 * 1024, 4 * 1024**3)
    yield from within("max_rejected_fraction", job.max_rejected_fraction, 0, 1)
    try:
        named = shard_ranges(job.shards)
    except ValueError as error:
        named = []
        yield f"shards: {error}"
    if not job.sink.uri:
        yield "sink.uri: not set; name the folder of the dataset, e.g. sink.uri=out/cats"
    if job.overwrite and not named:
        yield "overwrite: needs the shards to make again, e.g. shards=[17]"


def shard_ranges(shards: Any) -> list[range]:
    """The shards that a job names: a number, `3-9` (both included), or a list of these.

    Raises:
        ValueError: it is none of these.
    """
    parts = shards if isinstance(shards, list) else [shards]
    return [_shard_range(part) for part in parts]


def _shard_range(part: object) -> range:
    match = SHARDS.fullmatch(str(part)) if isinstance(part, int | str) else None
    if match is None or isinstance(part, bool):
        raise ValueError(f"{part!r} is not a shard's number, or a range as 3-9")
    first = int(match[1])
    last = int(match[2] or first)
    if last < first:
        raise ValueError(f"{part!r} ends before it begins")
    return range(first, last + 1)

"""The typed document that describes a job: plain dataclasses, documented where declared.

Knows nothing of where the values come from (Hydra, Python) or who uses them; imports neither
Hydra, torch nor Ray.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ldm_batch.columns import COLUMNS, SECOND_STAGE_COLUMNS, UPSCALE_COLUMNS
from ldm_batch.config.cluster import ClusterConfig

PIPELINES = ("text_to_image", "super_resolution", "random_pixels")
SOURCE_KINDS = ("prompts", "images")
ALPHA_POLICIES = ("flatten", "keep")
UPSCALE = 4
"""How many times super-resolution enlarges each side."""
DTYPES = ("float32", "bfloat16", "float16")
ATTENTIONS = ("sdpa", "plain")
IMAGE_FORMATS = ("webp", "png", "jpeg")
LONG_PROMPT_POLICIES = ("truncate", "reject")
PROMPT_COLUMNS = (
    "prompt",
    "id",
    "seed",
    "negative_prompt",
    "num_inference_steps",
    "guidance_scale",
    "eta",
    "height",
    "width",
)
IMAGE_COLUMNS = ("image", "id", "image_index", "seed", "num_inference_steps", "eta")
STEPS_RANGE = (1, 1000)
GUIDANCE_RANGE = (0.0, 100.0)
ETA_RANGE = (0.0, 1.0)
SIDE_RANGE = (8, 4096)
SIDE_MULTIPLE = 8


@dataclass
class ModelConfig:
    """Which pipeline to load, from a local folder or a pinned hub revision."""

    pipeline: str = "text_to_image"
    """`text_to_image`, `super_resolution` (with `source=images`), or `random_pixels`: no model, to
    measure everything around one."""
    path: str | None = None
    """Local folder in diffusers' layout; `demo:text_to_image` names a model shipped with us."""
    repo_id: str | None = None
    """Hub repository, used when `path` is not set."""
    revision: str | None = None
    """Full commit sha of the hub repository (40 hexadecimal digits); branches are refused."""
    dtype: str = "float32"
    """`float32`, `bfloat16` or `float16`; half precision is very slow on CPUs."""
    device: str = "auto"
    """`auto` (CUDA where the worker has it, else CPU), `cpu` or `cuda`."""
    decode_dtype: str | None = None
    """dtype of the first stage; null: float32 where the model is float16, else the model's."""
    channels_last: bool = False
    """Keep convolution weights channels last: faster on CUDA in half precision."""
    attention: str = "sdpa"
    """`sdpa`, or `plain`: attention written out, slower, for comparison."""
    compile: bool = False
    """Compile UNet and decoder with torch.compile: minutes at start, faster steps on CUDA."""


@dataclass
class SchedulerConfig:
    """The diffusers scheduler and what is changed of the model's own settings."""

    name: str = "from_model"
    """A name of the closed list (`ddim`, `dpmpp_2m`, ...) or `from_model`."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Overrides of the scheduler's own arguments, e.g. `timestep_spacing: trailing`."""
    guidance_interval: list[float] = field(default_factory=lambda: [0.0, 1.0])
    """Part of the way from noise (0) to image (1) that is guided; [0, 1]: all of it."""
    guidance_rescale: float = 0.0
    """How far guidance's gain in contrast is taken back, 0 (not) to 1 (Lin et al. 2023: 0.7)."""
    cache_interval: int = 1
    """Deep UNet features are computed at every n-th step and reused between; 1: at every step."""


@dataclass
class CallConfig:
    """Defaults of the pipeline call; a mapped column of the same name wins per row."""

    num_inference_steps: int = 50
    """Denoising steps, 1 to 1000."""
    guidance_scale: float = 1.0
    """Classifier-free guidance weight, 0 to 100; 1 is no guidance, 0 the unconditional image."""
    eta: float = 0.0
    """Noise of DDIM steps, 0 (deterministic) to 1 (DDPM); ignored by other schedulers."""
    height: int | None = None
    """Height in pixels, a multiple of 8; null: the model's own size."""
    width: int | None = None
    """Width in pixels, a multiple of 8; null: the model's own size."""
    negative_prompt: str = ""
    """The text guided away from; empty: the null prompt."""


@dataclass
class S3Config:
    """How to reach an S3 store; credentials come from its standard chain, never from here."""

    endpoint: str | None = None
    """URL of another store than AWS, e.g. `https://minio.example:9000`; null: AWS, or what the
    environment's AWS_ENDPOINT_URL_S3 names."""
    region: str | None = None
    """Region of the bucket; null: the standard chain's, else `us-east-1`."""
    anonymous: bool = False
    """Send no credentials: for public buckets."""
    path_style: bool | None = None
    """Bucket in the path, not in the host name; null: where an endpoint is named."""
    ca_bundle: str | None = None
    """File with the certificates to trust; null: the system's, or AWS_CA_BUNDLE."""
    retry_s: float = 60.0
    """Seconds after which no new attempt at a failing request starts."""


@dataclass
class UpscaleConfig:
    """How images are made four times as large, and the second model of a job of two stages.

    A job whose own model is super-resolution takes steps and eta from `call`, and of this section
    only tiles and alpha.
    """

    model: ModelConfig = field(default_factory=lambda: ModelConfig(pipeline="super_resolution"))
    """Enlarges what the job's own model made from text; without a path images stay as they are."""
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    """The second model's scheduler."""
    num_inference_steps: int = 50
    """The second model's denoising steps, 1 to 1000."""
    eta: float = 0.0
    """The second model's noise of DDIM steps, 0 to 1."""
    keep_low_resolution: bool = False
    """Keep what the first stage made, in the column `low_resolution`."""
    tile_size: int = 128
    """Larger images are made in overlapping tiles of this side, in low-resolution pixels; a
    multiple of 32."""
    tile_overlap: int = 16
    """Low-resolution pixels that neighbouring tiles share and blend, less than half a tile."""
    alpha: str = "flatten"
    """Transparent images: `flatten` on `background`, or `keep`: alpha is enlarged by itself."""
    background: str = "#ffffff"
    """Colour behind transparent images, `rrggbb`; with a `#` it needs quotes on a command line."""


@dataclass
class SourceConfig:
    """The table of prompts, or of images to enlarge."""

    kind: str = "prompts"
    """`prompts`, or `images`: a column `image` of bytes, `{bytes, path}` structs, or paths."""
    uri: Any = None
    """A Parquet file, a glob, a folder (recursive), or a list of these; paths or URLs."""
    s3: S3Config = field(default_factory=S3Config)
    """How to reach the input where it is in S3."""
    columns: dict[str, str | None] = field(default_factory=dict)
    """Field -> column name, e.g. `{prompt: caption}`; unmapped fields use a column of their name
    where the input has one; `null` ignores such a column."""
    carry: list[str] = field(default_factory=list)
    """Extra columns copied unchanged to the output."""
    max_prompt_chars: int = 4096
    """Longer prompts are rejected before the tokenizer sees them."""
    long_prompts: str = "truncate"
    """Prompts past the text encoder's tokens: `truncate` (recorded) or `reject`."""
    image_root: str | None = None
    """Folder or URL below which the paths of images must stand, and to which relative ones are
    relative; null: the folder of the Parquet file."""
    max_image_bytes: int = 32 * 1024 * 1024
    """Larger image files are rejected unread."""
    max_image_pixels: int = 1024 * 1024
    """Images of more pixels are rejected before they are decoded."""
    carry_parent: bool = True
    """Copy the columns of a dataset of ours to what is made of its images; `parent_` is put before
    names that the new dataset has itself."""
    allow_touched: bool = False
    """Accept planned files whose time stamp changed while size and footer did not."""


@dataclass
class SinkConfig:
    """Where the dataset is written."""

    uri: str | None = None
    """The dataset's folder: a path, or `s3://bucket/prefix`."""
    s3: S3Config = field(default_factory=S3Config)
    """How to reach the dataset where it is in S3."""
    allow_unconditional: bool = False
    """Accept a store that ignores `If-None-Match`: one driver at a time (by a lease), and the same
    bytes again wherever a shard is made twice are then your promise, not the store's."""


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
    model: ModelConfig = field(default_factory=ModelConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    call: CallConfig = field(default_factory=CallConfig)
    upscale: UpscaleConfig = field(default_factory=UpscaleConfig)
    """Super-resolution: tiles and transparency, and the model of a second stage."""
    source: SourceConfig = field(default_factory=SourceConfig)
    sink: SinkConfig = field(default_factory=SinkConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    seed: int = 0
    """Job seed; every image's seed is derived from it, the row's key and the image's number."""
    num_images_per_prompt: int = 1
    """Images of each row, each with a seed of its own."""
    batch_size: Any = 16
    """Images per model call: a fixed shape, short batches are padded; part of the fingerprint.
    `auto` measures, where a worker runs, what suits the model when the dataset is first planned:
    on a GPU the largest that fits, on a CPU the smallest that is about as quick as any; for text
    to image only."""
    num_threads: int = 1
    """torch threads per worker; changes last bits, so it is part of the fingerprint."""
    rows_per_shard: Any = "auto"
    """Rows of one output object at most; fixed when a dataset is first planned. `auto` chooses by
    the number of rows and workers, see `shard_size.py`."""
    max_object_bytes: int = 256 * 1024 * 1024
    """Upper bound of one output object; shards are planned small enough to stay below it."""
    max_rejected_fraction: float = 0.1
    """Share of rows that may be rejected before the job stops as going wrong; 1: never stop."""
    shards: list[int] = field(default_factory=list)
    """Only these shards; empty: all that are missing."""
    overwrite: bool = False
    """Make the shards named in `shards` again, replacing what is committed."""
    dry_run: bool = False
    """Print the plan and generate nothing."""


def has_second_stage(job: JobConfig) -> bool:
    """Tell whether the job's images are enlarged by a second model before they are stored."""
    return job.upscale.model.path is not None or job.upscale.model.repo_id is not None


def input_columns(source: SourceConfig) -> tuple[str, ...]:
    """The fields that columns of the input may stand for; the first one must be there."""
    return IMAGE_COLUMNS if source.kind == "images" else PROMPT_COLUMNS


def output_columns(job: JobConfig) -> dict[str, str]:
    """Name and Arrow type of the columns that a job's dataset has beside images and carried
    ones."""
    if job.source.kind == "images":
        return dict(UPSCALE_COLUMNS)
    return {**COLUMNS, **SECOND_STAGE_COLUMNS} if has_second_stage(job) else dict(COLUMNS)


def parse_colour(text: str) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of `rrggbb` or `#rrggbb`; ValueError for anything else."""
    digits = text.removeprefix("#")
    if len(digits) != 6:
        raise ValueError(text)
    red, green, blue = bytes.fromhex(digits)
    return red, green, blue

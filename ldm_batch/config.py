"""The typed document that describes a job: plain dataclasses, documented and validated here.

Knows nothing of where the values come from (Hydra, Python) or who uses them; imports neither
Hydra, torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from ldm_batch.errors import JobError

PIPELINES = ("text_to_image", "null")
DTYPES = ("float32", "bfloat16", "float16")
IMAGE_FORMATS = ("webp", "png", "jpeg")
LONG_PROMPT_POLICIES = ("truncate", "reject")
EXECUTORS = ("ray", "in_process")
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
SECRET_WORDS = ("secret", "password", "token", "credential", "access_key", "api_key")


@dataclass
class ModelConfig:
    """Which pipeline to load, from a local folder or a pinned hub revision."""

    pipeline: str = "text_to_image"
    """`text_to_image`, or `null`: tiny flat pictures without a model, to measure the machinery."""
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


@dataclass
class SchedulerConfig:
    """The diffusers scheduler and what is changed of the model's own settings."""

    name: str = "from_model"
    """A name of the closed list (`ddim`, `dpmpp_2m`, ...) or `from_model`."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Overrides of the scheduler's own arguments, e.g. `timestep_spacing: trailing`."""


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
class SourceConfig:
    """The table of prompts."""

    uri: Any = None
    """A Parquet file, a glob, a folder (recursive), or a list of these."""
    columns: dict[str, str] = field(default_factory=dict)
    """Field -> column name, e.g. `{prompt: caption}`; unmapped fields use a column of their name
    where the input has one."""
    carry: list[str] = field(default_factory=list)
    """Extra columns copied unchanged to the output."""
    max_prompt_chars: int = 4096
    """Longer prompts are rejected before the tokenizer sees them."""
    long_prompts: str = "truncate"
    """Prompts past the text encoder's tokens: `truncate` (recorded) or `reject`."""
    allow_touched: bool = False
    """Accept planned files whose time stamp changed while size and footer did not."""


@dataclass
class SinkConfig:
    """Where the dataset is written."""

    uri: str | None = None
    """The dataset's folder."""


@dataclass
class ImageConfig:
    """How images are stored."""

    format: str = "webp"
    """`webp` (lossless), `png` (level 1) or `jpeg` (quality 95, 4:4:4)."""


@dataclass
class ClusterConfig:
    """Where the job runs; nothing here changes an image."""

    executor: str = "ray"
    """`ray`, or `in_process`: one worker in this process, for debugging."""
    address: str | None = None
    """Ray address; null starts a local Ray, `auto` joins the running cluster."""
    num_workers: int | None = None
    """Workers (one pipeline each); null: one per GPU, without GPUs one per core."""
    cpus_per_worker: float = 1.0
    gpus_per_worker: float | None = None
    """GPUs of one worker, fractions too; null: 1 where the cluster has any, else 0."""
    shards_in_flight: int = 2
    """Shards per worker under way at once, so that the device never waits for input or output."""
    max_attempts: int = 3
    """How often a shard is tried before it is recorded as failed."""


@dataclass
class JobConfig:
    """One job: a source, a model, a sink, and how much of it to do."""

    name: str = "job"
    """Shown in messages and recorded; letters, digits, `_`, `-` and `.`."""
    model: ModelConfig = field(default_factory=ModelConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    call: CallConfig = field(default_factory=CallConfig)
    source: SourceConfig = field(default_factory=SourceConfig)
    sink: SinkConfig = field(default_factory=SinkConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    seed: int = 0
    """Job seed; every image's seed is derived from it, the row's key and the image's number."""
    num_images_per_prompt: int = 1
    batch_size: int = 16
    """Images per model call: a fixed shape, short batches are padded; part of the fingerprint."""
    num_threads: int = 1
    """torch threads per worker; changes last bits, so it is part of the fingerprint."""
    rows_per_shard: int = 1000
    """Rows of one output object at most; fixed when a dataset is first planned."""
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

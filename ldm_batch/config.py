"""The typed document that describes a job: plain dataclasses, documented and validated here.

Knows nothing of where the values come from (Hydra, Python) or who uses them; imports neither
Hydra, torch nor Ray.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from ldm_batch.errors import JobError
from ldm_batch.provenance import COLUMNS, SECOND_STAGE_COLUMNS, UPSCALE_COLUMNS

PIPELINES = ("text_to_image", "super_resolution", "random_pixels")
SOURCE_KINDS = ("prompts", "images")
ALPHA_POLICIES = ("flatten", "keep")
UPSCALE = 4
"""How many times super-resolution enlarges each side."""
DTYPES = ("float32", "bfloat16", "float16")
ATTENTIONS = ("sdpa", "plain")
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
IMAGE_COLUMNS = ("image", "id", "image_index", "seed", "num_inference_steps", "eta")
STEPS_RANGE = (1, 1000)
GUIDANCE_RANGE = (0.0, 100.0)
ETA_RANGE = (0.0, 1.0)
SIDE_RANGE = (8, 4096)
SIDE_MULTIPLE = 8
_SECRET_IN_URL = re.compile(r"^\w+://[^/@]*:[^/@]*@|[?&](X-Amz-Signature|Signature|sig)=", re.I)
SECRET_WORDS = ("secret", "password", "token", "credential", "access_key", "api_key")


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
    """Colour behind transparent images, `#rrggbb`."""


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
class ClusterConfig:
    """Where the job runs; nothing here changes an image."""

    executor: str = "ray"
    """`ray`, or `in_process`: one worker in this process, for debugging."""
    address: str | None = None
    """Ray address; null starts a local Ray, `auto` joins the running cluster."""
    num_workers: int | None = None
    """Workers (one pipeline each); null: one per GPU, without GPUs one per core."""
    cpus_per_worker: float = 1.0
    """CPUs that Ray keeps for one worker."""
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


def validate(job: JobConfig) -> None:
    """Check every value of a job.

    Raises:
        JobError: names every field with a bad value, one line each, and what it may be.
    """
    problems = [
        *_check_names(job),
        *_check_numbers(job),
        *_check_call(job.call),
        *_check_source(job),
        *_check_model("model", job.model),
        *_check_sampling("scheduler", job.scheduler),
        *_check_upscale(job),
        *_check_s3("source", job.source.s3),
        *_check_s3("sink", job.sink.s3),
        *(f"{path}: refused, {why}" for path, why in _find_forbidden(job)),
    ]
    if job.sink.uri is None:
        problems.append("sink.uri: not set; name the folder of the dataset, e.g. sink.uri=out/cats")
    if job.overwrite and not job.shards:
        problems.append("overwrite: needs the shards to make again, e.g. shards=[17]")
    if problems:
        raise JobError("\n".join(problems))


def _check_names(job: JobConfig) -> Iterator[str]:
    if not job.name or not all(c.isalnum() or c in "_-." for c in job.name):
        yield f"name: {job.name!r} may hold letters, digits, '_', '-' and '.'"
    for path, model in (("model", job.model), ("upscale.model", job.upscale.model)):
        yield from _one_of(f"{path}.pipeline", model.pipeline, PIPELINES)
        yield from _one_of(f"{path}.dtype", model.dtype, DTYPES)
        if model.decode_dtype is not None:
            yield from _one_of(f"{path}.decode_dtype", model.decode_dtype, DTYPES)
        yield from _one_of(f"{path}.attention", model.attention, ATTENTIONS)
        yield from _one_of(f"{path}.device", model.device, ("auto", "cpu", "cuda"))
    yield from _one_of("source.kind", job.source.kind, SOURCE_KINDS)
    yield from _one_of("upscale.alpha", job.upscale.alpha, ALPHA_POLICIES)
    yield from _one_of("image.format", job.image.format, IMAGE_FORMATS)
    yield from _one_of("cluster.executor", job.cluster.executor, EXECUTORS)
    yield from _one_of("source.long_prompts", job.source.long_prompts, LONG_PROMPT_POLICIES)


def _check_numbers(job: JobConfig) -> Iterator[str]:
    cluster = job.cluster
    yield from _within("seed", job.seed, 0, 2**63 - 1)
    yield from _within("num_images_per_prompt", job.num_images_per_prompt, 1, 1000)
    yield from _within("batch_size", job.batch_size, 1, 4096)
    yield from _within("num_threads", job.num_threads, 1, 1024)
    yield from _within("rows_per_shard", job.rows_per_shard, 1, 1_000_000)
    yield from _within("max_object_bytes", job.max_object_bytes, 64 * 1024, 4 * 1024**3)
    yield from _within("max_rejected_fraction", job.max_rejected_fraction, 0, 1)
    yield from _within("source.max_prompt_chars", job.source.max_prompt_chars, 1, 1_000_000)
    yield from _within("source.max_image_bytes", job.source.max_image_bytes, 1, 2**30)
    yield from _within("source.max_image_pixels", job.source.max_image_pixels, 1, 2**26)
    yield from _within("cluster.num_workers", cluster.num_workers, 1, 100_000)
    yield from _within("cluster.cpus_per_worker", cluster.cpus_per_worker, 0, 1024)
    yield from _within("cluster.gpus_per_worker", cluster.gpus_per_worker, 0, 64)
    yield from _within("cluster.shards_in_flight", cluster.shards_in_flight, 1, 16)
    yield from _within("cluster.max_attempts", cluster.max_attempts, 1, 100)
    for index in job.shards:
        yield from _within("shards", index, 0, 10**9)


def _check_call(call: CallConfig) -> Iterator[str]:
    yield from _within("call.num_inference_steps", call.num_inference_steps, *STEPS_RANGE)
    yield from _within("call.guidance_scale", call.guidance_scale, *GUIDANCE_RANGE)
    yield from _within("call.eta", call.eta, *ETA_RANGE)
    for name, pixels in (("call.height", call.height), ("call.width", call.width)):
        yield from _within(name, pixels, *SIDE_RANGE)
        if pixels is not None and pixels % SIDE_MULTIPLE:
            yield f"{name}: {pixels} is not a multiple of {SIDE_MULTIPLE}"


def _check_source(job: JobConfig) -> Iterator[str]:
    source = job.source
    known = input_columns(source)
    uris = source.uri if isinstance(source.uri, list) else [source.uri]
    if source.uri is None or not uris:
        yield "source.uri: not set; name a Parquet file, a glob, a folder, or a list of these"
    elif not all(isinstance(uri, str) and uri for uri in uris):
        yield f"source.uri: {source.uri!r} is not a path or a list of paths"
    for name in source.columns:
        if name not in known:
            yield f"source.columns.{name}: unknown field{suggest(name, known)}"
    if source.columns.get(known[0], known[0]) is None:
        yield f"source.columns.{known[0]}: null, but every job needs {source.kind}"
    for name in source.carry:
        if name in ("image", "low_resolution") or name in output_columns(job):
            yield f"source.carry: {name!r} is already a column of the output"
    repeated = {name for name in source.carry if source.carry.count(name) > 1}
    if repeated:
        yield f"source.carry: {sorted(repeated)} named twice"


def _check_model(path: str, model: ModelConfig) -> Iterator[str]:
    if model.pipeline == "random_pixels":
        return
    if model.path is None and model.repo_id is None:
        yield (
            f"{path}.path: not set; name a local folder, or set {path}.repo_id and {path}.revision"
        )
    if model.path is not None and model.repo_id is not None:
        yield f"{path}.path: set together with {path}.repo_id; keep one of the two"
    if model.path is None and model.repo_id is not None and not is_commit_sha(model.revision):
        yield (
            f"{path}.revision: {model.revision!r} is not a full commit sha (40 hexadecimal "
            "digits); a branch or tag can change between two runs"
        )


def _check_sampling(path: str, scheduler: SchedulerConfig) -> Iterator[str]:
    interval = scheduler.guidance_interval
    if len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= 1:
        yield f"{path}.guidance_interval: {interval} is not [start, stop] within 0 and 1"
    yield from _within(f"{path}.guidance_rescale", scheduler.guidance_rescale, 0, 1)
    yield from _within(f"{path}.cache_interval", scheduler.cache_interval, 1, 100)


def _check_upscale(job: JobConfig) -> Iterator[str]:
    upscale, kind = job.upscale, job.source.kind
    if (job.model.pipeline == "super_resolution") != (kind == "images"):
        fitting = "images" if kind == "prompts" else "prompts"
        yield (
            f"source.kind: {kind!r} does not go with model.pipeline={job.model.pipeline}; "
            f"choose source={fitting} or another model"
        )
    yield from _within("upscale.num_inference_steps", upscale.num_inference_steps, *STEPS_RANGE)
    yield from _within("upscale.eta", upscale.eta, *ETA_RANGE)
    yield from _within("upscale.tile_size", upscale.tile_size, 32, 4096)
    yield from _within("upscale.tile_overlap", upscale.tile_overlap, 0, upscale.tile_size // 2)
    if upscale.tile_size % 32:
        yield f"upscale.tile_size: {upscale.tile_size} is not a multiple of 32"
    try:
        parse_colour(upscale.background)
    except ValueError:
        yield f"upscale.background: {upscale.background!r} is not a colour such as '#ffffff'"
    if upscale.alpha == "keep" and job.image.format == "jpeg":
        yield "upscale.alpha: 'keep' needs an image.format that holds alpha: webp or png"
    if not has_second_stage(job):
        return
    if job.model.pipeline != "text_to_image":
        yield f"upscale.model: set, but model.pipeline={job.model.pipeline} has no second stage"
    if upscale.model.pipeline != "super_resolution":
        yield f"upscale.model.pipeline: {upscale.model.pipeline!r} is not 'super_resolution'"
    yield from _check_model("upscale.model", upscale.model)
    yield from _check_sampling("upscale.scheduler", upscale.scheduler)


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
    """Red, green and blue, 0 to 255, of `#rrggbb`; ValueError for anything else."""
    if len(text) != 7 or text[0] != "#":
        raise ValueError(text)
    red, green, blue = bytes.fromhex(text[1:])
    return red, green, blue


def _check_s3(section: str, s3: S3Config) -> Iterator[str]:
    if s3.endpoint is not None and not s3.endpoint.startswith(("http://", "https://")):
        yield f"{section}.s3.endpoint: {s3.endpoint!r} is not a URL like https://host:port"
    yield from _within(f"{section}.s3.retry_s", s3.retry_s, 0, 3600)


def is_commit_sha(revision: str | None) -> bool:
    """Tell whether a hub revision is pinned for good."""
    return revision is not None and len(revision) == 40 and set(revision) <= set("0123456789abcdef")


def suggest(name: str, known: Sequence[str]) -> str:
    """Say which of the known names was probably meant, or list them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def _one_of(path: str, value: str, known: Sequence[str]) -> Iterator[str]:
    if value not in known:
        yield f"{path}: unknown value {value!r}{suggest(str(value), known)}"


def _within(path: str, value: float | None, low: float, high: float) -> Iterator[str]:
    if value is not None and not low <= value <= high:
        yield f"{path}: {value} is not between {low} and {high}"


def _find_forbidden(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Find code (`_target_`) and secrets at any depth of a document."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in fields(value)}
    if isinstance(value, dict):
        for key, inner in value.items():
            here = f"{path}.{key}" if path else str(key)
            if str(key).startswith("_") and str(key).endswith("_"):
                yield here, "a configuration holds values, never code"
            elif any(word in str(key).lower() for word in SECRET_WORDS):
                yield here, "secrets do not belong in a configuration; use the environment"
            else:
                yield from _find_forbidden(inner, here)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _find_forbidden(inner, f"{path}[{i}]")
    elif isinstance(value, str) and _SECRET_IN_URL.search(value):
        yield path, "a URL with credentials in it; use the environment"

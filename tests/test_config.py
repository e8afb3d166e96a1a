"""The typed document: what is valid, and one line with the field's name for what is not."""

import ast
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from ldm_batch import config
from ldm_batch.config import (
    CallConfig,
    ClusterConfig,
    ImageConfig,
    JobConfig,
    ModelConfig,
    SchedulerConfig,
    SinkConfig,
    SourceConfig,
)
from ldm_batch.config.bounds import suggest
from ldm_batch.config.model import is_commit_sha
from ldm_batch.errors import JobError
from ldm_batch.generate.choose import validate_job as validate

JOB = JobConfig(
    model=ModelConfig(path="demo:text_to_image"),
    source=SourceConfig(uri="prompts.parquet"),
    sink=SinkConfig(uri="out"),
)
PINNED = {"repo_id": "a/b", "path": None, "revision": "0" * 40}


def problems(**changes: Any) -> list[str]:
    """Lines of the error that a job with these values ends in; none if it is valid."""
    try:
        validate(dataclasses.replace(JOB, **changes))
    except JobError as error:
        return str(error).splitlines()
    return []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": ModelConfig(engine="random_pixels")},
        {"model": ModelConfig(**PINNED)},
        {"source": SourceConfig(uri=["a", "b"], columns={"id": None}, carry=["x", "y"])},
        {"call": CallConfig(height=8, width=4096, eta=1.0, guidance_scale=0)},
        {"shards": [17, 42], "overwrite": True},
        {"max_rejected_fraction": 0, "num_images_per_prompt": 1000},
        {"cluster": ClusterConfig(cpus_per_worker=0, gpus_per_worker=0.25, num_workers=1)},
        {"cluster": ClusterConfig(min_workers=3, max_workers=3, placement="spread")},
        {"cluster": ClusterConfig(resources={"spot": 0.5}, labels={"zone": "!in(a, b)"})},
        {"cluster": ClusterConfig(runtime_env={"env_vars": {"HF_HOME": "/models"}})},
        {"rows_per_shard": "auto"},
    ],
)
def test_valid_jobs(changes: dict[str, Any]) -> None:
    assert problems(**changes) == []


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"name": "a/b"}, "name: 'a/b' may hold letters, digits, '_', '-' and '.'"),
        ({"name": ""}, "name: '' may hold"),
        ({"seed": -1}, "seed: -1 is not between 0 and 18446744073709551615"),
        ({"seed": 2**64}, "seed: 18446744073709551616 is not between"),
        ({"batch_size": 0}, "batch_size: 0 is not between 1 and 4096"),
        ({"num_threads": 0}, "num_threads: 0 is not between"),
        ({"rows_per_shard": 0}, "rows_per_shard: 0 is not between"),
        ({"rows_per_shard": "many"}, "rows_per_shard: 'many' is neither a whole number nor 'auto'"),
        (
            {"cluster": ClusterConfig(min_workers=3, max_workers=2)},
            "cluster.min_workers: 3 is more than cluster.max_workers (2)",
        ),
        (
            {"cluster": ClusterConfig(gpus_per_worker=1.5)},
            "cluster.gpus_per_worker: 1.5; above 1 Ray takes whole numbers only",
        ),
        (
            {"cluster": ClusterConfig(num_workers=2, max_workers=4)},
            "cluster.num_workers: is exact; leave min_workers and max_workers out",
        ),
        (
            {"cluster": ClusterConfig(resources={"GPU": 1})},
            "cluster.resources.GPU: is Ray's own; use cluster.gpus_per_worker",
        ),
        (
            {"cluster": ClusterConfig(resources={"spot": 0.00001})},
            "cluster.resources.spot: 1e-05 is less than Ray counts, 0.0001",
        ),
        (
            {"cluster": ClusterConfig(runtime_env={"pip": ["-i https://u:pw@host/simple"]})},
            "cluster.runtime_env.pip[0]: refused, a URL with credentials in it",
        ),
        ({"cluster": ClusterConfig(address="")}, "cluster.address: not set"),
        (
            {"cluster": ClusterConfig(address="head")},
            "cluster.address: 'head' is not HOST:PORT, e.g. 10.0.0.1:6379, or auto",
        ),
        (
            {"cluster": ClusterConfig(address="ray://head:10001")},
            "cluster.address: 'ray://head:10001' is for Ray's client",
        ),
        ({"cluster": ClusterConfig(placement="wide")}, "cluster.placement: unknown value 'wide'"),
        (
            {"cluster": ClusterConfig(resources={"spot": -1})},
            "cluster.resources.spot: -1 is not between",
        ),
        (
            {"cluster": ClusterConfig(labels={"zone": "in(a"})},
            "cluster.labels.zone: 'in(a' is not a value",
        ),
        (
            {"cluster": ClusterConfig(runtime_env={"env_vars": {"AWS_SECRET_ACCESS_KEY": "x"}})},
            "cluster.runtime_env.env_vars.AWS_SECRET_ACCESS_KEY: refused, secrets do not belong",
        ),
        ({"max_object_bytes": 1}, "max_object_bytes: 1 is not between"),
        ({"max_rejected_fraction": 1.01}, "max_rejected_fraction: 1.01 is not between 0 and 1"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt: 0 is not between"),
        ({"shards": [3, -1]}, "shards: -1 is not a shard's number, or a range as 3-9"),
        ({"shards": "x"}, "shards: 'x' is not a shard's number"),
        ({"shards": ["9-3"]}, "shards: '9-3' ends before it begins"),
        ({"shards": True}, "shards: True is not a shard's number"),
        ({"shards": [[1]]}, "shards: [1] is not a shard's number"),
        ({"overwrite": True}, "overwrite: needs the shards to make again, e.g. shards=[17]"),
        ({"sink": SinkConfig()}, "sink.uri: not set"),
        ({"source": SourceConfig()}, "source.uri: not set"),
        ({"source": SourceConfig(uri=[])}, "source.uri: not set"),
        ({"source": SourceConfig(uri=["a", 7])}, "source.uri: ['a', 7] is not a path or a list"),
        (
            {"source": SourceConfig(uri="a", columns={"promt": "x"})},
            "source.columns.promt: unknown field; did you mean 'prompt'?",
        ),
        (
            {"source": SourceConfig(uri="a", columns={"prompt": None})},
            "source.columns.prompt: null, but every row must have one",
        ),
        (
            {"source": SourceConfig(uri="a", carry=["x", "y", "x"])},
            "source.carry: ['x'] named twice",
        ),
        (
            {"source": SourceConfig(uri="a", carry=["x", "seed"])},
            "source.carry: 'seed' is already a column of the output",
        ),
        (
            {"source": SourceConfig(uri="a", carry=["image"])},
            "source.carry: 'image' is already a column of the output",
        ),
        (
            {"source": SourceConfig(uri="a", max_prompt_chars=0)},
            "source.max_prompt_chars: 0 is not between",
        ),
        (
            {"source": SourceConfig(uri="a", long_prompts="cut")},
            "source.long_prompts: unknown value 'cut'",
        ),
        ({"call": CallConfig(num_inference_steps=0)}, "call.num_inference_steps: 0 is not between"),
        ({"call": CallConfig(eta=math.nan)}, "call.eta: nan is not between 0.0 and 1.0"),
        ({"call": CallConfig(guidance_scale=math.inf)}, "call.guidance_scale: inf is not between"),
        ({"call": CallConfig(height=100)}, "call.height: 100 is not a multiple of 8"),
        ({"call": CallConfig(width=8192)}, "call.width: 8192 is not between 8 and 4096"),
        (
            {"model": ModelConfig(path="a", pipeline="txt2img")},
            "model.pipeline: unknown value 'txt2img'",
        ),
        ({"model": ModelConfig(path="a", dtype="fp16")}, "model.dtype: unknown value 'fp16'"),
        ({"model": ModelConfig(path="a", device="gpu")}, "model.device: unknown value 'gpu'"),
        ({"model": ModelConfig()}, "model.path: not set"),
        (
            {"model": ModelConfig(path="a", repo_id="b/c", revision="0" * 40)},
            "model.path: set together with model.repo_id",
        ),
        (
            {"model": ModelConfig(repo_id="a/b", revision="main")},
            "model.revision: 'main' is not a full commit sha",
        ),
        (
            {"image": ImageConfig(format="wepb")},
            "image.format: unknown value 'wepb'; did you mean 'webp'?",
        ),
        (
            {"scheduler": SchedulerConfig(guidance_interval=[0.5])},
            "scheduler.guidance_interval: [0.5] is not",
        ),
        (
            {"scheduler": SchedulerConfig(guidance_interval=[0.8, 0.2])},
            "scheduler.guidance_interval: [0.8, 0.2] is not",
        ),
        (
            {"scheduler": SchedulerConfig(cache_interval=0)},
            "scheduler.cache_interval: 0 is not between",
        ),
        (
            {"cluster": ClusterConfig(executor="rey")},
            "cluster.executor: unknown value 'rey'; did you mean 'ray'?",
        ),
        ({"cluster": ClusterConfig(max_attempts=0)}, "cluster.max_attempts: 0 is not between"),
        (
            {"cluster": ClusterConfig(shards_in_flight=0)},
            "cluster.shards_in_flight: 0 is not between",
        ),
    ],
)
def test_one_bad_value_is_one_line(changes: dict[str, Any], line: str) -> None:
    [problem] = problems(**changes)
    assert problem.startswith(line)


def test_all_problems_are_told_at_once() -> None:
    fields = [p.split(":")[0] for p in problems(seed=-1, batch_size=0, sink=SinkConfig())]
    assert fields == ["seed", "batch_size", "sink.uri"]


@pytest.mark.parametrize("key", ["_target_", "_partial_", "aws_secret", "hf_token", "API_KEY"])
@pytest.mark.parametrize("nest", [lambda d: d, lambda d: {"a": d}, lambda d: {"a": [[d]]}])
def test_code_and_secrets_are_refused_at_any_depth(key: str, nest: Any) -> None:
    settings = nest({key: "do-not-print-this"})
    [problem] = problems(scheduler=SchedulerConfig(settings=settings))
    assert problem.startswith("scheduler.settings.")
    assert key in problem
    assert "do-not-print-this" not in problem


@pytest.mark.parametrize(
    ("revision", "is_pinned"),
    [
        ("0123456789abcdef0123456789abcdef01234567", True),
        ("A" * 40, False),
        ("a" * 39, False),
        ("main", False),
        ("", False),
        (None, False),
    ],
)
def test_only_a_full_sha_pins(revision: str | None, is_pinned: bool) -> None:
    assert is_commit_sha(revision) is is_pinned


def test_suggestions() -> None:
    assert suggest("promt", ["prompt", "seed"]) == "; did you mean 'prompt'?"
    assert suggest("zzz", ["prompt", "seed"]) == "; known: prompt, seed"


def test_every_field_is_documented() -> None:
    """The docstring under each field of a section is the only place that explains it."""
    folder = Path(config.__file__).parent
    parsed = [node for path in folder.glob("*.py") for node in ast.parse(path.read_text()).body]
    classes = [node for node in parsed if isinstance(node, ast.ClassDef)]
    nodes = [node for node in classes if node.name.endswith("Config")]
    assert len(nodes) == 11
    undocumented = [
        f"{node.name}.{statement.target.id}"
        for node in nodes
        for statement, after in zip(node.body, [*node.body[1:], None], strict=True)
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant))
    ]
    sections = ["model", "scheduler", "call", "source", "sink", "image", "cluster"]
    allowed = [f"JobConfig.{name}" for name in sections]
    assert sorted(set(undocumented) - set(allowed)) == []

"""Small makers that many tests share: Parquet files, jobs without a model, and their plans."""

import dataclasses
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import settings
from leftovers import OF_SESSION, end_all, ended, give_signals_back, watch
from s3_server import CREDENTIALS, moto_server, reset

from ldm_batch.config import (
    ClusterConfig,
    JobConfig,
    ModelConfig,
    S3Config,
    SinkConfig,
    SourceConfig,
)
from ldm_batch.drive.settle import Planning
from ldm_batch.generate.choose import choose
from ldm_batch.generate.choose import validate_job as validate
from ldm_batch.plan.stored import Plan, load_plan, save_plan
from ldm_batch.records import Receipt, Shard
from ldm_batch.storage import Store
from ldm_batch.worker import Terms, Worker, WorkerSpec, load_worker

# Two files of tests run at once on two cores: a second thread of torch in each only waits. Set for
# the commands that tests start too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

give_signals_back()
watch()

LONGEST_FIRST = (
    *("test_processes.py", "test_cluster_hosts.py", "test_run.py", "test_jobs_submit.py"),
    *("test_upscale_jobs.py", "test_plan_protocol.py", "test_cluster_nodes.py", "test_jobs.py"),
    *("test_once.py", "test_nightly.py", "test_faults.py", "test_cluster_pool.py"),
    *("test_old_plans.py", "test_fetch.py", "test_storage_s3.py", "test_cluster.py"),
    "test_storage_clouds.py",
)

settings.register_profile("ldm_batch", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("ldm_batch")


def _write_parquet(path: Path, *, row_group_size: int | None = None, **columns: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    pq.write_table(table, path, row_group_size=row_group_size, write_page_checksum=True)
    return str(path)


def _make_job(source: Any, sink: Any, **changes: Any) -> JobConfig:
    uri = [str(place) for place in source] if isinstance(source, list) else str(source)
    job = JobConfig(
        model=ModelConfig(engine="random_pixels"),
        source=SourceConfig(uri=uri),
        sink=SinkConfig(uri=str(sink)),
        cluster=ClusterConfig(executor="in_process"),
        max_rejected_fraction=1.0,
    )
    for path, value in changes.items():
        section, _, field = path.rpartition("__")
        if section:
            value = dataclasses.replace(getattr(job, section), **{field: value})
        job = dataclasses.replace(job, **{section or field: value})
    validate(job)
    return job


def _planning(job: JobConfig) -> Planning:
    chosen = choose(job)
    sink = Store(str(job.sink.uri))
    return Planning(chosen, sink, models=chosen.find_models(), command="run")


def _plan_job(job: JobConfig) -> Plan:
    return _planning(job).make(load_plan(Store(str(job.sink.uri))))


@dataclasses.dataclass
class SettledWorker:
    """A worker that knows the terms of the plan whose shards it makes."""

    worker: Worker
    terms: Terms

    def make_shard(self, shard: Shard) -> Receipt:
        return self.worker.make_shard(shard, self.terms)


def _make_worker(job: JobConfig, pipeline: Any = None) -> tuple[SettledWorker, Plan]:
    store, plan = Store(str(job.sink.uri)), _plan_job(job)
    save_plan(store, plan)
    spec = WorkerSpec(job, {}, (8, 8))
    worker = load_worker(spec) if pipeline is None else Worker(spec, pipeline, store)
    return SettledWorker(worker, _planning(job).terms(plan)), plan


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: the last of two processes then ends soon after the
    first."""
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test starts ends with it, whether it passes or fails; what a fixture of more than one
    test starts is not the test's."""
    with ended(f"{os.getpid()}:{request.node.name}"):
        yield


def pytest_unconfigure() -> None:
    """End what fixtures of several tests have left."""
    end_all(OF_SESSION, str(os.getpid()))


def pytest_sessionfinish() -> None:
    """Save what is covered: a process that held a Ray may be ended before it ends by itself."""
    if coverage := sys.modules.get("coverage"):
        measured = coverage.Coverage.current()
        if measured is not None:
            measured.save()


@pytest.fixture(scope="session")
def write_parquet() -> Callable[..., str]:
    """`write_parquet(path, prompt=[...], row_group_size=2)` -> the path as a string."""
    return _write_parquet


@pytest.fixture(scope="session")
def make_job() -> Callable[..., JobConfig]:
    """`make_job(source, sink, seed=1, source__carry=["x"])` -> a valid job of random pixels."""
    return _make_job


@pytest.fixture(scope="session")
def plan_job() -> Callable[[JobConfig], Plan]:
    """`plan_job(job)` -> the plan of a job against its sink, not stored."""
    return _plan_job


@pytest.fixture(scope="session")
def make_worker() -> Callable[..., tuple[SettledWorker, Plan]]:
    """`make_worker(job, pipeline)` -> a worker and the stored plan, by default of random pixels."""
    return _make_worker


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """URL of an S3 server that lives as long as the tests, with credentials in the environment."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        with moto_server() as endpoint:
            yield endpoint


@pytest.fixture
def s3(s3_endpoint: str) -> S3Config:
    """How to reach an S3 server that holds nothing but an empty bucket named `bucket`."""
    reset(s3_endpoint)
    return S3Config(endpoint=s3_endpoint, retry_s=5)

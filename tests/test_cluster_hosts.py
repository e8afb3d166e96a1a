"""Jobs on a Ray cluster of several hosts, with storage on one of its own: hosts that vanish, join
late or lose their links, and a head that is lost. The dataset is the same bytes each time.
"""

import hashlib
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import digests, finish, is_alive, kill, run, wait_until
from hosts import QUICK_TO_NOTICE, Hosts, start_ray, why_no_hosts
from leftovers import of_all_tests
from s3_server import BUCKET, CREDENTIALS, reset

from ldm_batch.config import S3Config
from ldm_batch.storage.s3_client import connect

NUM_SHARDS, ROWS_PER_SHARD, ROWS_PER_NULL = 60, 20, 70
JOB = (
    "conf=machinery",
    "source.uri=in",
    f"rows_per_shard={ROWS_PER_SHARD}",
    "call.height=64",
    "call.width=64",
)
S3_PORT = 9000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that every host sees, with the prompts in it; some cannot become images."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "in").mkdir()
    rows = range(NUM_SHARDS * ROWS_PER_SHARD)
    prompts = [f"row {row}" if row % ROWS_PER_NULL else None for row in rows]
    pq.write_table(pa.table({"prompt": prompts}), folder / "in" / "0.parquet")
    return folder


@pytest.fixture(scope="module")
def reference(folder: Path) -> dict[str, str]:
    """Digests of the dataset that an undisturbed run makes in one process."""
    ended = run(folder, *JOB, "sink.uri=out", "cluster=in_process")
    assert ended.code == 0, ended
    return digests(folder)


class Site:
    """Hosts with Ray on them and one with an S3 server, all of which see one folder."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts, self.folder = hosts, folder
        storage = hosts.add("storage")
        self.endpoint = f"http://{storage.address}:{S3_PORT}"
        server = ("-m", "moto.server", "-H", storage.address, "-p", str(S3_PORT))
        process = storage.start_service(folder / "storage.log", sys.executable, *server)
        self.start()
        wait_until(self._has_storage, process)

    def start(self, *workers: str) -> None:
        """Boot those of a head and its workers that are not up."""
        if "head" not in self.hosts:
            start_ray(self.hosts.add("head"), self._log("head"), num_cpus=0)()
        absent = [name for name in workers if name not in self.hosts]
        head = self.hosts["head"]
        with of_all_tests():
            waits = [start_ray(self.hosts.add(name), self._log(name), head=head) for name in absent]
            for wait in waits:
                wait()

    def kill(self, *names: str) -> None:
        """Kill those of the hosts that are up."""
        for name in names:
            if name in self.hosts:
                self.hosts.kill(name)

    def actors(self, *names: str) -> list[int]:
        """Process ids of the job's workers on some hosts."""
        return [pid for name in names for pid in self.hosts[name].pids("ray::_Actor")]

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _has_storage(self) -> bool:
        try:
            with self.hosts["storage"].network():
                reset(self.endpoint)
        except URLError:
            return False
        return True


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[Site]:
    if (reason := why_no_hosts()) is not None:
        pytest.skip(reason)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        with Hosts(folder, {**kept, **CREDENTIALS, **QUICK_TO_NOTICE, **token}) as hosts:
            yield Site(hosts, folder)


class Dataset:
    """One dataset in the S3 server of a site."""

    def __init__(self, site: Site, name: str) -> None:
        self._site, self.uri, self._prefix = site, f"s3://{BUCKET}/{name}", f"{name}/"
        with site.hosts["storage"].network():
            self._client = connect(S3Config(endpoint=site.endpoint))

    def submit(self, host: str, *arguments: str) -> subprocess.Popen[str]:
        """Start the job on a host."""
        sink = ("sink=s3", f"sink.uri={self.uri}", f"sink.s3.endpoint={self._site.endpoint}")
        command = (sys.executable, "-m", "ldm_batch.run", *JOB, "cluster=auto", *sink, *arguments)
        return self._site.hosts[host].start(*command, folder=self._site.folder)

    def objects(self) -> dict[str, tuple[str, str]]:
        """What is in `data/`: when each object was written and its ETag, by name."""
        found = self._list("data/")
        return {name: (str(info["LastModified"]), info["ETag"]) for name, info in found.items()}

    def digests(self) -> dict[str, str]:
        """SHA-256 of every object in `data/`, by name."""
        names = self.objects()
        return {name: hashlib.sha256(self._read(f"data/{name}")).hexdigest() for name in names}

    def receipts(self) -> list[dict[str, Any]]:
        """The receipts of the shards that are done."""
        names = self._list(".ldm_batch/receipts/")
        return [json.loads(self._read(f".ldm_batch/receipts/{name}")) for name in names]

    def makers(self) -> set[str]:
        """Names of the hosts that made some of it."""
        return {receipt["host"] for receipt in self.receipts()}

    def status(self) -> dict[str, Any]:
        """What the command `status` says of it."""
        command = (sys.executable, "-m", "ldm_batch", "status", self.uri, "--json")
        ended = self._site.hosts["storage"].run(*command, "--endpoint", self._site.endpoint)
        return {"code": ended.code, **json.loads(ended.out)}

    def _list(self, folder: str) -> dict[str, Any]:
        prefix = self._prefix + folder
        with self._site.hosts["storage"].network():
            found = self._client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)
        return {info["Key"].removeprefix(prefix): info for info in found.get("Contents", [])}

    def _read(self, path: str) -> bytes:
        with self._site.hosts["storage"].network():
            answer = self._client.get_object(Bucket=BUCKET, Key=self._prefix + path)
            content: bytes = answer["Body"]
        return content


@pytest.fixture
def dataset(site: Site, request: pytest.FixtureRequest) -> Dataset:
    return Dataset(site, request.node.name.partition("[")[0] + secrets.token_hex(2))


def assert_whole(dataset: Dataset, reference: dict[str, str]) -> None:
    """The dataset is what an undisturbed run makes, and no row is missing or there twice."""
    assert dataset.digests() == reference
    status, num_rows = dataset.status(), NUM_SHARDS * ROWS_PER_SHARD
    num_null = len(range(0, num_rows, ROWS_PER_NULL))
    assert (status["code"], status["num_done"]) == (0, NUM_SHARDS), status
    assert status["num_rows"] == status["num_images"] + sum(status["rejected"].values())
    assert (status["num_rows"], sum(status["rejected"].values())) == (num_rows, num_null)


@contextmanager
def standing_still(
    site: Site, dataset: Dataset, driver: subprocess.Popen[str], *names: str
) -> Iterator[None]:
    """Each of some hosts has made something and has more under way, and stands still meanwhile."""
    still: dict[str, list[int]] = {}

    def all_stand_still() -> bool:
        for name in dataset.makers() & set(names) - still.keys():
            still[name] = site.actors(name)
            pause(still[name])
        return len(still) == len(names)

    try:
        wait_until(all_stand_still, driver)
        assert len(dataset.objects()) < NUM_SHARDS
        yield
    finally:
        resume(pid for pids in still.values() for pid in pids)


def pause(pids: Iterable[int]) -> None:
    """Let processes stand still."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)


def resume(pids: Iterable[int]) -> None:
    """Let those of the processes go on that are still there."""
    for pid in filter(is_alive, pids):
        os.kill(pid, signal.SIGCONT)


@pytest.mark.long
@pytest.mark.parametrize("way", ["killed", "cut off"])
def test_a_host_that_vanishes_costs_no_attempts(
    site: Site, dataset: Dataset, reference: dict[str, str], way: str
) -> None:
    site.start("one", "two")
    driver = dataset.submit("head", "cluster.max_attempts=1")
    with standing_still(site, dataset, driver, "one", "two"):
        if way == "killed":
            site.kill("two")
        else:
            site.hosts.cut("two")
    ended = finish(driver)
    assert ended.code == 0, ended
    assert_whole(dataset, reference)
    if way == "cut off":
        objects = dataset.objects()
        site.hosts.heal("two")
        wait_until(lambda: not site.actors("two"))
        assert dataset.objects() == objects
        site.kill("two")


@pytest.mark.long
def test_a_host_that_joins_late_takes_part(
    site: Site, dataset: Dataset, reference: dict[str, str]
) -> None:
    site.kill("two")
    site.start("one")
    driver = dataset.submit("head")
    with standing_still(site, dataset, driver, "one"):
        site.start("two")
        wait_until(lambda: dataset.makers() == {"one", "two"}, driver)
    ended = finish(driver)
    assert ended.code == 0, ended
    assert_whole(dataset, reference)


@pytest.mark.parametrize("is_healed", [pytest.param(False, marks=pytest.mark.long), True])
def test_a_worker_that_cannot_reach_the_storage_holds_nothing_up(
    site: Site, dataset: Dataset, reference: dict[str, str], is_healed: bool
) -> None:
    site.start("one", "two")
    driver = dataset.submit("head", f"sink.s3.retry_s={60 if is_healed else 2}")
    with standing_still(site, dataset, driver, "one", "two"):
        site.hosts.cut_between("two", "storage")
        num_objects = len(dataset.objects())
    if is_healed:
        wait_until(lambda: len(dataset.objects()) > (num_objects + NUM_SHARDS) / 2, driver)
        site.hosts.heal_between("two", "storage")
    ended = finish(driver)
    assert ended.code == 0, ended
    assert_whole(dataset, reference)
    if not is_healed:
        objects = dataset.objects()
        site.hosts.heal_between("two", "storage")
        wait_until(lambda: not site.actors("two"))
        assert dataset.objects() == objects


def test_two_drivers_on_two_hosts_make_one_dataset(
    site: Site, dataset: Dataset, reference: dict[str, str]
) -> None:
    site.start("one", "two")
    drivers = [dataset.submit(host, "cluster.num_workers=1") for host in ("head", "one")]
    ended = [finish(driver) for driver in drivers]
    assert [e.code for e in ended] == [0, 0], ended
    assert "other bytes" not in ended[0].out + ended[1].out
    assert_whole(dataset, reference)


@pytest.mark.long
def test_a_head_that_is_lost_ends_the_job_and_the_same_command_goes_on(
    site: Site, dataset: Dataset, reference: dict[str, str]
) -> None:
    site.kill("two")
    site.start("one")
    driver = dataset.submit("head")
    with standing_still(site, dataset, driver, "one"):
        for pid in site.hosts["head"].pids("ray"):
            if pid not in site.hosts["head"].pids("ldm_batch.run"):
                kill(pid)
        ended = finish(driver)
        kept = dataset.objects()
    assert ended.code == 75, ended
    assert "error: cluster: its head has not answered for" in ended.err
    assert "Traceback" not in ended.err
    assert 0 < len(kept) < NUM_SHARDS
    site.kill("head", "one", "two")
    site.start("one")
    ended = finish(dataset.submit("head"))
    assert ended.code == 0, ended
    assert kept.items() <= dataset.objects().items()
    assert_whole(dataset, reference)

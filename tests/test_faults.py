"""S3 when it fails: requests that break, replies that get lost, stores that are careless."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from commands import digests, finish, run, start, write_prompts
from fault_proxy import FaultProxy, Rule, fault_proxy, random_faults
from s3_server import BUCKET, CREDENTIALS

from ldm_batch.config import S3Config
from ldm_batch.errors import AccessError, JobError, StorageError
from ldm_batch.storage import Creation, Store, list_source, retry
from ldm_batch.storage.lease import LEASE_PATH, hold_lease

LOCAL = ("conf=machinery", "source.uri=in", "sink.uri=out", "rows_per_shard=20", "batch_size=16")
S3_JOB = ("conf=machinery", "rows_per_shard=20", "cluster=in_process")


@pytest.fixture
def proxied(s3: S3Config) -> Iterator[Callable[[Rule], tuple[FaultProxy, S3Config]]]:
    """`proxied(rule)` -> a proxy before the S3 server, and how to reach the server through it."""
    running = []

    def start_proxy(rule: Rule) -> tuple[FaultProxy, S3Config]:
        running.append(fault_proxy(str(s3.endpoint), rule))
        proxy = running[-1].__enter__()
        return proxy, replace(s3, endpoint=proxy.endpoint, retry_s=20)

    yield start_proxy
    for proxy in running:
        proxy.__exit__(None, None, None)


@pytest.fixture
def job(s3: S3Config, tmp_path: Path) -> Callable[..., tuple[str, ...]]:
    """`job(s3)` -> the arguments of a job of 60 rows that reaches its input and output so."""
    write_prompts(tmp_path, num_files=2, rows_per_file=40)
    store = Store(f"s3://{BUCKET}", s3)
    for path in (tmp_path / "in").iterdir():
        store.publish(f"in/{path.name}", path.read_bytes(), exclusive=True)

    def arguments(reached: S3Config, *more: str) -> tuple[str, ...]:
        sides = [
            (f"{side}=s3", f"{side}.s3.endpoint={reached.endpoint}", f"{side}.s3.retry_s=30")
            for side in ("source", "sink")
        ]
        places = (f"source.uri=s3://{BUCKET}/in/*", f"sink.uri=s3://{BUCKET}/out")
        return (*S3_JOB, *sides[0], *sides[1], *places, *more)

    return arguments


def contents(s3: S3Config) -> dict[str, bytes]:
    """All committed objects, by name."""
    store = Store(f"s3://{BUCKET}/out", s3)
    return {name: store.read(f"data/{name}") or b"" for name in store.names("data")}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The objects that the same job makes on a disk."""
    folder = tmp_path_factory.mktemp("expected")
    write_prompts(folder, num_files=2, rows_per_file=40)
    assert run(folder, *LOCAL, "cluster=in_process").code == 0
    return {name: (folder / "out/data" / name).read_bytes() for name in digests(folder)}


def test_a_lost_reply_is_not_a_lost_race(
    proxied: Callable[[Rule], tuple[FaultProxy, S3Config]],
) -> None:
    proxy, s3 = proxied(random_faults(0.3, seed=1))
    store = Store(f"s3://{BUCKET}/unique", s3)
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda i: store.create(f"{i}", bytes([i]) * 1000), range(150)))
    assert set(outcomes) == {Creation.WON}
    assert min(proxy.met[fault] for fault in ("500", "503", "reset", "lost", "slow")) > 0
    assert store.names("") == {str(i) for i in range(150)}
    assert all(store.read(f"{i}") == bytes([i]) * 1000 for i in range(0, 150, 10))


def test_every_operation_is_right_however_often_it_fails(
    proxied: Callable[[Rule], tuple[FaultProxy, S3Config]],
) -> None:
    proxy, s3 = proxied(random_faults(0.4, seed=2))
    store, content = Store(f"s3://{BUCKET}/some", s3), os.urandom(50_000)
    for i in range(8):
        store.publish(f"in/{i}.parquet", content, exclusive=False)
    assert store.create("in/0.parquet", content) is Creation.LOST_TO_SAME
    assert store.create("in/0.parquet", b"other") is Creation.LOST_TO_OTHER
    with store.open("in/3.parquet") as file:
        parts = [file.read(10_000) for _ in range(5)]
    assert b"".join(parts) == content
    assert len(list_source([f"s3://{BUCKET}/some/in"], s3)[0]) == 8
    for i in range(8):
        store.remove(f"in/{i}.parquet")
    assert store.names("in") == set()
    assert proxy.met["cut"] > 0


def test_two_writers_lose_replies_and_one_wins(
    proxied: Callable[[Rule], tuple[FaultProxy, S3Config]],
) -> None:
    _, s3 = proxied(random_faults(0.3, seed=3))
    stores = [Store(f"s3://{BUCKET}/race", s3) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for name in "abcdefgh":
            made = list(pool.map(lambda i, n=name: stores[i].create(n, bytes([i])), range(4)))
            assert made.count(Creation.WON) == 1
            assert stores[0].read(name) == bytes([made.index(Creation.WON)])


def test_waiting_ends(
    proxied: Callable[[Rule], tuple[FaultProxy, S3Config]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "ANSWER_S", 0.3)
    for fault, message in (("503", "SlowDown"), ("hang", "Read timeout"), ("reset", "connect")):
        proxy, s3 = proxied(lambda method, path, fault=fault: fault)  # type: ignore[misc]
        began = time.monotonic()
        with pytest.raises(StorageError, match=rf"{message}.*\(tried for 1 s\)"):
            Store(f"s3://{BUCKET}/some", replace(s3, retry_s=1)).publish("a", b"x", exclusive=True)
        assert time.monotonic() - began < 4
        assert sum(proxy.met.values()) < 20


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("denied", "access denied; the credentials in use lack the right to do this"),
        ("expired", "the credentials have expired; renew them and run the same command again"),
        ("region", "wrong region; set it with the option s3.region"),
    ],
)
def test_what_no_retry_mends_is_asked_once(
    proxied: Callable[[Rule], tuple[FaultProxy, S3Config]], fault: str, message: str
) -> None:
    proxy, s3 = proxied(lambda method, path: fault)
    with pytest.raises(AccessError, match=message):
        Store(f"s3://{BUCKET}/some", s3).publish("a", b"x", exclusive=True)
    assert len(proxy.requests) == 1


def test_rights_that_end_in_the_middle_end_the_job(
    job: Callable[..., tuple[str, ...]],
    proxied: Callable[[Rule], tuple[FaultProxy, S3Config]],
    tmp_path: Path,
) -> None:
    """Every further shard would be made in vain."""
    late = re.compile("/out/data/0000[1-9]")
    proxy, s3 = proxied(lambda method, path: "expired" if late.search(path) else None)
    ended = run(tmp_path, *job(s3))
    assert ended.code == 2, ended
    assert ended.err.count("\n") == 1
    assert "out/data/00001.parquet: the credentials have expired" in ended.err
    asked = [method for method, path in proxy.requests if late.search(path)]
    assert asked.count("PUT") == 1
    assert set(asked) == {"HEAD", "PUT"}  # whether it is there by now, and the attempt at it


def test_a_finished_dataset_costs_its_listing_only(
    job: Callable[..., tuple[str, ...]],
    proxied: Callable[[Rule], tuple[FaultProxy, S3Config]],
    tmp_path: Path,
) -> None:
    proxy, s3 = proxied(lambda method, path: None)
    assert run(tmp_path, *job(s3)).code == 0
    proxy.requests.clear()
    assert "0 to do" in run(tmp_path, *job(s3)).out
    objects = {(how, path) for how, path in proxy.requests if path.startswith(f"/{BUCKET}/out/")}
    assert objects == {
        ("GET", f"/{BUCKET}/out/.ldm_batch/plan.json"),
        ("GET", f"/{BUCKET}/out/.ldm_batch/plan/00000.parquet"),
    }


def test_a_job_ends_complete_though_every_tenth_request_fails(
    s3: S3Config,
    job: Callable[..., tuple[str, ...]],
    proxied: Callable[[Rule], tuple[FaultProxy, S3Config]],
    tmp_path: Path,
    expected: dict[str, bytes],
) -> None:
    proxy, faulty = proxied(random_faults(0.1, seed=4))
    ended = run(tmp_path, *job(faulty))
    assert ended.code == 0, ended
    assert "other run" not in ended.out
    assert sum(proxy.met.values()) > proxy.met["none"] > 20
    assert contents(s3) == expected


def test_two_drivers_at_once_make_each_shard_once(
    s3: S3Config, job: Callable[..., tuple[str, ...]], tmp_path: Path, expected: dict[str, bytes]
) -> None:
    drivers = [start(tmp_path, *job(s3)) for _ in range(2)]
    ended = [finish(driver) for driver in drivers]
    assert [e.code for e in ended] == [0, 0], ended
    assert "other bytes" not in ended[0].out + ended[1].out
    assert contents(s3) == expected
    receipts = Store(f"s3://{BUCKET}/out", s3).names(".ldm_batch/receipts")
    assert receipts == {f"0000{i}.json" for i in range(4)}


# A store that ignores conditions


def test_a_careless_store_is_refused(
    s3: S3Config,
    job: Callable[..., tuple[str, ...]],
    proxied: Callable[[Rule], tuple[FaultProxy, S3Config]],
    tmp_path: Path,
    expected: dict[str, bytes],
) -> None:
    _, careless = proxied(lambda method, path: "careless")
    ended = run(tmp_path, *job(careless))
    assert ended.code == 2, ended
    assert "does not refuse to create an object twice" in ended.err
    assert "sink.allow_unconditional=true" in ended.err
    assert Store(f"s3://{BUCKET}/out", s3).names("") == set()
    allowed = run(tmp_path, *job(careless, "sink.allow_unconditional=true"))
    assert allowed.code == 0, allowed
    assert allowed.out.count("warning: ") == 1
    assert contents(s3) == expected
    assert LEASE_PATH.rpartition("/")[2] not in Store(f"s3://{BUCKET}/out", s3).names(".ldm_batch")


def test_a_careless_store_takes_one_driver_at_a_time(
    proxied: Callable[[Rule], tuple[FaultProxy, S3Config]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldm_batch.storage.lease.SETTLE_S", 0.1)
    _, careless = proxied(lambda method, path: "careless")
    store = Store(f"s3://{BUCKET}/out", careless, allow_unconditional=True)
    assert not store.prove_exclusive()
    assert store.create("a", b"first") is Creation.WON
    assert store.create("a", b"second") is Creation.LOST_TO_OTHER
    assert store.read("a") == b"first"
    with hold_lease(store), pytest.raises(JobError, match=r"in use by process .* for [56]\d s"):
        hold_lease(store).__enter__()
    assert not store.has(LEASE_PATH)
    monkeypatch.setattr("ldm_batch.storage.lease.LEASE_S", -1.0)
    hold_lease(store).__enter__()  # a driver that was killed long ago
    with hold_lease(store):
        assert store.has(LEASE_PATH)


def test_a_lease_that_cannot_be_given_back_ends_no_finished_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ldm_batch.storage.lease.SETTLE_S", 0.1)
    store = Store(str(tmp_path))

    def away(path: str) -> bytes:
        raise StorageError(f"{path}: the store is away")

    with hold_lease(store):
        monkeypatch.setattr(store, "read", away)
    assert "warning: the lease could not be given back" in capsys.readouterr().err
    assert store.has(LEASE_PATH)


def test_the_proof_is_not_fooled_by_what_is_allowed(s3: S3Config) -> None:
    assert Store(f"s3://{BUCKET}/out", s3, allow_unconditional=True).prove_exclusive()


# Credentials


def test_credentials_appear_nowhere(
    s3: S3Config, job: Callable[..., tuple[str, ...]], tmp_path: Path
) -> None:
    ray_folder = Path(tempfile.mkdtemp(prefix="ray"))
    environment = {**os.environ, "RAY_TMPDIR": str(ray_folder)}
    arguments = (*job(s3), "cluster=local", "cluster.num_workers=1")
    said: list[bytes] = []
    for more in ((), ("sink.uri=s3://nowhere/x",), ("--cfg", "job")):
        command = [sys.executable, "-m", "ldm_batch.run", *arguments, *more]
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
        said += [ended.stdout, ended.stderr]
    assert b"dataset: s3://bucket/out" in said[0], said
    stored = Store(f"s3://{BUCKET}/out", s3)
    folders = ("data", *(f".ldm_batch/{name}" for name in stored.names(".ldm_batch")))
    objects = [stored.read(f"{folder}/{n}") for folder in folders for n in stored.names(folder)]
    files = [p for top in (tmp_path, ray_folder) for p in top.rglob("*") if p.is_file()]
    texts = [path.read_bytes() for path in files]
    shutil.rmtree(ray_folder, ignore_errors=True)
    everything = [*said, *(raw for raw in objects if raw), *texts]
    secrets = [value.encode() for value in CREDENTIALS.values() if value.startswith("canary")]
    assert (len(secrets), len(files) > 10, len(objects) > 8) == (3, True, True)
    found = [raw[:200] for raw in everything for secret in secrets if secret in raw]
    assert found == []

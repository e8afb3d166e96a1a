"""The same promises on S3 as on a disk, on a real server: whole, once, listed in full."""

import io
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import run, write_prompts
from s3_server import BUCKET, CREDENTIALS

from ldm_batch.config import S3Config, SinkConfig
from ldm_batch.errors import AccessError, JobError
from ldm_batch.storage import Creation, Store, list_source, open_file, open_sink
from ldm_batch.storage.cloud import CloudFolder
from ldm_batch.storage.s3 import open_bucket
from ldm_batch.storage.s3_client import connect

ROOT = f"s3://{BUCKET}/some/sink"
RACER = """
import sys
from ldm_batch.config import S3Config
from ldm_batch.storage import Store
endpoint, me, num_names = sys.argv[1], sys.argv[2], int(sys.argv[3])
store = Store("s3://bucket/race", S3Config(endpoint=endpoint))
sys.stdin.readline()
for i in range(num_names):
    if store.publish(f"data/{i}", me.encode() * 1000, exclusive=True):
        print(i, me)
"""


@pytest.fixture
def store(s3: S3Config) -> Store:
    return Store(ROOT, s3)


def put(s3: S3Config, *keys: str, content: bytes = b"x") -> None:
    for key in keys:
        connect(s3).put_object(Bucket=BUCKET, Key=key, Body=content)


def names_of(s3: S3Config, *paths: str) -> list[str]:
    return [file.name for file in list_source([f"s3://{BUCKET}/{p}" for p in paths], s3)[0]]


# Objects


def test_an_object_of_another_program_is_compared_by_its_bytes(s3: S3Config, store: Store) -> None:
    put(s3, "some/sink/a", content=b"first")
    assert store.create("a", b"first") is Creation.LOST_TO_SAME
    assert store.create("a", b"second") is Creation.LOST_TO_OTHER


def test_a_file_is_published_from_its_start(store: Store) -> None:
    content = io.BytesIO(b"whole")
    content.seek(3)
    store.publish("a", content, exclusive=True)
    assert store.read("a") == b"whole"


def test_objects_have_the_time_at_which_they_appeared(s3: S3Config, store: Store) -> None:
    assert store.modified_at("data") == {}
    began = time.time()
    put(s3, *(f"some/sink/data/{i}" for i in range(5)), "some/sink/data/deep/b", "some/sink/data/")
    folder = CloudFolder(open_bucket(ROOT, s3)[0], "some/sink")
    folder.keys_per_page = 2
    times = store.modified_at("data")
    assert times.keys() == folder.modified_at("data").keys() == set("01234")
    assert all(began - 2 < modified_at < time.time() + 2 for modified_at in times.values())


def test_of_many_processes_one_wins(s3: S3Config, store: Store) -> None:
    command = [sys.executable, "-c", RACER, str(s3.endpoint)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    racers = [subprocess.Popen([*command, me, "20"], **pipes) for me in "ABC"]
    wins = [line.split() for racer in racers for line in racer.communicate("\n")[0].splitlines()]
    assert sorted(int(name) for name, _ in wins) == list(range(20))
    race = Store("s3://bucket/race", s3)
    assert all(race.read(f"data/{name}") == me.encode() * 1000 for name, me in wins)


def test_many_threads_share_one_connection(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        wins = list(pool.map(lambda me: store.create("a", bytes([me])), range(8)))
    assert wins.count(Creation.WON) == 1
    assert store.read("a") == bytes([wins.index(Creation.WON)])


# Sources


def test_sources_are_listed_as_on_a_disk(s3: S3Config) -> None:
    put(s3, "in/top.parquet", "in/a/x1.parquet", "in/b/x2.parquet", "in/a/deep/y.pq", "in2/z.pq")
    put(s3, "in/notes.txt", "in/_tmp/a.parquet", "in/folder/")
    put(s3, "in/empty.parquet", content=b"")
    everything = ["a/deep/y.pq", "a/x1.parquet", "b/x2.parquet", "top.parquet"]
    assert names_of(s3, "in") == names_of(s3, "in/") == everything
    assert names_of(s3, "in/*.parquet") == ["top.parquet"]
    assert names_of(s3, "in/*/x?.parquet") == ["a/x1.parquet", "b/x2.parquet"]
    assert names_of(s3, "in/a/x1.parquet", "in2/*") == ["x1.parquet", "z.pq"]
    assert names_of(s3, "in/notes.txt") == ["notes.txt"]
    files, skipped, _ = list_source([f"s3://{BUCKET}/in"], s3)
    assert [line.removeprefix("s3://bucket/in/") for line in skipped] == [
        "notes.txt: beside Parquet files (a folder is read as one kind; a glob names others, too)",
        "empty.parquet: empty",
        "_tmp/a.parquet: hidden (a name starts with '.' or '_')",
    ]
    assert open_file(files[0].uri, s3).read() == b"x"
    with pytest.raises(JobError, match="nothing found at s3://bucket/in/none"):
        names_of(s3, "in/none")


# Trouble


def test_what_no_retry_mends_ends_at_once(s3: S3Config, monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    patient = replace(s3, retry_s=60)
    with pytest.raises(AccessError, match="s3://nowhere/a/x: no such bucket"):
        Store("s3://nowhere/a", patient).read("x")
    with pytest.raises(AccessError, match="no such bucket"):
        Store("s3://nowhere/a", patient).publish("x", b"x", exclusive=True)
    with pytest.raises(JobError, match="not an S3 URL"):
        Store("s3:///a", patient)
    for name in CREDENTIALS:
        if not name.endswith("FILE"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    nobody = replace(patient, region="eu-west-1")
    with pytest.raises(AccessError, match="no credentials found; set AWS_ACCESS_KEY_ID"):
        Store(ROOT, nobody).read("x")
    assert Store(ROOT, replace(nobody, anonymous=True)).read("x") is None
    assert time.monotonic() - began < 10


def test_credentials_do_not_travel(store: Store, s3: S3Config) -> None:
    sink = SinkConfig(uri=ROOT, s3=s3)
    assert open_sink(sink).read("a") is None
    everything = pickle.dumps(sink) + repr((store, sink, vars(store))).encode()
    assert not [value for value in CREDENTIALS.values() if value[:6].encode() in everything]


# The command


S3_JOB = ("conf=machinery", "source=s3", "sink=s3", "rows_per_shard=20")
PLACES = (f"source.uri=s3://{BUCKET}/in/", f"sink.uri=s3://{BUCKET}/out")


@pytest.fixture
def job(s3: S3Config, tmp_path: Path) -> tuple[str, ...]:
    """The arguments of a job of 60 rows from S3 to S3."""
    write_prompts(tmp_path, num_files=1, rows_per_file=60)
    put(s3, "in/0.parquet", content=(tmp_path / "in/0.parquet").read_bytes())
    endpoints = [f"{side}.s3.endpoint={s3.endpoint}" for side in ("source", "sink")]
    return (*S3_JOB, *PLACES, *endpoints)


def contents(s3: S3Config, prefix: str = "out/data/") -> dict[str, bytes]:
    """All objects below a prefix of the bucket."""
    keys = connect(s3).list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
    store = Store(f"s3://{BUCKET}", s3)
    return {info["Key"].rpartition("/")[2]: store.read(info["Key"]) or b"" for info in keys}


def test_the_job_from_s3_to_s3_is_the_job_from_disk_to_disk(
    job: tuple[str, ...], s3: S3Config, tmp_path: Path
) -> None:
    local = ("conf=machinery", "source.uri=in", "sink.uri=out", "rows_per_shard=20")
    assert run(tmp_path, *local, "cluster=in_process").code == 0
    ended = run(tmp_path, *job, "cluster.num_workers=2")
    assert ended.code == 0, ended
    expected = {path.name: path.read_bytes() for path in (tmp_path / "out/data").iterdir()}
    assert contents(s3) == expected
    assert sorted(contents(s3, "out/.ldm_batch/receipts/")) == [f"0000{i}.json" for i in range(3)]
    connect(s3).delete_object(Bucket=BUCKET, Key="out/data/00001.parquet")
    again = run(tmp_path, *job, "cluster=in_process")
    assert (again.code, "2 done, 1 to do" in again.out) == (0, True), again
    assert contents(s3) == expected
    sink = (f"s3://{BUCKET}/out", "--endpoint", str(s3.endpoint))
    status = run(tmp_path, "status", *sink, module="ldm_batch")
    assert (status.code, "3 of 3 done" in status.out) == (0, True), status
    assert run(tmp_path, "sheet", *sink, "--images", "5", module="ldm_batch").code == 0
    assert (tmp_path / "contact_sheet.png").stat().st_size > 0
    assert all("canary" not in text for text in (ended.out, ended.err, again.out, status.out))
    assert not [key for key, raw in contents(s3, "out/").items() if b"canary" in raw]


def test_a_missing_bucket_is_one_message(job: tuple[str, ...], tmp_path: Path) -> None:
    ended = run(tmp_path, *job, "sink.uri=s3://nowhere/out", "cluster=in_process")
    assert ended.code == 2, ended
    assert ended.err.count("\n") == 1
    assert "s3://nowhere/out/.ldm_batch/plan.json: no such bucket" in ended.err


def test_a_secret_in_the_configuration_is_refused(job: tuple[str, ...], tmp_path: Path) -> None:
    ended = run(tmp_path, *job, "sink.s3.endpoint=http://me:secret12@host")
    assert (ended.code, "secret12" in ended.err) == (2, False)
    assert "sink.s3.endpoint: refused, a URL with credentials in it" in ended.err
    shown = run(tmp_path, *job, "--cfg", "job")
    assert (shown.code, "canary" in shown.out) == (0, False)

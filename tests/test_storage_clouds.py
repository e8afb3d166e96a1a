"""The same promises on every cloud, by its own protocol: whole, once, listed in full."""

import io
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cloud_servers import BUCKET, azurite, careless_gcs_server, fake_gcs_server
from commands import run, write_prompts
from fault_proxy import fault_proxy, random_faults

from ldm_batch.config import S3Config
from ldm_batch.config.storage import StorageAccess
from ldm_batch.errors import AccessError, JobError, StorageError, UnservedError
from ldm_batch.storage import Creation, Store, list_source, open_file, read_file
from ldm_batch.storage.cloud import CloudFolder
from ldm_batch.storage.kinds import CLOUDS, kind_of

FORKING = """
import os, sys, threading
from ldm_batch.config.storage import StorageAccess
from ldm_batch.storage import Store
root, options = sys.argv[1], eval(sys.argv[2])
store = Store(root, StorageAccess(options=options))
assert store.create("fork/parent", b"parent").value == "won"
pid = os.fork()
if pid == 0:
    own = Store(root, StorageAccess(options=options))
    os._exit(own.create("fork/child", b"child").value != "won" or own.read("fork/parent") is None)
assert os.waitpid(pid, 0)[1] == 0
assert store.names("fork") == {"parent", "child"}
print("done")
"""


@dataclass(frozen=True)
class Cloud:
    """A cloud that answers, and how it is reached."""

    scheme: str
    access: StorageAccess

    @property
    def bucket(self) -> str:
        return f"{self.scheme}://{BUCKET}"


@pytest.fixture(scope="module")
def google() -> Iterator[StorageAccess]:
    pytest.importorskip("gcsfs")
    with fake_gcs_server() as url:
        yield StorageAccess(options={"endpoint_url": url, "token": "anon", "retry_s": 5})


@pytest.fixture(scope="module")
def azure() -> Iterator[StorageAccess]:
    pytest.importorskip("adlfs")
    with azurite() as connection, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection)
        yield StorageAccess(options={"retry_s": 5})


@pytest.fixture(params=["s3", "gs", "az"])
def cloud(request: pytest.FixtureRequest) -> Cloud:
    """Every cloud in turn."""
    if request.param == "s3":
        s3: S3Config = request.getfixturevalue("s3")
        access = StorageAccess(options={"endpoint_url": s3.endpoint, "retry_s": 5})
        return Cloud("s3", access)
    name = {"gs": "google", "az": "azure"}[request.param]
    return Cloud(request.param, request.getfixturevalue(name))


@pytest.fixture
def root(cloud: Cloud) -> str:
    """A prefix that nothing stands below."""
    return f"{cloud.bucket}/{uuid.uuid4().hex}/sink"


@pytest.fixture
def store(cloud: Cloud, root: str) -> Store:
    return Store(root, cloud.access)


def folder_of(root: str, cloud: Cloud, keys_per_page: int) -> CloudFolder:
    """The same folder, its listings asked for in small pages."""
    folder = kind_of(root).open_place(root, cloud.access)  # type: ignore[misc]
    assert isinstance(folder, CloudFolder)
    folder.keys_per_page = keys_per_page
    return folder


def put(store: Store, *paths: str, content: bytes = b"x") -> None:
    for path in paths:
        store.publish(path, content, exclusive=False)


# Objects


def test_what_is_published_can_be_read(store: Store, root: str) -> None:
    assert store.publish("data/a", b"one", exclusive=True)
    assert store.publish("data/b", io.BytesIO(b"two"), exclusive=False)
    assert store.publish("data/empty", b"", exclusive=True)
    assert (store.read("data/a"), store.open("data/b").read()) == (b"one", b"two")
    assert (store.read("data/empty"), store.open("data/empty").read()) == (b"", b"")
    assert store.names("data") == {"a", "b", "empty"}
    assert (store.uri("data/a"), store.names("nothing")) == (f"{root}/data/a", set())


def test_what_is_not_there(store: Store) -> None:
    assert (store.read("a"), store.has("a"), store.names("data")) == (None, False, set())
    store.remove("a")
    with pytest.raises(StorageError, match="sink/a: No such file"):
        store.open("a")


def test_the_first_to_create_wins(store: Store) -> None:
    assert store.create("a", b"first") is Creation.WON
    assert store.create("a", b"first") is Creation.LOST_TO_SAME
    assert store.create("a", b"second") is Creation.LOST_TO_OTHER
    assert store.read("a") == b"first"
    assert store.publish("a", b"second", exclusive=False)
    assert store.read("a") == b"second"
    store.remove("a")
    assert store.create("a", b"third") is Creation.WON


def test_of_many_threads_one_wins(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        for name in "abc":
            wins = list(pool.map(lambda me, n=name: store.create(n, bytes([me])), range(8)))
            assert wins.count(Creation.WON) == 1
            assert store.read(name) == bytes([wins.index(Creation.WON)])


def test_parts_are_read_by_range(store: Store) -> None:
    content = os.urandom(100_000)
    store.publish("a", content, exclusive=True)
    with store.open("a") as file:
        file.seek(-10, io.SEEK_END)
        assert file.read() == content[-10:]
        assert file.read(5) == b""
        file.seek(50_000)
        assert (file.read(7), file.tell()) == (content[50_000:50_007], 50_007)


def test_an_object_replaced_while_it_is_read_is_noticed(store: Store) -> None:
    store.publish("a", b"one" * 100, exclusive=True)
    with store.open("a") as file:
        file.read(3)
        store.publish("a", b"two" * 100, exclusive=False)
        with pytest.raises(StorageError, match="sink/a: changed while it was read"):
            file.read(3)


def test_long_listings_are_read_to_their_end(cloud: Cloud, store: Store, root: str) -> None:
    put(store, *(f"data/{i:05d}" for i in range(7)), "data/deep/b", "datax")
    folder = folder_of(root, cloud, 3)
    everything = {f"{i:05d}" for i in range(7)} | {"deep"}
    assert folder.names("data") == store.names("data") == everything
    assert folder.names("") == store.names("") == {"data", "datax"}


def test_objects_have_the_time_at_which_they_appeared(store: Store) -> None:
    assert store.modified_at("data") == {}
    began = time.time()
    put(store, "data/0", "data/1", "data/deep/b")
    times = store.modified_at("data")
    assert times.keys() == {"0", "1"}
    assert all(began - 2 < modified_at < time.time() + 2 for modified_at in times.values())
    assert began - 2 < store.now() < time.time() + 2


def test_a_good_store_proves_itself_and_keeps_nothing(store: Store) -> None:
    assert store.prove_exclusive()
    assert store.names(".ldm_batch/tmp") == set()


def test_old_leftovers_are_told(store: Store) -> None:
    put(store, ".ldm_batch/tmp/probe-1")
    [leftover] = store.leftovers()
    assert leftover.path == ".ldm_batch/tmp/probe-1"
    store.remove_leftover(leftover)
    store.remove_leftover(leftover)
    assert store.leftovers() == []


def test_a_forked_process_reaches_the_store_and_both_end(cloud: Cloud, root: str) -> None:
    command = [sys.executable, "-c", FORKING, root, repr(dict(cloud.access.options))]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr


# Sources


def test_sources_are_listed_as_on_a_disk(cloud: Cloud, store: Store, root: str) -> None:
    put(store, "in/top.parquet", "in/a/x1.parquet", "in/b/x2.parquet", "in/a/deep/y.pq", "in2/z.pq")
    put(store, "in/notes.txt", "in/_tmp/a.parquet")
    put(store, "in/empty.parquet", content=b"")

    def names_of(*paths: str) -> list[str]:
        listed = list_source([f"{root}/{path}" for path in paths], cloud.access)[0]
        return [file.name for file in listed]

    everything = ["a/deep/y.pq", "a/x1.parquet", "b/x2.parquet", "top.parquet"]
    assert names_of("in") == names_of("in/") == everything
    assert names_of("in/*.parquet") == ["top.parquet"]
    assert names_of("in/*/x?.parquet") == ["a/x1.parquet", "b/x2.parquet"]
    assert names_of("in/a/x1.parquet", "in2/*") == ["x1.parquet", "z.pq"]
    files, skipped, _ = list_source([f"{root}/in"], cloud.access)
    assert [line.removeprefix(f"{root}/in/").partition(" (")[0] for line in skipped] == [
        "notes.txt: beside Parquet files",
        "empty.parquet: empty",
        "_tmp/a.parquet: hidden",
    ]
    assert open_file(files[0].uri, cloud.access).read() == b"x"
    assert read_file(files[0].uri, 10, cloud.access) == b"x"
    assert read_file(f"{root}/in/empty.parquet", 10, cloud.access) == b""
    with pytest.raises(UnservedError) as none:
        read_file(f"{root}/in/none.parquet", 10, cloud.access)
    assert none.value.is_absent
    with pytest.raises(JobError, match="nothing found at"):
        names_of("in/none")


def test_the_version_of_an_object_changes_with_it(cloud: Cloud, store: Store, root: str) -> None:
    put(store, "in/a.parquet")
    [before] = list_source([f"{root}/in/a.parquet"], cloud.access)[0]
    [listed] = list_source([f"{root}/in/"], cloud.access)[0]
    put(store, "in/a.parquet", content=b"y")
    [after] = list_source([f"{root}/in/a.parquet"], cloud.access)[0]
    assert (before, before.version == after.version) == (listed, False)


@pytest.mark.parametrize("name", ["a[1].parquet", "a b.parquet", "ü,=.parquet", "a#1%20+.parquet"])
def test_odd_names_are_names(cloud: Cloud, store: Store, root: str, name: str) -> None:
    put(store, f"in[1]/{name}")
    found = [
        list_source([f"{root}/{path}"], cloud.access)[0] for path in ("in[1]", f"in[1]/{name}")
    ]
    assert [[file.name for file in files] for files in found] == [[name], [name]]
    assert open_file(f"{root}/in[1]/{name}", cloud.access).read() == b"x"


# Trouble


def test_what_no_retry_mends_ends_at_once(cloud: Cloud) -> None:
    began, told = time.monotonic(), "nowhere.*: no such (bucket|container)"
    nowhere = Store(f"{cloud.scheme}://nowhere/a", cloud.access)
    with pytest.raises(AccessError, match=told):
        nowhere.publish("x", b"x", exclusive=True)
    with pytest.raises(AccessError, match=told):
        nowhere.names("data")
    with pytest.raises(JobError, match=r"not an? .*URL"):
        Store(f"{cloud.scheme}:///a", cloud.access)
    assert time.monotonic() - began < 5


def test_a_server_that_is_away_is_waited_for_so_long_and_no_longer(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    away: dict[str, Any] = {**cloud.access.options, "retry_s": 1}
    if cloud.scheme == "az":
        connection = os.environ["AZURE_STORAGE_CONNECTION_STRING"]
        endpoint = connection[connection.index("BlobEndpoint=") :]
        dead = connection.replace(endpoint, "BlobEndpoint=http://127.0.0.1:9/canaryaccount;")
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", dead)
        away["tenant_id"] = "other"  # another connection than that of the tests before
    else:
        away["endpoint_url"] = "http://127.0.0.1:9"
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"x: .*[Cc]onnect.* \(tried for 1 s\)"):
        Store(f"{cloud.bucket}/a", StorageAccess(options=away)).read("x")
    assert time.monotonic() - began < 4


@pytest.mark.parametrize("scheme", ["gs", "az"])  # of S3 there are more, in test_faults.py
def test_a_lost_reply_is_not_a_lost_race(
    scheme: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = request.getfixturevalue({"gs": "google", "az": "azure"}[scheme])
    connection = os.environ.get("AZURE_STORAGE_CONNECTION_STRING", "")
    url = access.options.get("endpoint_url") or connection.rpartition("BlobEndpoint=")[2]
    upstream = "/".join(url.split("/")[:3])
    with fault_proxy(upstream, random_faults(0.3, seed=5)) as proxy:
        options = {**access.options, "retry_s": 20}
        if scheme == "gs":
            options["endpoint_url"] = proxy.endpoint
        else:
            through = connection.replace(upstream, proxy.endpoint)
            monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", through)
            options["tenant_id"] = "through-a-proxy"  # another connection than that without
        store = Store(f"{scheme}://{BUCKET}/{uuid.uuid4().hex}", StorageAccess(options=options))
        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(lambda i: store.create(f"{i}", bytes([i]) * 1000), range(40)))
        assert set(made) == {Creation.WON}
        assert store.create("0", bytes(1000)) is Creation.LOST_TO_SAME
        assert store.create("0", b"other") is Creation.LOST_TO_OTHER
        assert store.names("") == {str(i) for i in range(40)}
        assert all(store.read(f"{i}") == bytes([i]) * 1000 for i in range(0, 40, 4))
        assert min(proxy.met[fault] for fault in ("500", "503", "reset", "lost")) > 0


def test_a_store_that_ignores_the_condition_is_refused() -> None:
    with careless_gcs_server() as url:
        access = StorageAccess(options={"endpoint_url": url, "token": "anon", "retry_s": 5})
        store = Store(f"gs://{BUCKET}/sink", access)
        with pytest.raises(JobError, match="does not refuse to create an object twice"):
            store.prove_exclusive()
        allowed = Store(f"gs://{BUCKET}/sink", access, allow_unconditional=True)
        assert not allowed.prove_exclusive()


def test_every_scheme_of_a_cloud_has_its_module() -> None:
    assert {kind_of(f"{scheme}://a/b").open_place is not None for scheme in CLOUDS} == {True}
    assert kind_of("S3://a/b") is kind_of("s3a://a/b")


# The command


def test_the_job_into_a_cloud_is_the_job_onto_a_disk(
    cloud: Cloud, root: str, tmp_path: Path
) -> None:
    write_prompts(tmp_path, num_files=1, rows_per_file=40)
    job = ("conf=machinery", "source.uri=in", "rows_per_shard=20", "cluster=in_process")
    assert run(tmp_path, *job, "sink.uri=out").code == 0
    given = ",".join(f"{name}:'{value}'" for name, value in cloud.access.options.items())
    options = f"sink.storage={{{given}}}".replace("'5'", "5")
    ended = run(tmp_path, *job, f"sink.uri={root}", options)
    assert ended.code == 0, ended
    store = Store(root, cloud.access)
    for path in (tmp_path / "out/data").iterdir():
        assert store.read(f"data/{path.name}") == path.read_bytes()
    assert store.names("data") == {"00000.parquet", "00001.parquet"}
    assert store.names(".ldm_batch/receipts") == {"00000.json", "00001.json"}
    again = run(tmp_path, *job, f"sink.uri={root}", options)
    assert (again.code, "2 done, 0 to do" in again.out) == (0, True), again

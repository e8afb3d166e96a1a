"""Storage on real files: objects appear whole, once, or not at all; sources are listed in order."""

import io
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest

from ldm_batch.errors import JobError, StorageError
from ldm_batch.storage import Store, absolute, list_source, open_file
from ldm_batch.storage.files import glob_matcher

RACER = """
import sys
from ldm_batch.storage import Store
root, me, num_names = sys.argv[1], sys.argv[2], int(sys.argv[3])
store = Store(root)
sys.stdin.readline()
for i in range(num_names):
    if store.publish(f"data/{i}", me.encode() * 100_000, exclusive=True):
        print(i, me)
"""
KILLED = """
import io, os, signal, sys
from ldm_batch.storage import Store
class Content(io.BytesIO):
    def read(self, size=-1):
        if self.tell() > 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(size)
Store(sys.argv[1]).publish("data/a", Content(b"x" * 4_000_000), exclusive=True)
"""
LIMITED = """
import resource, sys
from ldm_batch.errors import StorageError
from ldm_batch.storage import Store
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    Store(sys.argv[1]).publish("data/a", b"x" * 4_000_000, exclusive=True)
except StorageError as error:
    print(error)
"""
FULL_DISK = f"""
mount -t tmpfs -o size=1m tmpfs "$1" || exit 77
exec "$0" -c '{LIMITED.replace("(100_000, 100_000)", "(-1, -1)")}
print(Store(sys.argv[1]).names("data"), Store(sys.argv[1]).names(".ldm_batch/tmp"))' "$1"
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "sink"))


@pytest.fixture
def locked() -> Iterator[Callable[..., object]]:
    """`with locked(folder):` a folder that nobody may write, also where the tests are root's."""

    @contextmanager
    def lock(folder: Path, mode: int = 0o555) -> Iterator[None]:
        folder.chmod(mode)
        is_root = os.geteuid() == 0
        try:
            if is_root:
                os.seteuid(65534)
            yield
        finally:
            if is_root:
                os.seteuid(0)
            folder.chmod(0o755)

    return lock


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can reach; `tmp_path` is closed to others."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def touch(folder: Path, *names: str, content: bytes = b"x") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def names_of(*uris: object) -> list[str]:
    return [file.name for file in list_source([str(uri) for uri in uris])[0]]


# Objects


def test_a_file_that_two_places_name_otherwise_is_refused(tmp_path: Path) -> None:
    """But for a dataset that was planned so."""
    (tmp_path / "in/z").mkdir(parents=True)
    for name in ("a.parquet", "z/b.parquet"):
        (tmp_path / "in" / name).write_bytes(b"PAR1")
    both = [str(tmp_path / "in/z"), str(tmp_path / "in")]
    with pytest.raises(
        JobError, match=r"b.parquet would be read twice, as 'b.parquet' and as 'z/b"
    ):
        list_source(both)
    planned = {"a.parquet", "b.parquet", "z/b.parquet"}
    assert {file.name for file in list_source(both, planned=planned).files} == planned
    same = [str(tmp_path / "in"), str(tmp_path / "in/**")]
    assert len(list_source(same).files) == 2


def test_what_is_published_can_be_read(store: Store) -> None:
    assert store.publish("data/a", b"one", exclusive=True)
    assert store.publish("data/b", io.BytesIO(b"two"), exclusive=False)
    assert (store.read("data/a"), store.open("data/b").read()) == (b"one", b"two")
    assert store.names("data") == {"a", "b"}


def test_a_file_is_published_from_its_start(store: Store) -> None:
    content = io.BytesIO(b"whole")
    content.seek(3)
    store.publish("a", content, exclusive=True)
    assert store.read("a") == b"whole"


def test_what_is_not_there(store: Store) -> None:
    assert (store.read("a"), store.has("a"), store.names("data")) == (None, False, set())
    store.remove("a")
    with pytest.raises(StorageError, match="No such file"):
        store.open("a")


def test_the_first_to_create_wins(store: Store) -> None:
    assert store.publish("data/a", b"first", exclusive=True)
    assert not store.publish("data/a", b"second", exclusive=True)
    assert store.read("data/a") == b"first"


def test_a_replacement_replaces(store: Store) -> None:
    store.publish("a", b"first", exclusive=True)
    assert store.publish("a", b"second", exclusive=False)
    assert store.read("a") == b"second"


def test_a_removed_object_can_be_created_again(store: Store) -> None:
    store.publish("a", b"first", exclusive=True)
    store.remove("a")
    assert not store.has("a")
    assert store.publish("a", b"second", exclusive=True)


def test_objects_have_the_time_at_which_they_appeared(store: Store) -> None:
    assert store.modified_at("data") == {}
    began = time.time()
    store.publish("data/a", b"one", exclusive=True)
    store.publish("data/deep/b", b"two", exclusive=True)
    [(name, modified_at)] = store.modified_at("data").items()
    assert (name, began - 2 < modified_at < time.time() + 2) == ("a", True)
    os.utime(Path(store.root, "data/a"), (0, 1000.5))
    assert store.modified_at("data") == {"a": 1000.5}
    store.publish("data/a", b"again", exclusive=False)
    assert store.modified_at("data")["a"] > began - 2


def test_publishing_leaves_nothing_else(store: Store) -> None:
    for exclusive in (True, True, False):
        store.publish("data/a", b"x", exclusive=exclusive)
    assert store.names("data") == {"a"}
    assert store.names(".ldm_batch/tmp") == set()


def test_of_many_threads_one_wins(store: Store) -> None:
    def race(name: int, me: int) -> bool:
        return store.publish(f"data/{name}", bytes([me]) * 300_000, exclusive=True)

    with ThreadPoolExecutor(16) as pool:
        for name in range(10):
            wins = list(pool.map(lambda me, name=name: race(name, me), range(16)))
            assert wins.count(True) == 1
            assert store.read(f"data/{name}") == bytes([wins.index(True)]) * 300_000


def test_of_many_processes_one_wins(store: Store) -> None:
    command = [sys.executable, "-c", RACER, store.root]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    racers = [subprocess.Popen([*command, me, "40"], **pipes) for me in "ABCD"]
    wins = [line.split() for racer in racers for line in racer.communicate("\n")[0].splitlines()]
    assert sorted(int(name) for name, _ in wins) == list(range(40))
    for name, me in wins:
        assert store.read(f"data/{name}") == me.encode() * 100_000


def test_a_reader_sees_only_whole_objects(store: Store) -> None:
    contents = [bytes([i]) * 500_000 for i in range(3)]
    store.publish("a", contents[0], exclusive=True)
    seen, done = set(), threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(store.read("a"))

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(60):
        store.publish("a", contents[i % 3], exclusive=False)
    done.set()
    reader.join()
    assert seen <= set(contents)


def test_content_that_breaks_off_never_appears(store: Store) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 0:
                raise RuntimeError("broken")
            return super().read(size)

    with pytest.raises(RuntimeError, match="broken"):
        store.publish("data/a", Broken(b"x" * 4_000_000), exclusive=True)
    assert store.names("data") == store.names(".ldm_batch/tmp") == set()


def test_a_killed_writer_leaves_no_object(store: Store) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, store.root], check=False)
    assert killed.returncode == -9
    assert store.names("data") == set()
    assert len(store.names(".ldm_batch/tmp")) == 1
    assert store.publish("data/a", b"whole", exclusive=True)


def test_old_leftovers_are_removed(store: Store) -> None:
    scratch = Path(store.root, ".ldm_batch/tmp")
    touch(scratch, "old.tmp", "young.tmp")
    os.utime(scratch / "old.tmp", (0, time.time() - 25 * 3600))
    store.prove_exclusive()
    assert store.names(".ldm_batch/tmp") == {"young.tmp"}


def test_leftovers_that_cannot_be_removed_stay(folder: Path, locked: Callable[..., object]) -> None:
    """That a leftover is another user's is no trouble; that nothing can be written is."""
    store, scratch = Store(str(folder)), folder / ".ldm_batch/tmp"
    touch(scratch, "old.tmp")
    os.utime(scratch / "old.tmp", (0, 0))
    with locked(scratch), pytest.raises(StorageError, match=r"probe-.*: Permission denied"):
        store.prove_exclusive()
    assert store.names(".ldm_batch/tmp") == {"old.tmp"}


def test_a_good_store_proves_itself_and_keeps_nothing(store: Store) -> None:
    store.prove_exclusive()
    assert [p for p in Path(store.root).rglob("*") if p.is_file()] == []


def test_a_store_that_creates_twice_is_refused(tmp_path: Path) -> None:
    class Careless(Store):
        def publish(self, path: str, content: object, *, exclusive: bool) -> bool:
            return super().publish(path, content, exclusive=False)

    with pytest.raises(JobError, match="does not refuse to create an object twice"):
        Careless(str(tmp_path)).prove_exclusive()


# Trouble


def test_a_sink_that_is_a_file(tmp_path: Path) -> None:
    touch(tmp_path, "sink")
    with pytest.raises(
        JobError, match=r"sink: .*sink is no folder; a dataset is one, name another"
    ):
        Store(str(tmp_path / "sink"))
    with pytest.raises(JobError, match=r"sink/below: .*sink is no folder"):
        Store(str(tmp_path / "sink/below"))
    (tmp_path / "sink").unlink()
    store = Store(str(tmp_path / "sink"))
    touch(tmp_path, "sink")  # meanwhile
    with pytest.raises(StorageError, match=r"sink/data/a: .*(Not a directory|File exists)"):
        store.publish("data/a", b"x", exclusive=True)
    with pytest.raises(StorageError, match="Not a directory"):
        store.names("data")
    with pytest.raises(StorageError, match="Not a directory"):
        store.read("data/a")


@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_a_sink_that_may_not_be_written(
    folder: Path, locked: Callable[..., object], mode: int
) -> None:
    with locked(folder, mode), pytest.raises(StorageError, match=r"sink/.*: Permission denied"):
        Store(str(folder / "sink")).prove_exclusive()


def test_a_source_that_may_not_be_read_is_not_skipped(
    folder: Path, locked: Callable[..., object]
) -> None:
    touch(folder, "a.parquet", "private/b.parquet")
    with locked(folder / "private", 0o000), pytest.raises(StorageError, match="Permission denied"):
        list_source([str(folder)])


def test_a_file_larger_than_allowed(store: Store) -> None:
    limited = [sys.executable, "-c", LIMITED, store.root]
    ended = subprocess.run(limited, capture_output=True, text=True, check=True)
    assert ended.stdout == f"{store.root}/data/a: File too large\n"
    assert store.names("data") == store.names(".ldm_batch/tmp") == set()


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs Linux namespaces")
def test_a_full_disk(tmp_path: Path) -> None:
    command = ["unshare", "-rm", "sh", "-c", FULL_DISK, sys.executable, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode in (1, 77) and not ended.stdout:
        pytest.skip(f"cannot mount a small disk here: {ended.stderr.strip()}")
    message, listing = ended.stdout.splitlines()
    assert message == f"{tmp_path}/data/a: No space left on device"
    assert listing == "set() set()"


@pytest.mark.parametrize("uri", ["nonsense://a/b", "simplecache::file:///tmp/a"])
def test_other_stores_are_refused_by_name(uri: str) -> None:
    protocol = uri.partition(":")[0]
    for use in (Store, open_file, lambda uri: list_source([uri])):
        with pytest.raises(JobError, match=f"{protocol}:// is not supported"):
            use(uri)


@pytest.mark.parametrize("root", ["", "s3://bucket/"])
def test_a_pattern_that_is_none_is_refused(root: str, tmp_path: Path) -> None:
    folder = root or f"{tmp_path}/"
    with pytest.raises(
        (JobError, StorageError), match=r"x\*\*: .*'\*\*' can only be an entire path"
    ):
        glob_matcher(f"{folder}x**") if root else list_source([f"{folder}x**"])


def test_a_home_that_is_not_known_is_named() -> None:
    told = r"~nobody-here/a: no such user is known here; write the path out, .* \./~nobody-here/a"
    for use in (Store, open_file, lambda uri: list_source([uri])):
        with pytest.raises(JobError, match=told):
            use("~nobody-here/a")


def test_other_kinds_of_storage_hold_input_but_no_dataset() -> None:
    for name, content in (("a.parquet", b"one"), ("sub/b.parquet", b"two"), ("c.txt", b"")):
        fsspec.filesystem("memory").pipe(f"/kinds/{name}", content)
    files, *_ = list_source(["memory://kinds"])
    assert [(file.name, open_file(file.uri).read()) for file in files] == [
        ("a.parquet", b"one"),
        ("sub/b.parquet", b"two"),
    ]
    with pytest.raises(JobError, match="memory:// is not supported for a dataset"):
        Store("memory://kinds")


def test_file_urls_are_paths(tmp_path: Path) -> None:
    store = Store(f"file://{tmp_path}/sink")
    store.publish("data/a.parquet", b"x", exclusive=True)
    assert (tmp_path / "sink/data/a.parquet").read_bytes() == b"x"
    assert names_of(f"file://{tmp_path}/sink/data") == ["a.parquet"]
    assert open_file(f"file://{tmp_path}/sink/data/a.parquet").read() == b"x"


def test_relative_paths_are_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert absolute("a/b") == f"{tmp_path}/a/b"
    assert absolute("~/a") == "/home/me/a"
    assert absolute("./~/a") == f"{tmp_path}/~/a"
    assert absolute("./~a.parquet") == f"{tmp_path}/~a.parquet"
    assert absolute("s3://a/b") == "s3://a/b"
    Store("sink").publish("a", b"x", exclusive=True)
    assert (tmp_path / "sink/a").read_bytes() == b"x"


def test_opening_what_is_not_there_names_it(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"gone.parquet: No such file"):
        open_file(str(tmp_path / "gone.parquet"))


# Sources


def test_a_folder_is_listed_below_in_order(tmp_path: Path) -> None:
    touch(tmp_path, "b.parquet", "a/z.pq", "a/b/c.parq", "notes.txt", "c.parquet.gz")
    assert names_of(tmp_path) == names_of(f"{tmp_path}/") == ["a/b/c.parq", "a/z.pq", "b.parquet"]


def test_a_file_has_its_own_name(tmp_path: Path) -> None:
    touch(tmp_path, "a/b.parquet", "a/list.data")
    assert names_of(tmp_path / "a/b.parquet") == ["b.parquet"]
    assert names_of(tmp_path / "a/list.data") == ["list.data"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.parquet", ["top.parquet"]),
        ("*/x*.parquet", ["a/x1.parquet", "b/x2.parquet"]),
        ("**/*.parquet", ["a/deep/y.parquet", "a/x1.parquet", "b/x2.parquet", "top.parquet"]),
        ("a/x[12].parquet", ["x1.parquet"]),
        ("?/x?.parquet", ["a/x1.parquet", "b/x2.parquet"]),
    ],
)
def test_a_glob_names_files_below_its_fixed_part(
    tmp_path: Path, pattern: str, names: list[str]
) -> None:
    touch(tmp_path, "top.parquet", "a/x1.parquet", "b/x2.parquet", "a/deep/y.parquet")
    assert names_of(tmp_path / pattern) == names


def test_a_list_is_put_together(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.parquet", "b/2.parquet", "c.parquet")
    listed = names_of(tmp_path / "b", tmp_path / "a/*.parquet", tmp_path / "c.parquet")
    assert listed == ["1.parquet", "2.parquet", "c.parquet"]


def test_a_file_named_twice_counts_once(tmp_path: Path) -> None:
    touch(tmp_path, "a.parquet")
    assert names_of(tmp_path, tmp_path / "a.parquet", tmp_path / "*.parquet") == ["a.parquet"]


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.parquet", "b/x.parquet")
    with pytest.raises(JobError, match=r"a/x.parquet and .*b/x.parquet would both be named 'x.pa"):
        names_of(tmp_path / "a", tmp_path / "b")


def test_hidden_and_empty_files_are_skipped_with_a_word(tmp_path: Path) -> None:
    touch(tmp_path, "a.parquet", ".b.parquet", "_c.parquet", "_tmp/d.parquet", ".x/e.parquet")
    touch(tmp_path, "f.parquet", content=b"")
    files, skipped, _ = list_source([str(tmp_path)])
    assert [file.name for file in files] == ["a.parquet"]
    assert sorted(line.removeprefix(f"{tmp_path}/") for line in skipped) == [
        f"4 files: hidden (a name starts with '.' or '_'), such as {tmp_path}/.b.parquet",
        "f.parquet: empty",
    ]


def test_only_names_below_the_source_can_be_hidden(tmp_path: Path) -> None:
    touch(tmp_path, ".cache/_v1/a.parquet")
    assert names_of(tmp_path / ".cache/_v1") == ["a.parquet"]


@pytest.mark.parametrize("name", ["a[1].parquet", "a b.parquet", "ü,=.parquet", "a#1%20.parquet"])
def test_odd_names_are_names(tmp_path: Path, name: str) -> None:
    touch(tmp_path / "in[1]", name)
    assert names_of(tmp_path / "in[1]") == names_of(tmp_path / "in[1]" / name) == [name]
    [file] = list_source([str(tmp_path / "in[1]")])[0]
    assert open_file(file.uri).read() == b"x"


@pytest.mark.parametrize("place", ["gone.parquet", "gone/", "*.parquet", "a/**/x.parquet"])
def test_nothing_found_is_said(tmp_path: Path, place: str) -> None:
    with pytest.raises(JobError, match=r"source.uri: nothing found at .*"):
        names_of(tmp_path / place)


def test_links_are_followed_and_broken_ones_skipped_with_a_word(tmp_path: Path) -> None:
    """The hub's cache holds nothing but links."""
    touch(tmp_path, "real/a.parquet", "in/b.parquet")
    (tmp_path / "in/link.parquet").symlink_to(tmp_path / "real/a.parquet")
    (tmp_path / "in/broken.parquet").symlink_to(tmp_path / "gone.parquet")
    files, skipped, _ = list_source([str(tmp_path / "in")])
    [real] = list_source([str(tmp_path / "real/a.parquet")])[0]
    assert [file.name for file in files] == ["b.parquet", "link.parquet"]
    assert (files[1].size_bytes, files[1].version) == (1, real.version)
    assert skipped == [f"{tmp_path}/in/broken.parquet: empty"]


def test_the_version_of_a_file_changes_with_it(tmp_path: Path) -> None:
    touch(tmp_path, "a.parquet")
    [before], [again] = list_source([str(tmp_path)])[0], list_source([str(tmp_path)])[0]
    touch(tmp_path, "a.parquet", content=b"other")
    os.utime(tmp_path / "a.parquet", (0, 0))
    [after] = list_source([str(tmp_path)])[0]
    assert before == again
    assert (before.size_bytes, after.size_bytes) == (1, 5)
    assert before.version != after.version

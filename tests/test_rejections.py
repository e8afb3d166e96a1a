"""The rejections of a shard are those of its object, whatever other attempts left beside them."""

import hashlib
import io
import json
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from memory_s3 import Crash, MemoryS3

from ldm_batch import identity
from ldm_batch.columns import METADATA_KEY
from ldm_batch.commands import sweep
from ldm_batch.commands.verify.object import Expected, ObjectReport, verify_object
from ldm_batch.commands.verify.verification import EXIT_RIGHT, EXIT_WRONG, verify
from ldm_batch.config import S3Config
from ldm_batch.dataset import open_dataset
from ldm_batch.errors import JobError
from ldm_batch.generate.random_pixels import RandomPixels
from ldm_batch.generate.text_to_image import COLUMNS
from ldm_batch.records import (
    Fault,
    InputFile,
    Outcome,
    PromptCount,
    Reason,
    Rejection,
    Request,
    Shard,
)
from ldm_batch.storage import Store
from ldm_batch.storage.local import LocalFolder
from ldm_batch.write.commit import commit_shard, make_facts, read_named_digest
from ldm_batch.write.parquet import object_schema, written_object
from ldm_batch.write.rejections import (
    OMITTED_TYPE,
    RejectedRows,
    RejectionsFile,
    make_rejections_file,
)
from ldm_batch.write.spool import Spool

Make = Callable[..., Any]
SOON = -60.0
"""An age in seconds that everything has reached."""


class Picky(RandomPixels):
    """Knows five words, and makes nothing of a prompt that says so."""

    def count_tokens(self, prompts: Sequence[str]) -> list[PromptCount]:
        return [PromptCount(len(p.split()), len(p.split()) > 5) for p in prompts]

    def generate(self, requests: Sequence[Request]) -> list[Any]:
        fault = Fault(Reason.NOT_FINITE, "the pixels are not finite")
        made = super().generate(requests)
        return [
            fault if "bad" in request.inputs["prompt"] else pixels
            for request, pixels in zip(requests, made, strict=True)
        ]


def names(store: Store) -> list[str]:
    """Names of all files of rejections."""
    return sorted(store.names(identity.REJECTED_FOLDER))


def named(store: Store, shard_id: str = "00000") -> str:
    """The name of the rejections that a shard's object names."""
    digest = read_named_digest(store, shard_id)
    return identity.rejected_path(shard_id, digest).rpartition("/")[2]


def facts_of(store: Store, shard_id: str = "00000") -> dict[str, Any]:
    """What a shard's object says."""
    raw = store.read(identity.data_path(shard_id)) or b""
    facts: dict[str, Any] = json.loads(pq.read_metadata(io.BytesIO(raw)).metadata[METADATA_KEY])
    return facts


# What a worker keeps


def test_early_and_late_rejections_hold_their_rows(
    tmp_path: Path, write_parquet: Make, make_job: Make, make_worker: Make
) -> None:
    columns = {
        "caption": ["good", "bad one", None, "one two three four five six", "x" * 70_000],
        "seed": [1, 2, 3, 4, 5],
        "topic": [["a"], ["b"], [], None, ["e"]],
        "other": list("vwxyz"),
    }
    changes = {
        "source__columns": {"prompt": "caption"},
        "source__carry": ["topic"],
        "source__long_prompts": "reject",
        "source__max_prompt_chars": 100,
        "num_images_per_prompt": 2,
    }
    source = write_parquet(tmp_path / "in/a.parquet", **columns)
    worker, plan = make_worker(make_job(source, tmp_path / "out", **changes), Picky())
    receipt = worker.make_shard(plan.shards[0])
    assert (receipt.num_rows_with_images, receipt.num_rejected) == (1, 4)
    store = Store(str(tmp_path / "out"))
    assert names(store) == [named(store)]
    raw = store.read(f"{identity.REJECTED_FOLDER}/{names(store)[0]}") or b""
    assert facts_of(store)["rejections"] == hashlib.sha256(raw).hexdigest()
    rows = pq.read_table(io.BytesIO(raw), page_checksum_verification=True).to_pylist()
    assert [(row["input_row"], row["reason"]) for row in rows] == [
        (1, "not_finite"),
        (2, "null_prompt"),
        (3, "too_many_tokens"),
        (4, "prompt_too_large"),
    ]
    given = pa.table(columns).drop_columns("other").to_pylist()
    assert [row["row"] for row in rows] == [*given[1:4], {**given[4], "caption": None}]
    digest = hashlib.sha256(b"x" * 70_000).hexdigest()
    [omitted] = rows[3]["omitted"]
    assert omitted == {"column": "caption", "size_bytes": 70_000, "sha256": digest}


def test_rejected_rows_can_be_mended_and_made(
    tmp_path: Path, write_parquet: Make, make_job: Make, make_worker: Make
) -> None:
    """What `row` holds is an input of the same job."""
    prompts = pa.array(["a", None, "", "b"]).dictionary_encode()
    source = write_parquet(tmp_path / "in/a.parquet", prompt=prompts, id=list("wxyz"))
    worker, plan = make_worker(make_job(source, tmp_path / "out"))
    worker.make_shard(plan.shards[0])
    [path] = (tmp_path / "out" / identity.REJECTED_FOLDER).glob("*")
    rows = pq.read_table(path)["row"].combine_chunks()
    table = pa.Table.from_struct_array(rows)
    assert table.schema.field("prompt").type == pa.string()
    mended = table.set_column(0, "prompt", pa.array(["mended"] * 2))
    pq.write_table(mended, tmp_path / "mended.parquet")
    worker, plan = make_worker(make_job(tmp_path / "mended.parquet", tmp_path / "again"))
    assert worker.make_shard(plan.shards[0]).num_rows_with_images == 2
    made = pq.read_table(tmp_path / "again/data/00000.parquet", columns=["key", "prompt"])
    assert made.to_pylist() == [{"key": key, "prompt": "mended"} for key in "xy"]


def test_a_shard_without_rejections_names_none_and_is_read_once(
    tmp_path: Path,
    write_parquet: Make,
    make_job: Make,
    make_worker: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = write_parquet(tmp_path / "a.parquet", prompt=["a", "b"])
    worker, plan = make_worker(make_job(source, tmp_path / "out"))
    monkeypatch.setattr("ldm_batch.worker.read_rejected", None)
    worker.make_shard(plan.shards[0])
    store = Store(str(tmp_path / "out"))
    assert ("rejections" in facts_of(store), names(store)) == (False, [])


# An attempt that dies between its rejections and its object


def die_before_the_commit(worker: Any, shard: Shard) -> None:
    """Make a shard in a process that kills itself where it would create the object."""
    pid = os.fork()
    if not pid:
        try:
            LocalFolder.create = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment,method-assign]
            worker.make_shard(shard)
        finally:
            os._exit(70)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("has_null", [True, False])
def test_a_loser_killed_before_its_commit_leaves_what_sweep_removes(
    tmp_path: Path, write_parquet: Make, make_job: Make, make_worker: Make, has_null: bool
) -> None:
    """The winner's rejections are other ones, or it has none."""
    source = write_parquet(tmp_path / "a.parquet", prompt=["a", "bad", None if has_null else "c"])
    job = make_job(source, tmp_path / "out")
    (loser, plan), (winner, _) = make_worker(job, Picky()), make_worker(job)
    [shard], store = plan.shards, Store(str(tmp_path / "out"))
    die_before_the_commit(loser, shard)
    [left] = names(store)
    assert store.names("data") == set()
    assert winner.make_shard(shard).rejected == ({"null_prompt": 1} if has_null else {})
    own = [named(store)] if has_null else []
    assert names(store) == sorted([left, *own])
    found = verify(store)
    assert (found.exit_code, found.problems) == (EXIT_RIGHT, [])
    assert found.rejected == ({"null_prompt": 1} if has_null else {})
    assert [r["reason"] for r in open_dataset(store).rejections()] == ["null_prompt"] * has_null
    [leftover] = sweep.find_leftovers(store, SOON)
    assert leftover.path == f"{identity.REJECTED_FOLDER}/{left}"
    store.remove_leftover(leftover)
    assert (names(store), verify(store).exit_code) == (own, EXIT_RIGHT)


def test_the_killed_attempt_again_is_itself(
    tmp_path: Path, write_parquet: Make, make_job: Make, make_worker: Make
) -> None:
    """The same rejections have the same name, and are as young as their last attempt."""
    source = write_parquet(tmp_path / "a.parquet", prompt=["a", None])
    worker, plan = make_worker(make_job(source, tmp_path / "out"))
    die_before_the_commit(worker, plan.shards[0])
    store = Store(str(tmp_path / "out"))
    [left] = names(store)
    os.utime(Path(store.root, identity.REJECTED_FOLDER, left), (0, 0))
    assert worker.make_shard(plan.shards[0]).outcome is Outcome.COMMITTED
    assert names(store) == [left] == [named(store)]
    assert store.modified_at(identity.REJECTED_FOLDER)[left] > time.time() - 60
    assert sweep.find_leftovers(store, SOON) == []


# The commit, on a disk and in S3

SHARD = Shard(17, InputFile("a.parquet", "/in/a.parquet", 1, "", 9, ""), 0, 9)


@pytest.fixture(params=["disk", "S3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "disk":
        yield Store(str(tmp_path))
        return
    yield Store("s3://bucket/sink", request.getfixturevalue("s3"))


def make_attempt(*places: int) -> tuple[RejectionsFile | None, io.BytesIO]:
    """The rejections and the object of an attempt that rejects some rows."""
    rejections = [Rejection(f"{i}", i, Reason.NOT_FINITE, "not finite") for i in places]
    rejected = None
    if rejections:
        rows = pa.array([{"prompt": f"prompt {i}"} for i in places])
        omitted = pa.array([[] for _ in places], OMITTED_TYPE)
        rejected = make_rejections_file(SHARD, rejections, RejectedRows(rows, omitted))
    schema = object_schema(
        COLUMNS.of_dataset(2, {}), {}, make_facts(SHARD, "f" * 64, rejections, rejected)
    )
    with Spool() as spool, written_object([], spool, schema=schema, extension="webp") as file:
        file.seek(0)
        return rejected, io.BytesIO(file.read())


def commit(store: Store, *places: int, overwrite: bool = False) -> Outcome:
    rejected, content = make_attempt(*places)
    return commit_shard(
        store, SHARD, content, rejected, max_bytes=10**6, overwrite=overwrite
    ).outcome


def name_of(*places: int) -> str:
    rejected, _ = make_attempt(*places)
    assert rejected
    return rejected.path.rpartition("/")[2]


def swept(store: Store, age_s: float = SOON) -> list[str]:
    return [leftover.path.rpartition("/")[2] for leftover in sweep.find_leftovers(store, age_s)]


def test_an_object_names_its_rejections(store: Store) -> None:
    assert commit(store, 3, 5) is Outcome.COMMITTED
    assert names(store) == [named(store, "00017")] == [name_of(3, 5)]
    raw = store.read(identity.rejected_path("00017", read_named_digest(store, "00017"))) or b""
    assert hashlib.sha256(raw).hexdigest() == read_named_digest(store, "00017")


def test_who_comes_late_adds_nothing(store: Store) -> None:
    commit(store, 3)
    assert commit(store, 4) is Outcome.LOST_TO_OTHER
    assert commit(store, 3) is Outcome.LOST_TO_SAME
    assert names(store) == [name_of(3)]


@pytest.mark.parametrize("after", [(), (3,), (3, 4)])
@pytest.mark.parametrize("before", [(), (3,)])
def test_overwriting_leaves_the_new_rejections_alone(
    store: Store, before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    commit(store, *before)
    assert commit(store, *after, overwrite=True) is Outcome.REPLACED
    assert names(store) == ([name_of(*after)] if after else [])
    assert swept(store) == []


def test_overwriting_what_is_damaged_leaves_its_rejections_to_sweep(store: Store) -> None:
    commit(store, 3)
    store.publish("data/00017.parquet", b"damaged", exclusive=False)
    assert swept(store) == []  # it may name them
    commit(store, 4, overwrite=True)
    assert swept(store) == [name_of(3)]


def test_rejections_that_another_replacement_removed_come_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two attempts replace one object, and what the slow one is about to name is the old one's."""
    commit(store, 3)
    publish, began = Store.publish, []

    def overtaken(self: Store, path: str, *rest: Any, **options: Any) -> bool:
        if path.startswith("data/") and not began:
            began.append(True)
            commit(store, 4, overwrite=True)
        return publish(self, path, *rest, **options)

    monkeypatch.setattr(Store, "publish", overtaken)
    commit(store, 3, overwrite=True)
    assert named(store, "00017") == name_of(3)
    assert name_of(3) in names(store)
    assert swept(store) == [name_of(4)]


def test_a_crash_while_overwriting_leaves_the_rest_to_sweep(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(store, 3)
    remove = Store.remove

    def dying(self: Store, path: str) -> None:
        if name_of(3) in path:
            raise Crash
        remove(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "remove", dying)
        with pytest.raises(Crash):
            commit(store, 4, overwrite=True)
    assert named(store, "00017") == name_of(4)
    assert names(store) == sorted([name_of(3), name_of(4)])
    assert swept(store) == [name_of(3)]


# What sweep removes


def test_sweep_removes_what_is_old_and_not_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, folder = Store(str(tmp_path)), tmp_path / identity.REJECTED_FOLDER
    commit(store, 3)
    stays = [name_of(3), "00017.parquet", "00018.parquet", "notes.txt", f"17-{'0' * 64}.parquet"]
    goes = [f"00017-{'a' * 64}.parquet", f"00018-{'b' * 64}.parquet"]
    young = f"00019-{'c' * 64}.parquet"
    for name in (*stays[1:], *goes, young):
        (folder / name).write_bytes(b"x")
    for name in (*stays, *goes):
        os.utime(folder / name, (0, time.time() - 3 * 3600))
    sweep.main([str(tmp_path), "--older-than", "2h", "--dry-run"])
    shown = capsys.readouterr().out
    assert "2 leftovers found" in shown
    assert f"rejected/{goes[0]}, 3.0 hours old" in shown
    assert names(store) == sorted([*stays, *goes, young])
    sweep.main([str(tmp_path), "--older-than", "2h"])
    assert names(store) == sorted([*stays, young])


def test_sweep_spares_what_was_published_again_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt publishes anew what an earlier one left, while sweep looks into the objects."""
    store, rejected = Store(str(tmp_path)), make_attempt(3)[0]
    assert rejected
    store.publish(rejected.path, rejected.content, exclusive=False)
    os.utime(tmp_path / rejected.path, (0, 0))

    def publish_again(store: Store, shard_id: str) -> str:
        store.publish(rejected.path, rejected.content, exclusive=False)
        return ""

    assert swept(store, 3600) == [name_of(3)]
    monkeypatch.setattr(sweep, "read_named_digest", publish_again)
    assert swept(store, 3600) == []


def test_sweep_works_in_s3(s3: S3Config, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store("s3://bucket/sink", s3)
    commit(store, 3)
    rejected, _ = make_attempt(4)
    assert rejected
    store.publish(rejected.path, rejected.content, exclusive=False)
    arguments = [store.root, "--endpoint", str(s3.endpoint)]
    sweep.main([*arguments, "--older-than", "1h"])
    assert names(store) == sorted([name_of(3), name_of(4)])
    time.sleep(1.1)  # S3 tells whole seconds
    sweep.main([*arguments, "--older-than", "0s"])
    assert f"file s3://bucket/sink/{rejected.path}" in capsys.readouterr().out
    assert names(store) == [name_of(3)]


def test_a_writer_in_s3_dies_at_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever it dies, what the object names is there, and another attempt ends well."""
    for number in range(12):
        client = MemoryS3()
        monkeypatch.setattr("ldm_batch.storage.s3.connect", lambda _, client=client: client)
        store = Store("s3://bucket/sink")
        client.script = deque(["ok"] * number + ["crash before"])
        try:
            commit(store, 3)
        except Crash:
            assert number < 3
        else:
            client.script.clear()
        commit(store, 4)
        winner = (4,) if number < 3 else (3,)
        assert named(store, "00017") == name_of(*winner)
        assert name_of(*winner) in names(store)
        assert swept(store) == [n for n in names(store) if n != name_of(*winner)]


# What verify says


def report(store: Store) -> ObjectReport:
    expected = Expected("f" * 64, 1, lambda *_: 0, planned_rows=None)
    return verify_object(store, SHARD, expected)


def test_verify_reads_what_the_object_names(store: Store) -> None:
    commit(store, *range(9))
    assert (report(store).problems, report(store).num_rows) == ([], 9)
    path = identity.rejected_path("00017", read_named_digest(store, "00017"))
    other, _ = make_attempt(*range(8))
    assert other
    store.publish(path, other.content, exclusive=False)
    told = "\n".join(report(store).problems)
    assert "its rejected rows is not the one that it names" in told
    assert "1 rows neither made nor rejected" in told
    store.remove(path)
    assert "the record of its rejected rows is missing" in "\n".join(report(store).problems)
    commit_shard(store, SHARD, make_attempt(*range(9))[1], None, max_bytes=10**6, overwrite=True)
    assert "the record of its rejected rows is missing" in "\n".join(report(store).problems)


@pytest.mark.parametrize("digest", ["../../../etc/passwd", "A" * 64, "0" * 63, 7, None, ["a"]])
def test_a_name_that_is_no_digest_is_damage(tmp_path: Path, digest: Any) -> None:
    store = Store(str(tmp_path))
    facts = make_facts(SHARD, "f" * 64, [Rejection("a", 0, Reason.NOT_FINITE, "")])
    schema = object_schema(COLUMNS.of_dataset(2, {}), {}, {**facts, "rejections": digest})
    with Spool() as spool, written_object([], spool, schema=schema, extension="webp") as file:
        store.publish("data/00017.parquet", file, exclusive=True)
    assert "data/00017.parquet: damaged" in "\n".join(report(store).problems)
    with pytest.raises(JobError, match=r"data/00017.parquet: damaged, or not an object of ours"):
        read_named_digest(store, "00017")
    (tmp_path / identity.REJECTED_FOLDER).mkdir(parents=True)
    (tmp_path / identity.REJECTED_FOLDER / f"00017-{'0' * 64}.parquet").write_bytes(b"x")
    assert swept(store) == []


def test_old_objects_have_old_names(tmp_path: Path) -> None:
    """Those of form 1: without a digest, and without rows."""
    store, rejections = Store(str(tmp_path)), [Rejection("a", 3, Reason.NULL_PROMPT, "null")]
    rejected = make_rejections_file(SHARD, rejections, None)
    assert (rejected.path, rejected.digest) == (identity.rejected_path("00017"), "")
    facts = make_facts(SHARD, "f" * 64, rejections, rejected)
    assert "rejections" not in facts
    schema = object_schema(COLUMNS.of_dataset(2, {}), {}, facts)
    with Spool() as spool, written_object([], spool, schema=schema, extension="webp") as file:
        commit_shard(store, SHARD, file, rejected, max_bytes=10**6, overwrite=False)
    assert report(store).rejected == {"null_prompt": 1}
    assert pq.read_table(io.BytesIO(rejected.content)).column_names == [
        *["key", "input_file", "input_row", "reason", "message"]
    ]
    assert swept(store) == []


def test_verify_finds_a_changed_bit(
    tmp_path: Path, write_parquet: Make, make_job: Make, make_worker: Make
) -> None:
    source = write_parquet(tmp_path / "a.parquet", prompt=["a", None])
    worker, plan = make_worker(make_job(source, tmp_path / "out"))
    worker.make_shard(plan.shards[0])
    [path] = (tmp_path / "out" / identity.REJECTED_FOLDER).glob("*")
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    found = verify(Store(str(tmp_path / "out")))
    assert found.exit_code == EXIT_WRONG
    assert "is not the one that it names" in found.problems[0]

"""The commit of a shard: once, whole, and with a receipt that its object can always give back."""

import dataclasses
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ldm_batch import identity
from ldm_batch.errors import JobError, ShardError, StorageError
from ldm_batch.generate.text_to_image import COLUMNS
from ldm_batch.records import (
    Failure,
    InputFile,
    Outcome,
    Reason,
    Receipt,
    Rejection,
    Shard,
)
from ldm_batch.storage import Store
from ldm_batch.write.commit import commit_shard, make_facts
from ldm_batch.write.parquet import object_schema, written_object
from ldm_batch.write.receipt import read_receipt, write_failure, write_receipt
from ldm_batch.write.rejections import make_rejections_file
from ldm_batch.write.spool import Spool

SHARD = Shard(17, InputFile("a.parquet", "/in/a.parquet", 1, "", 9, ""), 0, 9)
FINGERPRINT = "f" * 64
REJECTIONS = [
    Rejection("a", 3, Reason.NULL_PROMPT, "the prompt is null"),
    Rejection("b", 4, Reason.NULL_PROMPT, "the prompt is null"),
    Rejection("c", 5, Reason.EMPTY_PROMPT, "empty"),
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def commit(
    store: Store, content: bytes, *, overwrite: bool = False, rejected: bool = False
) -> tuple[Outcome, int, str]:
    return commit_shard(
        store,
        SHARD,
        io.BytesIO(content),
        make_rejections_file(SHARD, REJECTIONS, None) if rejected else None,
        max_bytes=1000,
        overwrite=overwrite,
    )


def empty_object(fingerprint: str = FINGERPRINT) -> bytes:
    facts = make_facts(SHARD, fingerprint, REJECTIONS)
    schema = object_schema(COLUMNS.of_dataset(2, {}), {}, facts)
    with Spool() as spool, written_object([], spool, schema=schema, extension="webp") as file:
        file.seek(0)
        return file.read()


def receipt(outcome: Outcome = Outcome.COMMITTED) -> Receipt:
    return Receipt(
        shard=17,
        outcome=outcome,
        num_rows=9,
        num_rows_with_images=6,
        num_images=12,
        rejected={"null_prompt": 2, "empty_prompt": 1},
        object_bytes=3,
        object_sha256="0" * 64,
        attempt="x",
        laps={"read_s": 0.5},
        notes=("a note",),
    )


def test_facts_are_enough_for_a_receipt() -> None:
    assert make_facts(SHARD, "f", REJECTIONS) == {
        "shard": "00017",
        "fingerprint": "f",
        "num_rows": 9,
        "num_rows_with_images": 6,
        "rejected": {"null_prompt": 2, "empty_prompt": 1},
    }


def test_the_first_to_commit_wins(store: Store) -> None:
    digest = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"
    assert commit(store, b"foo") == (Outcome.COMMITTED, 3, digest)
    assert commit(store, b"foo") == (Outcome.LOST_TO_SAME, 3, digest)
    outcome, size_bytes, other = commit(store, b"foobar")
    assert (outcome, size_bytes) == (Outcome.LOST_TO_OTHER, 6)
    assert other != digest
    assert store.read("data/00017.parquet") == b"foo"


def test_overwriting_replaces(store: Store) -> None:
    commit(store, b"foo")
    assert commit(store, b"bar", overwrite=True)[0] == Outcome.REPLACED
    assert store.read("data/00017.parquet") == b"bar"


def test_rejections_stand_beside_the_object(store: Store) -> None:
    commit(store, b"foo", rejected=True)
    rows = pq.read_table(io.BytesIO(store.read(identity.rejected_path("00017")) or b"")).to_pylist()
    assert [(row["key"], row["input_row"], row["reason"]) for row in rows] == [
        ("a", 3, "null_prompt"),
        ("b", 4, "null_prompt"),
        ("c", 5, "empty_prompt"),
    ]


def test_who_comes_late_leaves_the_winners_rejections(store: Store) -> None:
    commit(store, b"foo", rejected=True)
    late = [Rejection("z", 1, Reason.NOT_FINITE, "image 0, seed 1: not finite")]
    file = make_rejections_file(SHARD, late, None)
    commit_shard(store, SHARD, io.BytesIO(b"bar"), file, max_bytes=9, overwrite=False)
    rows = pq.read_table(io.BytesIO(store.read(identity.rejected_path("00017")) or b""))
    assert rows["key"].to_pylist() == ["a", "b", "c"]


def test_rejections_are_there_before_the_object(store: Store) -> None:
    """A sink that takes rejections and nothing else: the shard is not done."""
    Path(store.root, "data").write_bytes(b"in the way")
    with pytest.raises(StorageError, match=r"data/00017.parquet"):
        commit(store, b"foo", rejected=True)
    assert store.has(identity.rejected_path("00017"))


def test_an_object_past_its_limit_is_no_commit(store: Store) -> None:
    with pytest.raises(ShardError, match=r"shard 00017: its object has 1001 bytes, more than max_"):
        commit(store, b"x" * 1001, rejected=True)
    assert store.names("data") == store.names(identity.REJECTED_FOLDER) == set()


@pytest.mark.parametrize("outcome", [Outcome.COMMITTED, Outcome.REPLACED])
def test_a_receipt_comes_back(store: Store, outcome: Outcome) -> None:
    write_receipt(store, receipt(outcome), FINGERPRINT)
    assert read_receipt(store, 17, FINGERPRINT) == receipt(outcome)


@pytest.mark.parametrize("outcome", [Outcome.LOST_TO_SAME, Outcome.LOST_TO_OTHER])
def test_who_lost_leaves_the_winners_receipt(store: Store, outcome: Outcome) -> None:
    write_receipt(store, receipt(), FINGERPRINT)
    write_receipt(store, dataclasses.replace(receipt(outcome), num_images=99), FINGERPRINT)
    assert read_receipt(store, 17, FINGERPRINT) == receipt()


@pytest.mark.parametrize("outcome", [Outcome.LOST_TO_SAME, Outcome.LOST_TO_OTHER])
def test_who_lost_to_a_crashed_winner_writes_its_receipt(store: Store, outcome: Outcome) -> None:
    store.publish("data/00017.parquet", empty_object(), exclusive=True)
    write_receipt(store, receipt(outcome), FINGERPRINT)
    assert store.names(identity.RECEIPTS_FOLDER) == {"00017.json"}
    is_rebuilt = read_receipt(store, 17, FINGERPRINT).notes == ("rebuilt from the object",)
    assert is_rebuilt == (outcome is Outcome.LOST_TO_OTHER)


def test_a_commit_ends_a_failure(store: Store) -> None:
    write_failure(store, Failure(17, 3, "out of memory", "Traceback"))
    raw = store.read(identity.failure_path("00017"))
    assert json.loads(raw or b"") == dataclasses.asdict(
        Failure(17, 3, "out of memory", "Traceback")
    )
    write_receipt(store, receipt(), FINGERPRINT)
    assert not store.has(identity.failure_path("00017"))


DAMAGED = [None, b"", b"{", b"[]", b"\xff", b'{"shard": 17}', b'{"outcome": "won"}', b"null"]


@pytest.mark.parametrize("damaged", DAMAGED)
def test_a_missing_or_damaged_receipt_is_made_from_the_object(
    store: Store, damaged: bytes | None
) -> None:
    _, size_bytes, digest = commit_shard(
        store, SHARD, io.BytesIO(empty_object()), None, max_bytes=10**6, overwrite=False
    )
    if damaged is not None:
        store.publish(identity.receipt_path("00017"), damaged, exclusive=False)
    rebuilt = read_receipt(store, 17, FINGERPRINT)
    assert (rebuilt.num_rows, rebuilt.num_rows_with_images, rebuilt.num_images) == (9, 6, 0)
    assert rebuilt.rejected == {"null_prompt": 2, "empty_prompt": 1}
    assert (rebuilt.object_bytes, rebuilt.object_sha256) == (size_bytes, digest)
    assert (rebuilt.outcome, rebuilt.notes) == (Outcome.COMMITTED, ("rebuilt from the object",))


def foreign(**facts: object) -> bytes:
    schema = object_schema(
        COLUMNS.of_dataset(2, {}), {}, facts | {"shard": facts.get("shard", "00017")}
    )
    with Spool() as spool, written_object([], spool, schema=schema, extension="webp") as file:
        file.seek(0)
        return file.read()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PAR1",
        empty_object()[:-9],
        foreign(),
        foreign(num_rows=1, shard="00017"),
        empty_object("e" * 64),
    ],
    ids=["empty", "magic", "cut", "without counts", "with some counts", "of other settings"],
)
def test_an_object_that_is_not_ours_is_named(store: Store, content: bytes) -> None:
    store.publish("data/00017.parquet", content, exclusive=True)
    with pytest.raises(JobError, match=r"data/00017.parquet: not an object of this dataset"):
        read_receipt(store, 17, FINGERPRINT)


def test_an_object_under_another_name_is_refused(store: Store) -> None:
    store.publish("data/00018.parquet", empty_object(), exclusive=True)
    with pytest.raises(JobError, match=r"data/00018.parquet: not an object of this dataset"):
        read_receipt(store, 18, FINGERPRINT)

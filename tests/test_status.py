"""How far a dataset is, from what stands in the sink and nothing else."""

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ldm_batch import identity
from ldm_batch.commands import status
from ldm_batch.commands.status import Status, print_status, read_status
from ldm_batch.dataset import map_in_threads
from ldm_batch.errors import JobError
from ldm_batch.records import Failure
from ldm_batch.storage import Store
from ldm_batch.write.receipt import write_failure

Make = Callable[..., Any]


@pytest.fixture
def sink(tmp_path: Path, write_parquet: Make, make_job: Make, make_worker: Make) -> str:
    """Four planned shards of 2, 2, 2 and 1 rows: 0 and 2 are made, one row of 0 is rejected."""
    prompts = ["a", None, "c", "d", "e", "f", "g"]
    source = write_parquet(tmp_path / "in/a.parquet", prompt=prompts)
    worker, plan = make_worker(make_job(source, tmp_path / "out", rows_per_shard=2))
    for index in (0, 2):
        worker.make_shard(plan.shards[index])
    return str(tmp_path / "out")


def told(found: Status) -> str:
    out = io.StringIO()
    print_status(found, out)
    return out.getvalue()


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        status.main(arguments)
    return int(ended.value.code or 0)


def test_what_is_done_and_what_is_missing(sink: str) -> None:
    found = read_status(Store(sink))
    assert (found.num_shards, found.num_rows_planned, found.num_done) == (4, 7, 2)
    assert (found.missing, found.failed, found.stray) == ([1, 3], {}, [])
    assert (found.num_rows, found.num_images, found.rejected) == (4, 3, {"null_prompt": 1})
    assert found.num_bytes == sum(p.stat().st_size for p in Path(sink, "data").iterdir())


def test_failures_of_missing_shards_are_told_with_their_message(sink: str) -> None:
    store = Store(sink)
    write_failure(store, Failure(1, 3, "out of memory"))
    write_failure(store, Failure(2, 3, "made since by another run"))
    store.publish(identity.failure_path("00003"), b"{", exclusive=True)
    found = read_status(store)
    assert found.failed == {1: "out of memory", 3: "unknown (its record is damaged)"}
    assert found.missing == []


def test_names_that_no_shard_explains_are_told(sink: str) -> None:
    for name in ("00009.parquet", "00001.json", "000001.parquet", "notes.txt"):
        Path(sink, "data", name).write_bytes(b"x")
    found = read_status(Store(sink))
    assert found.stray == ["000001.parquet", "00001.json", "00009.parquet", "notes.txt"]
    assert (found.num_done, found.missing) == (2, [1, 3])


def test_receipts_that_are_gone_change_nothing(sink: str) -> None:
    store = Store(sink)
    before = read_status(store)
    for name in store.names(identity.RECEIPTS_FOLDER):
        store.remove(f"{identity.RECEIPTS_FOLDER}/{name}")
    assert read_status(store) == before


def test_a_status_in_words(sink: str) -> None:
    write_failure(Store(sink), Failure(1, 3, "out of memory"))
    assert told(read_status(Store(sink))).splitlines() == [
        "shards: 2 of 4 done, 1 failed, 1 missing",
        "rows: 4 of 7 read = 3 with images + 1 rejected",
        f"images: 3 ({read_status(Store(sink)).num_bytes / 1e6:,.1f} MB)",
        "  rejected: 1 null_prompt",
        "  failed: shard 00001: out of memory",
        "to make what is missing:",
        "  run",
    ]


def test_a_complete_dataset_asks_for_nothing(sink: str, make_job: Make, make_worker: Make) -> None:
    source = Path(sink).parent / "in/a.parquet"
    worker, plan = make_worker(make_job(source, sink, rows_per_shard=2))
    for index in (1, 3):
        worker.make_shard(plan.shards[index])
    assert "to make what is missing" not in told(read_status(Store(sink)))
    assert run(sink) == 0


def test_the_command(sink: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(sink) == 1
    assert capsys.readouterr().out == told(read_status(Store(sink)))
    assert run(sink, "--json") == 1
    assert json.loads(capsys.readouterr().out)["missing"] == [1, 3]


def test_no_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(JobError, match="no dataset here"):
        read_status(Store(str(tmp_path)))
    assert run(str(tmp_path)) == 2
    assert (
        capsys.readouterr().err == f"error: {tmp_path}: no dataset here (no .ldm_batch/plan.json)\n"
    )


def test_a_damaged_object_is_named(sink: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(sink, "data/00001.parquet").write_bytes(b"PAR1")
    assert run(sink) == 2
    assert (
        "data/00001.parquet: not an object of this dataset, or damaged" in capsys.readouterr().err
    )


def test_what_many_calls_return_never_stands_in_memory_together() -> None:
    taken: list[int] = []

    def values() -> Iterator[int]:
        for value in range(1000):
            taken.append(value)
            yield value

    results = map_in_threads(lambda value: value * value, values(), 2)
    assert next(results) == 0
    assert len(taken) < 20
    assert [*results] == [value * value for value in range(1, 1000)]


MEASURE = """
import sys
from ldm_batch.commands.status import read_status
from ldm_batch.storage import Store

def peak_kb():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])

store, before = Store(sys.argv[1]), peak_kb()
print(read_status(store).num_rows, peak_kb() - before)
"""


def test_receipts_of_many_shards_are_counted_in_little_memory(
    tmp_path: Path, write_parquet: Make, make_job: Make, make_worker: Make
) -> None:
    source = write_parquet(tmp_path / "in/a.parquet", prompt=["a"] * 2000)
    worker, plan = make_worker(make_job(source, tmp_path / "out", rows_per_shard=1))
    worker.make_shard(plan.shards[0])
    data, receipts = tmp_path / "out/data", tmp_path / "out/.ldm_batch/receipts"
    receipt = json.loads((receipts / "00000.json").read_text())
    receipt["pipeline"] |= {f"setting {number}": str(number) * 10 for number in range(500)}
    raw = json.dumps(receipt)
    for index in range(1, len(plan.shards)):
        (data / f"{index:05d}.parquet").touch()
        (receipts / f"{index:05d}.json").write_text(raw)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    num_rows, grown_kb = map(int, ended.stdout.split())
    assert num_rows == 2000
    assert grown_kb < 60_000

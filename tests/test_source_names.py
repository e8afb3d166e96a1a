"""What a source's names say: which files are read, what is told of the rest, columns of folders."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ldm_batch.errors import JobError
from ldm_batch.plan.own import refuse_own_sink
from ldm_batch.plan.stored import Plan, load_plan, save_plan
from ldm_batch.read.folders import common_folder_type, folder_values, is_whole
from ldm_batch.storage import Store, would_list

Make = Callable[..., Any]


@pytest.fixture
def write(tmp_path: Path, write_parquet: Make) -> Callable[..., None]:
    """`write("topic=cats/a.parquet", ...)` -> a file of one prompt below the source."""

    def write_one(*names: str, **columns: Any) -> None:
        for name in names:
            write_parquet(tmp_path / "in" / name, **{"prompt": [name], **columns})

    return write_one


@pytest.fixture
def job(tmp_path: Path, make_job: Make) -> Callable[..., Any]:
    """`job(source__carry=["topic"])` -> a job of the folder."""
    return lambda **changes: make_job(tmp_path / "in", tmp_path / "out", **changes)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


def names(plan: Plan) -> list[str]:
    return sorted({shard.file.name for shard in plan.shards})


def make_all(make_worker: Make, job: Any) -> list[dict[str, Any]]:
    """Make what is missing of a dataset; its rows, without images."""
    worker, plan = make_worker(job)
    done = {path.stem for path in Path(job.sink.uri, "data").glob("*.parquet")}
    for shard in plan.shards:
        if shard.id not in done:
            receipt = worker.make_shard(shard)
            assert receipt.num_rows == receipt.num_images + sum(receipt.rejected.values())
    found = [pq.read_table(path) for path in sorted(Path(job.sink.uri, "data").glob("*"))]
    assert len({str(table.schema.remove_metadata()) for table in found}) <= 1
    return [row for table in found for row in table.drop_columns("image").to_pylist()]


# What is not read


def test_what_is_not_read_is_counted_by_reason(
    tmp_path: Path, write: Make, job: Make, plan_job: Make
) -> None:
    write("a.PARQUET", "b.parq", "_date=2026-11-01/c.pq", "d.parquet")
    write("c.parquet.gzip", "part-00000", "part-00001", "_tmp/e.parquet", ".f.parquet")
    folder = tmp_path / "in"
    for name in ("_SUCCESS", "_metadata", ".d.parquet.crc", "README", "x.csv", "deep/y.csv"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    (folder / "z.parquet").touch()
    (tmp_path / "elsewhere").mkdir()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    plan = plan_job(job())
    assert names(plan) == ["_date=2026-11-01/c.pq", "a.PARQUET", "b.parq", "d.parquet"]
    inside = ", which is Parquet inside: name such files by a glob to read them"
    assert [note.replace(f"{folder}/", "") for note in plan.notes] == [
        "skipped linked: a link to a folder",
        "skipped 2 files: beside Parquet files (a folder is read as one kind; a glob names others, "
        "too), such as deep/y.csv",
        "skipped z.parquet: empty",
        "skipped 5 files: hidden (a name starts with '.' or '_'), such as .d.parquet.crc",
        f"skipped c.parquet.gzip: named *.gzip{inside}",
        f"skipped 3 files: named without an ending, such as part-00000{inside}",
        "columns used: prompt",
    ]
    glob = job(source__uri=f"{folder}/part-*")
    assert names(plan_job(glob)) == ["part-00000", "part-00001"]


def test_names_of_any_bytes_are_told_as_text(
    tmp_path: Path, write: Make, job: Make, plan_job: Make
) -> None:
    write("a.parquet")
    Path(str(tmp_path / "in") + "/\udcff.jpg").touch()
    Path(tmp_path, "in/line\nbreak.png").touch()
    assert [note.removeprefix(f"skipped '{tmp_path}/in/") for note in plan_job(job()).notes] == [
        "\\udcff.jpg': named *.jpg",
        "line\\nbreak.png': named *.png",
        "columns used: prompt",
    ]


def test_many_reasons_are_told_together(
    tmp_path: Path, write: Make, job: Make, plan_job: Make
) -> None:
    write("a.parquet")
    for number in range(40):
        (tmp_path / f"in/x.e{number:02d}").touch()
    notes = plan_job(job()).notes
    assert len(notes) == 10
    assert f"skipped 32 files: named otherwise, such as {tmp_path}/in/x.e08" in notes


def test_a_folder_of_other_files_says_what_it_holds(
    tmp_path: Path, job: Make, plan_job: Make
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.xlsx").touch()
    with pytest.raises(
        JobError, match=r"(?s)nothing found at .*in.*skipped .*a.xlsx: named \*.xlsx"
    ):
        plan_job(job())


@pytest.mark.parametrize(
    ("kind", "log"),
    [
        ("a Delta", "_delta_log/00000000000000000000.json"),
        ("an Iceberg", "metadata/00000-1.metadata.json"),
        ("a Hudi", ".hoodie/hoodie.properties"),
    ],
)
@pytest.mark.parametrize("above", ["", "table/"])
def test_a_table_whose_log_says_what_counts_is_refused(
    tmp_path: Path, write: Make, job: Make, plan_job: Make, kind: str, log: str, above: str
) -> None:
    """A dataset that began before is warned; files that are named count."""
    write(f"{above}a.parquet")
    save_plan(Store(str(tmp_path / "out")), plan_job(job()))
    path = tmp_path / "in" / above / log
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    [warning] = [note for note in plan_job(job()).notes if note.startswith("warning")]
    assert f"in/{above}".rstrip("/") + f" is {kind} table: its log says" in warning
    other = job(sink__uri=str(tmp_path / "other"))
    with pytest.raises(JobError, match=rf"is {kind} table: .* by a list or a glob"):
        plan_job(other)
    named = dataclasses.replace(other.source, uri=f"{tmp_path}/in/{above}*.parquet")
    assert names(plan_job(dataclasses.replace(other, source=named))) == ["a.parquet"]


@pytest.mark.parametrize(
    ("source", "sink"),
    [
        ("in", "in/_date=1/out"),
        ("in", "link/out"),
        ("file://{}/in", "in/out"),
        ("in/data", "in"),
        ("in/.ldm_batch/input/*", "in"),
        ("in/.ldm_batch", "in"),
        ("in/.ldm_batch/rejected", "in"),
        ("in/data/*.parquet", "in"),
        ("s3://bucket", "s3://bucket/out"),
        ("s3://bucket/i*/**", "s3://bucket/in/out"),
        ("s3a://bucket/in", "S3://bucket/in/out"),
    ],
)
def test_a_sink_in_its_source_is_refused_by_any_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, sink: str
) -> None:
    (tmp_path / "in/data").mkdir(parents=True)
    (tmp_path / "link").symlink_to("in")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(JobError, match="where the images of this job go"):
        refuse_own_sink([source.format(tmp_path)], Store(sink))


@pytest.mark.parametrize(
    ("source", "sink", "is_taken_in"),
    [
        ("GS://bucket/in/", "gcs://bucket/in/out", True),
        ("az://bucket/in", "abfs://bucket@account.dfs.core.windows.net/in/out", True),
        ("abfss://bucket@account.dfs.core.windows.net/i*/*", "AZ://bucket/in/out", True),
        ("gs://bucket/in", "s3://bucket/in/out", False),
        ("gs://bucket/in", "gcs://Bucket/in/out", False),
    ],
)
def test_a_cloud_is_one_by_all_its_names(source: str, sink: str, is_taken_in: bool) -> None:
    assert would_list(source, sink) is is_taken_in


# Columns of folders


def test_values_of_folders_are_read_as_others_write_them() -> None:
    assert folder_values("topic=cats%20%26%20dogs/x/width=064/a=b.parquet") == {
        "topic": "cats & dogs",
        "width": "064",
    }
    assert folder_values("a%3Db=1=2/n=__HIVE_DEFAULT_PARTITION__/e=/=x/f") == {
        "a=b": "1=2",
        "n": None,
        "e": "",
    }
    assert folder_values("a=1/b=2/a=3/c=%FF/=4/x.parquet") == {"b": "2"}


@pytest.mark.parametrize("value", ["0", "7", "-3", str(2**63 - 1), str(-(2**63))])
def test_whole_numbers_of_folders(value: str) -> None:
    assert is_whole(value)
    assert common_folder_type([value, None]) == "int64"


@pytest.mark.parametrize("value", ["064", "-0", "+1", "1.0", "", " 1", "1_0", str(2**63), "٣"])
def test_other_values_of_folders_are_text(value: str) -> None:
    assert not is_whole(value)
    assert common_folder_type(["1", value]) == "string"


def test_folders_are_columns_that_are_mapped_and_carried(
    tmp_path: Path, write: Make, job: Make, make_worker: Make
) -> None:
    write("topic=cats/width=16/a.parquet", "topic=7/width=24/b.parquet", seed=[5])
    write("topic=__HIVE_DEFAULT_PARTITION__/width=16/c.parquet")
    rows = make_all(make_worker, job(source__carry=["topic"]))
    assert [(row["topic"], row["width"], row["height"]) for row in rows] == [
        ("7", 24, 8),
        (None, 16, 8),
        ("cats", 16, 8),
    ]
    mapped = {"prompt": "topic", "width": None, "height": "width"}
    rows = make_all(make_worker, job(source__columns=mapped, sink__uri=str(tmp_path / "mapped")))
    assert [(row["prompt"], row["width"], row["height"]) for row in rows] == [
        ("7", 8, 24),
        ("cats", 8, 16),
    ]
    [rejected] = (tmp_path / "mapped/.ldm_batch/rejected").glob("*.parquet")
    [row] = pq.read_table(rejected).to_pylist()
    assert (row["reason"], row["row"]["topic"], row["row"]["width"]) == ("null_prompt", None, 16)


def test_types_of_folders_are_decided_once(
    write: Make, job: Make, store: Store, plan_job: Make
) -> None:
    """By all files that have rows: nightly input does not change them."""
    write("n=1/t=064/a.parquet", "n=-2/t=12/b.parquet")
    write("n=x/t=1/empty.parquet", prompt=pa.array([], pa.string()))
    nightly = job(source__carry=["n", "t"])
    save_plan(store, plan := plan_job(nightly))
    assert plan.types.folders == {"n": "int64", "t": "string"}
    assert plan.document["images"]["source"]["carry"] == {"n": "int64", "t": "string"}
    assert "columns used: prompt" in plan.notes
    write("n=3/t=5/c.parquet")
    save_plan(store, plan_job(nightly))
    write("n=03/t=5/d.parquet")
    with pytest.raises(JobError, match=r"the folder n=03 is no whole number, as which n was plan"):
        plan_job(nightly)
    stored = load_plan(store)
    assert stored is not None
    assert names(stored) == ["n=-2/t=12/b.parquet", "n=1/t=064/a.parquet", "n=3/t=5/c.parquet"]


def test_a_number_that_folders_do_not_hold_is_refused(
    write: Make, job: Make, plan_job: Make
) -> None:
    write("width=16/a.parquet", "width=wide/b.parquet")
    message = r"width=16/a.parquet: column 'width' has type string, width needs numbers"
    with pytest.raises(JobError, match=message):
        plan_job(job())
    assert plan_job(job(source__columns={"width": None})).num_rows == 2


def test_a_file_s_own_column_counts_and_that_is_told(
    write: Make, job: Make, make_worker: Make, plan_job: Make
) -> None:
    write("topic=cats/a.parquet", topic=["dogs"])
    write("topic=birds/b.parquet")
    told = [note for note in plan_job(job(source__carry=["topic"])).notes if "topic" in note]
    assert len(told) == 1
    assert "column 'topic': what 1 files hold themselves counts, not what their folders" in told[0]
    rows = make_all(make_worker, job(source__carry=["topic"]))
    assert [row["topic"] for row in rows] == ["birds", "dogs"]


def test_numbers_of_folders_are_text_where_a_file_has_text_of_its_own(
    write: Make, job: Make, make_worker: Make
) -> None:
    write("topic=1/a.parquet")
    write("topic=2/b.parquet", topic=["two"])
    rows = make_all(make_worker, job(source__carry=["topic"]))
    assert [row["topic"] for row in rows] == ["1", "two"]


def test_folders_name_no_rows(write: Make, job: Make, plan_job: Make, make_worker: Make) -> None:
    """Every row of a file would have one id, and all but the first be rejected."""
    write("id=5/a.parquet", prompt=["x", "y"])
    [told] = [
        note for note in plan_job(job()).notes if "source.columns.id" in note or "no id" in note
    ]
    assert "folders id=... give rows no id" in told
    keys = [row["key"] for row in make_all(make_worker, job())]
    assert keys == ["id=5/a.parquet#0", "id=5/a.parquet#1"]


def test_fields_that_only_some_files_have_are_told(
    write: Make, job: Make, plan_job: Make, tmp_path: Path
) -> None:
    write("a.parquet", "b.parquet")
    write("width=16/c.parquet", id=["c"])
    notes = plan_job(job()).notes
    assert "columns used: prompt, id, width (folders width=...)" in notes
    without = f"2 of 3 files have none, such as {tmp_path}/in/a.parquet; their rows take"
    assert f"width: {without} what the job gives" in notes
    assert f"id: {without} the key that is made for them" in notes


def test_a_column_of_folders_that_came_later_is_told(
    write: Make, job: Make, store: Store, plan_job: Make
) -> None:
    write("a.parquet")
    save_plan(store, plan_job(job()))
    write("width=16/b.parquet")
    write("size=16/c.parquet")
    told = [note for note in plan_job(job()).notes if "of this dataset" in note]
    assert len(told) == 1
    assert "folders width=... are no column of this dataset, which was planned without" in told[0]


@pytest.mark.parametrize("name", ["width=8/width=16", "width=%FF"])
def test_folders_that_cannot_be_columns_are_told(
    write: Make, job: Make, plan_job: Make, name: str
) -> None:
    write(f"{name}/a.parquet")
    plan = plan_job(job())
    assert plan.types.folders == {}
    [told] = [note for note in plan.notes if "are no columns, as two have one name" in note]
    assert told.endswith(f"in/{name}/a.parquet")


def test_folders_that_a_source_names_itself_are_told(
    tmp_path: Path, write: Make, job: Make, plan_job: Make
) -> None:
    write("topic=cats/width=16/a.parquet")
    plan = plan_job(job(source__uri=f"{tmp_path}/in/topic=cats"))
    assert plan.types.folders == {"width": "int64"}
    assert "columns used: prompt, width (folders width=...)" in plan.notes
    [told] = [note for note in plan.notes if "source.uri itself names are no columns" in note]
    assert "topic=cats;" in told


def test_prompts_that_are_folders_alone(
    tmp_path: Path, write_parquet: Make, job: Make, make_worker: Make
) -> None:
    """No column of the file itself is read; a file has as many rows as it says."""
    write_parquet(tmp_path / "in/prompt=a%2Fb/a.parquet", other=list(range(600)))
    rows = make_all(make_worker, job(rows_per_shard=350))
    assert [row["prompt"] for row in rows] == ["a/b"] * 600
    assert [row["input_row"] for row in rows] == list(range(600))


# Plans of earlier code


def forget_folders(sink: Path) -> None:
    """A stored plan as earlier code wrote it."""
    path = sink / ".ldm_batch/plan.json"
    document = json.loads(path.read_text())
    del document["carried"]
    path.write_text(json.dumps(document))


def test_a_plan_of_earlier_code_grows_as_it_began(
    tmp_path: Path, write: Make, job: Make, plan_job: Make, make_worker: Make
) -> None:
    write("a.parquet", tag=[1])
    store, carrying = Store(str(tmp_path / "out")), job(source__carry=["tag"])
    save_plan(store, before := plan_job(carrying))
    forget_folders(tmp_path / "out")
    write("B.PARQUET", "_x=1/c.parquet", "width=16/d.parquet", tag=[2])
    plan = plan_job(carrying)
    assert plan.fingerprint == before.fingerprint
    assert names(plan) == ["a.parquet", "width=16/d.parquet"]
    told = [note.replace(str(tmp_path), "") for note in plan.notes]
    assert told[0].startswith("skipped 2 files, such as /in/B.PARQUET: this dataset was planned by")
    assert any("folders that name columns (width) are none of this dataset" in n for n in told)
    rows = make_all(make_worker, carrying)
    assert [(row["width"], row["tag"]) for row in rows] == [(8, 1), (8, 2)]
    assert any("folders that name columns (width)" in note for note in plan_job(carrying).notes)
    assert "carried" not in json.loads((tmp_path / "out/.ldm_batch/plan.json").read_text())


def test_a_damaged_record_of_types_is_a_damaged_plan(
    tmp_path: Path, write: Make, job: Make, store: Store, plan_job: Make
) -> None:
    write("a.parquet")
    save_plan(store, plan_job(job()))
    path = tmp_path / "out/.ldm_batch/plan.json"
    document = json.loads(path.read_text())
    for damage in ("x", "AAAA", 7, ["x"]):
        path.write_text(json.dumps({**document, "carried": damage}))
        with pytest.raises(JobError, match=r"plan.json: damaged plan"):
            load_plan(store)
    sources: list[Any] = [
        {"folders": {"a": "pickle"}},
        {"folders": ["a"]},
        {"carry": {"a": 1}},
        "x",
    ]
    for images in [5, *({**document["images"], "source": source} for source in sources)]:
        for known in ({**document}, {k: v for k, v in document.items() if k != "carried"}):
            path.write_text(json.dumps({**known, "images": images}))
            with pytest.raises(JobError, match=r"plan.json: damaged plan"):
                load_plan(store)
    shutil.rmtree(tmp_path / "out")

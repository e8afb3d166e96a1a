"""Jobs whose input is text: converted at planning, stored with the plan, read from there."""

import dataclasses
import gzip
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_server import BUCKET

from ldm_batch.commands import sweep
from ldm_batch.commands.tradeoff import command as tradeoff
from ldm_batch.commands.verify import command as verify
from ldm_batch.config import JobConfig, S3Config, SinkConfig, SourceConfig
from ldm_batch.drive import run_job
from ldm_batch.drive.settle import Planning
from ldm_batch.errors import JobError
from ldm_batch.generate.choose import choose
from ldm_batch.identity import NEWEST_FORM
from ldm_batch.plan import inputs as inputs_module
from ldm_batch.plan.stored import load_plan
from ldm_batch.plan.stored_inputs import stored_path
from ldm_batch.storage import Store
from ldm_batch.storage.s3_client import connect

Make = Callable[..., Any]
PROMPTS = b"""\
prompt,seed,width,mood
a red circle,64,64,calm
b
"a blue
square",abc,64,calm
a green triangle,18446744073709551615,,
,1,64,
a grey hexagon,7,64.0,"x, y"
"""


@pytest.fixture(autouse=True)
def local_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where files are converted: a folder in which nothing stays."""
    folder = tmp_path / "local"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "prompts.csv").write_bytes(PROMPTS)
    return folder


@pytest.fixture
def job(tmp_path: Path, source: Path, make_job: Make) -> JobConfig:
    made: JobConfig = make_job(source, tmp_path / "out", rows_per_shard=2, source__carry=["mood"])
    return made


def do(job: JobConfig) -> str:
    out = io.StringIO()
    assert run_job(job, out=out) == 0
    return out.getvalue()


def sink_of(job: JobConfig) -> Path:
    return Path(job.sink.uri)


def stored_of(job: JobConfig, name: str = "prompts.csv") -> Path:
    return sink_of(job) / stored_path(name)


def images_of(job: JobConfig) -> dict[str, dict[str, Any]]:
    files = sorted(sink_of(job).glob("data/*.parquet"))
    return {row["key"]: row for file in files for row in pq.read_table(file).to_pylist()}


def rejected_of(job: JobConfig) -> list[dict[str, Any]]:
    files = sorted(sink_of(job).glob(".ldm_batch/rejected/*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def everything(job: JobConfig) -> dict[str, bytes]:
    """All that the sink holds, but for who worked on it and when."""
    sink = sink_of(job)
    paths = [path for path in sorted(sink.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(sink)): path.read_bytes()
        for path in paths
        if path.parent.name not in ("runs", "receipts")
    }


def planning(job: JobConfig) -> Planning:
    chosen = choose(job)
    store = Store(str(job.sink.uri))
    return Planning(chosen, store, models=chosen.find_models(), command="run")


def refuse_to_convert(*_: Any) -> None:
    raise AssertionError("converted once more")


# A run


def test_every_line_with_data_is_an_image_or_a_rejection(job: JobConfig) -> None:
    told = do(job)
    assert (
        "prompts.csv: 1 of 6 rows cannot be read and will be rejected; the first: line 3: " in told
    )
    images, rejected = images_of(job), rejected_of(job)
    assert [
        (row["input_file"], row["input_row"], row["prompt"], row["seed"], row["width"], row["mood"])
        for row in images.values()
    ] == [
        ("prompts.csv", 0, "a red circle", 64, 64, "calm"),
        ("prompts.csv", 3, "a green triangle", 2**64 - 1, 8, None),
        ("prompts.csv", 5, "a grey hexagon", 7, 64, "x, y"),
    ]
    assert [
        (row["key"], row["input_file"], row["input_row"], row["reason"], row["message"])
        for row in rejected
    ] == [
        ("prompts.csv#1", "prompts.csv", 1, "malformed_line",
         "line 3: has 1 cells, and there are 4 columns"),
        ("prompts.csv#2", "prompts.csv", 2, "wrong_type", "line 4: seed 'abc' is not a number"),
        ("prompts.csv#4", "prompts.csv", 4, "null_prompt", "line 7: the prompt is null"),
    ]  # fmt: skip
    assert [(row["row"]["ldm_batch_line"], row["row"]["ldm_batch_text"]) for row in rejected] == [
        (3, "b"),
        (4, None),
        (7, None),
    ]
    assert list(rejected[0]["row"]) == [
        "prompt", "seed", "width", "mood", "ldm_batch_line", "ldm_batch_text",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        verify.main([str(job.sink.uri), "--regenerate", "2"])
    assert ended.value.code == 0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.jsonl", b'{"prompt":"a cat","seed":5}\n{"prompt":"a dog","seed":6,"x":[1]}\n'),
        (
            "p.ndjson.gz",
            gzip.compress(b'{"prompt":"a cat","seed":"5"}\n{"prompt":"a dog","seed":6}', mtime=0),
        ),
        ("p.json", b'{"prompt":"a cat","seed":5}\n\n{"prompt":"a dog","seed":6.0}\n'),
        ("p.tsv", b"prompt\tseed\na cat\t5\na dog\t6\n"),
        ("p.csv.gz", gzip.compress(b"seed,prompt\r\n5,a cat\r\n6,a dog", mtime=0)),
        ("P.CSV", b"seed,prompt\n5,a cat\n6,a dog\n"),
    ],
)
def test_every_format_makes_the_same_images(
    tmp_path: Path, make_job: Make, name: str, content: bytes
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    job = make_job(path, tmp_path / "out")
    do(job)
    rows = [(row["key"], row["prompt"], row["seed"]) for row in images_of(job).values()]
    assert rows == [(f"{name}#0", "a cat", 5), (f"{name}#1", "a dog", 6)]


def test_a_text_file_of_prompts(tmp_path: Path, make_job: Make) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"a cat\n\na dog\n")
    job = make_job(path, tmp_path / "out")
    do(job)
    assert [row["prompt"] for row in images_of(job).values()] == ["a cat", "a dog"]


def test_types_columns_and_delimiters_of_a_job(tmp_path: Path, make_job: Make) -> None:
    path = tmp_path / "p.csv"
    path.write_text("caption;score;ok\nein Hund;1.5;true\neine Kuh;x;false\n", "latin-1")
    how = {
        "source__columns": {"prompt": "caption"},
        "source__carry": ["score", "ok"],
        "source__types": {"score": "float32", "ok": "bool"},
        "source__delimiter": ";",
        "source__encoding": "latin-1",
    }
    job = make_job(path, tmp_path / "out", **how)
    do(job)
    [image] = images_of(job).values()
    assert (image["prompt"], image["score"], image["ok"]) == ("ein Hund", 1.5, True)
    [rejected] = rejected_of(job)
    assert rejected["message"] == "line 3: score 'x' is no float32 (source.types)"
    other = make_job(path, tmp_path / "out", **how | {"source__types": {"score": "float64"}})
    with pytest.raises(JobError, match=r"source\.types"):
        do(other)


def test_an_object_is_as_large_as_the_sizes_that_stand_in_text(
    tmp_path: Path, make_job: Make
) -> None:
    path = tmp_path / "p.csv"
    path.write_text("prompt,width,height\n" + "a,512,512\n" * 40)
    job = make_job(path, tmp_path / "out", rows_per_shard=40, max_object_bytes=8 * 2**20)
    plan = planning(job).make(None)
    assert len(plan.shards) > 3
    assert sum(shard.num_rows for shard in plan.shards) == 40


def test_a_folder_of_several_kinds_is_read_as_one(
    source: Path, job: JobConfig, write_parquet: Make
) -> None:
    (source / "README.txt").write_text("not a prompt")
    (source / "more.jsonl").write_text('{"prompt":"a cat","mood":null}\n')
    assert "README.txt: beside CSV and JSON lines files (a folder is read as one kind" in do(job)
    assert "more.jsonl#0" in images_of(job)


def test_a_dataset_grows_by_the_kinds_that_it_has_and_by_the_first(
    source: Path, job: JobConfig, write_parquet: Make
) -> None:
    do(job)
    (source / "README.txt").write_text("not a prompt")
    write_parquet(source / "x.parquet", prompt=["p"], mood=["m"])
    told = do(job)
    assert "README.txt: beside Parquet files (a folder is read as one kind" in told
    assert "prompts.csv" not in told
    (source / "night.csv").write_bytes(b"prompt,mood\na new one,fresh\n")
    assert "night.csv" not in do(job)
    assert {"prompts.csv#0", "x.parquet#0", "night.csv#0"} <= images_of(job).keys()


def test_what_another_of_the_places_names_is_not_left(
    source: Path, job: JobConfig, write_parquet: Make
) -> None:
    write_parquet(source / "x.parquet", prompt=["p"], mood=["m"])
    (source / "README.txt").write_text("not a prompt")
    both = dataclasses.replace(job.source, uri=[str(source), f"{source}/*.csv", str(source)])
    told = do(dataclasses.replace(job, source=both))
    assert "README.txt: beside Parquet" in told
    assert "prompts.csv: beside" not in told
    assert {"prompts.csv#0", "x.parquet#0"} <= images_of(job).keys()


def test_a_folder_of_parquet_grows_by_parquet(
    tmp_path: Path, make_job: Make, write_parquet: Make
) -> None:
    write_parquet(tmp_path / "more" / "a.parquet", prompt=["a"])
    job = make_job(tmp_path / "more", tmp_path / "out")
    do(job)
    (tmp_path / "more" / "index.csv").write_bytes(b"prompt\nno prompt of ours\n")
    assert "index.csv: beside Parquet files" in do(job)
    assert len(images_of(job)) == 1


def test_columns_that_are_called_as_ours_are_those_of_their_file(
    tmp_path: Path, job: JobConfig, make_job: Make, write_parquet: Make
) -> None:
    """What others make of a converted file has no word of ours left on what its columns are."""
    do(job)
    made = pq.read_table(stored_of(job)).replace_schema_metadata(None).to_pydict()
    path = write_parquet(tmp_path / "copy" / "a.parquet", **made)
    names = ["ldm_batch_line", "ldm_batch_reason", "ldm_batch_message"]
    unread = {"seed": None, "width": None}
    other = make_job(path, tmp_path / "o", source__carry=names, source__columns=unread)
    do(dataclasses.replace(other, max_rejected_fraction=1.0))
    assert [row["ldm_batch_line"] for row in images_of(other).values()] == [2, 4, 6, 8]
    rejected = rejected_of(other)
    assert [row["reason"] for row in rejected] == ["null_prompt"] * 2
    assert [row["message"] for row in rejected] == ["the prompt is null"] * 2
    assert [row["row"]["ldm_batch_reason"] for row in rejected] == ["malformed_line", None]


@pytest.mark.parametrize(
    ("says", "columns"),
    [
        ({"largest": [1]}, {}),
        ({"largest": "width"}, {}),
        ({"largest": {"width": 10**30}}, {}),
        ({}, {"ldm_batch_reason": [[1], [2]]}),
        ({}, {"ldm_batch_line": ["a", "b"], "ldm_batch_message": [[1], [2]]}),
        ({}, {"ldm_batch_reason": [None, "bogus"], "ldm_batch_message": [None, "x" * 10**6]}),
    ],
)
def test_what_a_file_says_of_its_origin_is_not_believed_further_than_it_goes(
    tmp_path: Path, make_job: Make, says: dict[str, Any], columns: dict[str, Any]
) -> None:
    table = pa.table(
        {
            "prompt": ["a", "b"],
            "width": [64, 64],
            "ldm_batch_line": [1, 2],
            "ldm_batch_reason": pa.nulls(2, pa.string()),
            "ldm_batch_message": pa.nulls(2, pa.string()),
            "ldm_batch_text": pa.nulls(2, pa.string()),
            **columns,
        },
        metadata={"ldm_batch_text": json.dumps(says)},
    )
    path = tmp_path / "forged.parquet"
    pq.write_table(table, path)
    job = make_job(path, tmp_path / "o", max_rejected_fraction=1.0)
    do(job)
    rejected = rejected_of(job)
    assert len(images_of(job)) + len(rejected) == 2
    assert all(len(row["message"]) < 5000 for row in rejected)


def test_what_a_job_made_of_its_text_is_no_input_of_it(job: JobConfig) -> None:
    do(job)
    again = dataclasses.replace(
        job, source=dataclasses.replace(job.source, uri=str(sink_of(job) / ".ldm_batch" / "input"))
    )
    with pytest.raises(JobError, match="feed on what it makes"):
        do(again)


def test_what_a_row_of_text_has_out_of_range_is_told_with_what_to_do(
    job: JobConfig, source: Path
) -> None:
    (source / "prompts.csv").write_bytes(b"prompt,mood,width\na,b,64\n" + b"a,b,999999\n" * 250)
    with pytest.raises(JobError) as error:
        do(dataclasses.replace(job, max_rejected_fraction=0.1))
    assert "line 3: width 999999 is not between 8 and 4096 (source.columns.width=null" in str(
        error.value
    )


def test_a_type_that_text_has_not_is_refused_with_what_to_do(
    job: JobConfig, source: Path, write_parquet: Make
) -> None:
    write_parquet(source / "x.parquet", prompt=["p"], mood=[1.5])
    many = dataclasses.replace(job.source, uri=f"{source}/*")
    with pytest.raises(JobError, match=r"x.parquet: .*'mood' has type double.*by source\.types"):
        do(dataclasses.replace(job, source=many))


def test_settings_of_text_are_told_where_no_input_is(
    tmp_path: Path, make_job: Make, write_parquet: Make
) -> None:
    path = write_parquet(tmp_path / "a.parquet", prompt=["a"])
    told = do(make_job(path, tmp_path / "out", source__delimiter=";"))
    assert "source.delimiter: ignored, no input is text" in told


# Mistakes


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"a red circle\na blue one\n", "its first line is taken for the names of its columns"),
        (b"a red circle\n", "no rows; its first line is taken for the names of its columns"),
        (b"prompt,prompt\na,b\n", "line 1 names two columns 'prompt'; rename one of them"),
        ("prompt\na\n".encode("utf-16"), "set source.encoding=utf-16"),
    ],
)
def test_a_refused_job_stores_nothing(
    tmp_path: Path, make_job: Make, content: bytes, why: str
) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes(content)
    with pytest.raises(JobError) as refused:
        do(make_job(path, tmp_path / "out"))
    assert f"{path}: " in str(refused.value)
    assert why in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_stores_nothing(job: JobConfig) -> None:
    assert "1 files, 6 rows, 3 shards" in do(dataclasses.replace(job, dry_run=True))
    assert not sink_of(job).exists()


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("encoding", "utf8", "source.encoding: unknown value 'utf8'; did you mean 'utf-8'?"),
        ("delimiter", ";;", "source.delimiter: ';;' is not one character"),
        ("types", {"a": "int"}, "source.types.a: unknown type 'int'"),
    ],
)
def test_settings_that_cannot_be(
    tmp_path: Path, make_job: Make, field: str, value: Any, why: str
) -> None:
    with pytest.raises(JobError) as refused:
        make_job(tmp_path / "p.csv", tmp_path / "out", **{f"source__{field}": value})
    assert why in str(refused.value)


def test_no_room_to_convert_is_said(job: JobConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(inputs_module, "convert", full)
    with pytest.raises(JobError, match=r"prompts.csv: cannot be converted in .*No space.*TMPDIR"):
        do(job)


# Again


def test_what_is_planned_is_not_converted_again(
    job: JobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    do(job)
    before = everything(job)
    monkeypatch.setattr(inputs_module, "convert", refuse_to_convert)
    do(job)
    (sink_of(job) / "data" / "00001.parquet").unlink()
    do(job)
    assert everything(job) == before


@pytest.mark.parametrize("where", ["file", "folder"])
def test_shards_are_made_without_the_file(job: JobConfig, source: Path, where: str) -> None:
    path = source / "prompts.csv"
    if where == "file":
        job = dataclasses.replace(job, source=dataclasses.replace(job.source, uri=str(path)))
    do(job)
    before = everything(job)
    path.unlink()
    (sink_of(job) / "data" / "00001.parquet").unlink()
    do(job)
    assert everything(job) == before


def test_a_file_that_changed_is_refused_and_one_that_was_touched_is_not(
    job: JobConfig, source: Path
) -> None:
    do(job)
    path = source / "prompts.csv"
    os.utime(path, (1, 1))
    do(job)
    path.write_bytes(PROMPTS.replace(b"red", b"tan"))
    with pytest.raises(JobError, match=r"changed after it was planned \(its bytes differ\)"):
        do(job)
    path.write_bytes(PROMPTS + b"more,1,64,\n")
    with pytest.raises(JobError, match=r"changed after it was planned \(\d+ -> \d+ bytes\)"):
        do(job)
    path.write_bytes(PROMPTS)
    path.rename(source / "renamed.csv")
    with pytest.raises(JobError, match=r"looks like the planned file 'prompts.csv'"):
        do(job)


def test_new_files_are_added(job: JobConfig, source: Path) -> None:
    do(job)
    before = everything(job)
    (source / "night.csv").write_bytes(b"prompt,mood\na new one,fresh\n")
    assert "new input: 1 shards appended to the plan" in do(job)
    after = everything(job)
    assert after.items() >= before.items()
    assert {path for path in after.keys() - before.keys() if "rejected" not in path} == {
        ".ldm_batch/input/night.csv.parquet",
        ".ldm_batch/plan/00001.parquet",
        "data/00003.parquet",
    }
    assert images_of(job)["night.csv#0"]["mood"] == "fresh"


def test_what_is_gone_from_the_sink_is_made_again(job: JobConfig, source: Path) -> None:
    do(job)
    before = everything(job)
    stored_of(job).unlink()
    (sink_of(job) / "data" / "00000.parquet").unlink()
    do(job)
    assert everything(job) == before
    stored_of(job).unlink()
    (sink_of(job) / "data" / "00000.parquet").unlink()
    (source / "prompts.csv").unlink()
    (source / "other.csv").write_bytes(b"prompt,mood\na,b\n")
    with pytest.raises(JobError, match=r"planned input is gone: prompts.csv"):
        do(job)


def test_another_plan_takes_its_place_whole(job: JobConfig, source: Path) -> None:
    planning(job).begin({}, print)
    first = stored_of(job).read_bytes()
    (source / "prompts.csv").write_bytes(b"prompt,mood\na,b\n")
    do(dataclasses.replace(job, plan_again=True))
    assert stored_of(job).read_bytes() != first
    assert list(images_of(job)) == ["prompts.csv#0"]


def test_sweep_leaves_what_a_plan_names(job: JobConfig, capsys: pytest.CaptureFixture[str]) -> None:
    do(job)
    before = everything(job)
    shutil.copy(stored_of(job), stored_of(job, "left.csv"))
    sweep.main([str(job.sink.uri), "--older-than", "1h"])
    assert "0 leftovers removed" in capsys.readouterr().out
    sweep.main([str(job.sink.uri), "--older-than", "0s"])
    assert everything(job) == before
    assert "1 leftovers removed" in capsys.readouterr().out


# Several drivers


def test_of_two_drivers_both_go_on_with_one_file(job: JobConfig) -> None:
    one, other = planning(job), planning(job)
    works = one.look(), other.look()
    assert len(works[0].todo) == len(works[1].todo) == 3
    begun = one.begin({}, print), other.begin({}, print)
    assert begun[0].plan.shards == begun[1].plan.shards
    assert os.listdir(sink_of(job) / ".ldm_batch" / "input") == ["prompts.csv.parquet"]


def other_bytes(job: JobConfig) -> None:
    """Put in the place of what is stored the same rows as another version would write them."""
    file = pq.ParquetFile(stored_of(job))
    table, schema = file.read(), file.schema_arrow
    stored_of(job).unlink()
    pq.write_table(table.cast(schema), stored_of(job), compression="snappy", row_group_size=4)


def test_what_another_version_made_of_the_same_file_is_taken(job: JobConfig) -> None:
    first = planning(job)
    first.begin({}, print)
    other_bytes(job)
    kept = stored_of(job).read_bytes()
    for path in (sink_of(job) / ".ldm_batch").rglob("*"):
        if path.is_file() and path != stored_of(job):
            path.unlink()
    do(job)
    assert stored_of(job).read_bytes() == kept
    assert len(images_of(job)) == 3
    plan = load_plan(Store(str(job.sink.uri)))
    assert plan is not None
    stored = plan.shards[0].file.stored
    assert stored is not None
    assert stored.size_bytes == len(kept)


def test_what_a_driver_left_that_died_before_its_plan_is_replaced(
    job: JobConfig, source: Path
) -> None:
    first = planning(job)
    first.begin({}, print)
    for path in (sink_of(job) / ".ldm_batch").rglob("*"):
        if path.is_file() and path != stored_of(job):
            path.unlink()
    (source / "prompts.csv").write_bytes(b"prompt,mood\na,b\n")
    do(job)
    assert list(images_of(job)) == ["prompts.csv#0"]


def test_a_driver_that_loses_takes_back_what_it_stored(
    tmp_path: Path, job: JobConfig, write_parquet: Make
) -> None:
    path = write_parquet(tmp_path / "other.parquet", prompt=["p"], mood=["m"])
    loser = planning(job)
    loser.look()
    winner = dataclasses.replace(job, seed=1, source=dataclasses.replace(job.source, uri=path))
    do(winner)
    with pytest.raises(JobError, match="seed"):
        loser.begin({}, print)
    loser.close()
    assert not stored_of(job).exists()


# Places


def test_names_are_safe_in_the_sink() -> None:
    assert stored_path("a b.csv") == ".ldm_batch/input/a b.csv.parquet"
    assert stored_path("../../x/ä.csv") == ".ldm_batch/input/..%2F..%2Fx%2Fä.csv.parquet"
    long = [stored_path("d/" * 200 + name) for name in ("a.csv", "b.csv")]
    assert all(len(path.encode()) < 255 for path in long)
    assert long[0] != long[1]


def test_from_s3_to_s3(s3: S3Config, make_job: Make) -> None:
    put = connect(s3).put_object
    put(Bucket=BUCKET, Key="in/d/50%.csv", Body=b"prompt\nx\n")
    put(Bucket=BUCKET, Key="in/p.jsonl.gz", Body=gzip.compress(b'{"prompt":"y"}\n[]\n', mtime=0))
    how = {"source__s3": s3, "sink__s3": s3}
    job = make_job(f"s3://{BUCKET}/in", f"s3://{BUCKET}/out", **how)
    do(job)
    store = Store(f"s3://{BUCKET}/out", s3)
    assert store.names(".ldm_batch/input") == {"d%2F50%25.csv.parquet", "p.jsonl.gz.parquet"}
    connect(s3).delete_object(Bucket=BUCKET, Key="in/p.jsonl.gz")
    store.remove("data/00001.parquet")
    do(job)
    rows = [pq.read_table(pa.BufferReader(store.read(f"data/0000{i}.parquet"))) for i in range(2)]
    assert [row["prompt"].to_pylist() for row in rows] == [["x"], ["y"]]


def test_the_trade_off_is_measured_on_prompts_in_text(job: JobConfig) -> None:
    sample = JobConfig(source=SourceConfig(uri=job.source.uri), sink=SinkConfig(uri="nowhere"))
    sample = dataclasses.replace(sample, model=job.model)
    rows = tradeoff.sample_rows(sample, NEWEST_FORM, 10)
    assert [row.inputs["prompt"] for row in rows] == ["a red circle", "a grey hexagon"]


def test_a_plan_of_parquet_alone_says_nothing_of_text(
    tmp_path: Path, make_job: Make, write_parquet: Make
) -> None:
    path = write_parquet(tmp_path / "a.parquet", prompt=["a"])
    do(make_job(path, tmp_path / "out"))
    names = pq.read_schema(tmp_path / "out/.ldm_batch/plan/00000.parquet").names
    assert "stored_path" not in names
    images = json.loads((tmp_path / "out/.ldm_batch/plan.json").read_text())["images"]
    assert not {"types", "encoding", "delimiter"} & images["source"].keys()

"""What is carried comes out as it went in, by everybody's readers, or is refused by name."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import carried_values
import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from carried_values import CONVERTED, EXPECTED, INPUT, UNCHANGED, seen

from ldm_batch.errors import JobError
from ldm_batch.plan.stored import save_plan
from ldm_batch.read.carried import NotCarried, can_carry, carried_cells, common_type, settled_type
from ldm_batch.storage import Store

Make = Callable[..., Any]
PROMPTS = ["a", "b", "c"]
DATASETS = """
import sys
import numpy as np
from carried_values import EXPECTED, seen
from datasets import load_dataset

def assert_same(table):
    assert set(EXPECTED) <= set(table.column_names)
    for name, wanted in EXPECTED.items():
        assert seen(table[name].cast(wanted.type)) == seen(wanted), name

data = load_dataset(sys.argv[1])["train"]
assert data.num_rows == 3 and data[0]["image"].size == (8, 8)
assert_same(data.with_format("arrow")[:])
stream = load_dataset(sys.argv[1], streaming=True)["train"]
[table] = stream.with_format("arrow").iter(batch_size=3)
assert_same(table)
assert [row["uuid"] for row in stream] == EXPECTED["uuid"].to_pylist()
numbers = ["int8", "int64", "bool", "float16", "float32", "float64", "list", "struct", "text"]
first = data.select([0]).with_format("torch", columns=["image", *numbers])[0]
assert str(first["image"].dtype) == "torch.uint8" and list(first["image"].shape) == [3, 8, 8]
assert (first["int8"].item(), first["int64"].item()) == (127, 2**63 - 1)
assert (first["float64"].item() > 0, first["text"]) in [(True, ""), (False, "")]
assert str(first["float32"].item()) == "-0.0" and first["struct"]["x, y"].tolist() == [1]
print("same")
"""
DUCKDB_HAS_NOT = {"decimal256", "timestamp[ns, tz=Europe/Berlin]", "struct", "deep"}
"""More than 38 digits are a double to it; moments in a zone count microseconds."""


@pytest.fixture(scope="module")
def sink(
    tmp_path_factory: pytest.TempPathFactory, write_parquet: Make, make_job: Make, make_worker: Make
) -> Path:
    """A dataset of one shard that carries a column of every type."""
    folder = tmp_path_factory.mktemp("carried")
    source = write_parquet(folder / "a.parquet", prompt=PROMPTS, **INPUT)
    worker, plan = make_worker(make_job(source, folder / "out", source__carry=list(INPUT)))
    [receipt] = [worker.make_shard(shard) for shard in plan.shards]
    assert (receipt.num_rows, receipt.num_images) == (3, 3)
    return folder / "out"


@pytest.fixture(scope="module")
def made(sink: Path) -> Path:
    """Its object."""
    return sink / "data/00000.parquet"


def test_every_value_comes_out_as_it_went_in(made: Path) -> None:
    table = pq.read_table(made)
    for name, wanted in EXPECTED.items():
        assert table.schema.field(name).type == wanted.type
        assert (name, seen(table[name])) == (name, seen(wanted))
    table = pads.dataset(made.parent).to_table(columns=list(EXPECTED))
    assert {name: seen(table[name]) for name in EXPECTED} == {
        name: seen(wanted) for name, wanted in EXPECTED.items()
    }


def test_datasets_reads_them_loaded_streamed_and_as_tensors(
    sink: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path(carried_values.__file__).parent))
    command = [sys.executable, "-c", DATASETS, str(sink)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.stdout == "same\n", ended.stderr


def test_polars_reads_them(made: Path) -> None:
    """But for decimals of more digits than it has."""
    names = [name for name in EXPECTED if name != "decimal256"]
    table = pl.read_parquet(made, columns=names).to_arrow()
    for name in names:
        assert (name, seen(table[name].cast(EXPECTED[name].type))) == (name, seen(EXPECTED[name]))


def test_pandas_reads_them(made: Path) -> None:
    frame = pd.read_parquet(made, columns=list(EXPECTED), dtype_backend="pyarrow")
    for name, wanted in EXPECTED.items():
        cells = pa.array(frame[name].array).cast(wanted.type)
        assert (name, seen(cells)) == (name, seen(wanted))


def test_duckdb_reads_them(made: Path) -> None:
    names = [name for name in EXPECTED if name not in DUCKDB_HAS_NOT]
    columns = ", ".join(f'"{name}"' for name in names)
    table = duckdb.sql(f"select {columns} from read_parquet('{made}')").to_arrow_table()
    for name in names:
        column, wanted = table[name], EXPECTED[name]
        if column.type != wanted.type and name != "nulls":
            column = column.cast(wanted.type)
        assert (name, seen(column)) == (name, seen(wanted))


@pytest.mark.parametrize("unit", ["ms", "us"])
def test_moments_of_years_that_python_has_not_come_out(
    tmp_path: Path, write_parquet: Make, make_job: Make, make_worker: Make, unit: str
) -> None:
    moments = [2**63 - 1, -(2**63), 10**18]
    tags = {"tag": pa.array(moments, pa.timestamp(unit)), "tags": pa.array([[m] for m in moments])}
    source = write_parquet(tmp_path / "a.parquet", prompt=PROMPTS, **tags)
    worker, plan = make_worker(make_job(source, tmp_path / "out", source__carry=[*tags]))
    worker.make_shard(plan.shards[0])
    table = pq.read_table(tmp_path / "out/data/00000.parquet")
    assert table["tag"].cast(pa.int64()).to_pylist() == moments
    assert table["tags"].to_pylist() == [[moment] for moment in moments]


def test_what_is_made_of_a_dataset_carries_its_columns(
    tmp_path: Path, write_parquet: Make, make_job: Make, make_worker: Make, made: Path
) -> None:
    """What comes out goes in again, unchanged."""
    job = make_job(made, tmp_path / "out", source__carry=list(INPUT))
    worker, plan = make_worker(job)
    worker.make_shard(plan.shards[0])
    table = pq.read_table(tmp_path / "out/data/00000.parquet")
    assert {name: seen(table[name]) for name in EXPECTED} == {
        name: seen(wanted) for name, wanted in EXPECTED.items()
    }


# What is refused


REFUSED = {
    "list_view": pa.array([[1], None], pa.list_view(pa.int64())),
    "tensor": pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.int32(), [2]), pa.array([[1, 2], None], pa.list_(pa.int32(), 2))
    ),
    "uuids": pa.StructArray.from_arrays(
        [pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16, None], pa.binary(16)))],
        ["a"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_types_that_no_reader_has_are_refused_by_name(
    tmp_path: Path, write_parquet: Make, make_job: Make, plan_job: Make, name: str
) -> None:
    source = write_parquet(tmp_path / "a.parquet", prompt=["a", "b"], tag=REFUSED[name])
    message = r"a.parquet: carried column 'tag' has type .*, which .*; write it as .*source.carry"
    with pytest.raises(JobError, match=message):
        plan_job(make_job(source, tmp_path / "out", source__carry=["tag"]))


def test_old_time_stamps_are_refused_as_they_would_be_others(
    tmp_path: Path, make_job: Make, plan_job: Make
) -> None:
    """INT96 of the year 9999 reads as one of 1815."""
    moments = pa.array([253370764800000000], pa.timestamp("us"))
    for number, column in enumerate([moments, pa.StructArray.from_arrays([moments], ["at"])]):
        path, table = tmp_path / f"{number}.parquet", pa.table({"prompt": ["a"], "at": column})
        pq.write_table(table, path, use_deprecated_int96_timestamps=True)
        with pytest.raises(JobError, match=r"carried column 'at' .* INT96, .* write it as TIMEST"):
            plan_job(make_job(path, tmp_path / "out", source__carry=["at"]))
        assert plan_job(make_job(path, tmp_path / "out")).num_rows == 1


def test_one_type_is_found_for_all_files(
    tmp_path: Path, write_parquet: Make, make_job: Make, make_worker: Make
) -> None:
    """Whichever sorts first, and whatever a file without rows says."""
    kinds = [pa.large_string(), pa.null(), pa.string(), pa.string_view()]
    sizes = [pa.int8(), pa.uint16(), pa.int32(), pa.uint8()]
    for number, (kind, size) in enumerate(zip(kinds, sizes, strict=True)):
        values = {"tag": pa.array([None], kind), "size": pa.array([number], size)}
        write_parquet(tmp_path / f"in/{number}.parquet", prompt=["a"], **values)
    shared = pa.array(["x"]).dictionary_encode()
    write_parquet(tmp_path / "in/4.parquet", prompt=["b"], tag=shared, size=[2**40])
    write_parquet(tmp_path / "in/0a.parquet", prompt=pa.array([], pa.string()), tag=[], size=[])
    write_parquet(tmp_path / "in/00.parquet", nothing=pa.array([], pa.int8()))
    job = make_job(tmp_path / "in", tmp_path / "out", source__carry=["tag", "size"])
    worker, plan = make_worker(job)
    assert plan.types.carried == {"tag": pa.string(), "size": pa.int64()}
    for shard in plan.shards:
        worker.make_shard(shard)
    table = pads.dataset(tmp_path / "out/data").to_table(columns=["tag", "size"])
    assert table.to_pydict() == {"tag": [None] * 4 + ["x"], "size": [0, 1, 2, 3, 2**40]}
    schemas = [pq.read_schema(path) for path in (tmp_path / "out/data").iterdir()]
    assert len({str(schema.remove_metadata()) for schema in schemas}) == 1


@pytest.fixture
def nightly(tmp_path: Path, write_parquet: Make, make_job: Make, plan_job: Make) -> Make:
    """`nightly(array)` plans the first file of a folder, `nightly(array, number)` one more."""
    job = make_job(tmp_path / "in", tmp_path / "out", source__carry=["tag"])

    def add(tag: Any, name: str = "m") -> Any:
        write_parquet(tmp_path / f"in/{name}.parquet", prompt=["a"] * len(tag), tag=tag)
        plan = plan_job(job)
        save_plan(Store(job.sink.uri), plan)
        return plan

    return add


def test_later_files_take_the_plan_s_type(nightly: Make) -> None:
    """Also those that sort before all planned ones."""
    first = nightly(pa.array([1], pa.int32()))
    assert nightly(pa.array([1], pa.int16()), "a").fingerprint == first.fingerprint
    assert nightly(pa.nulls(1), "b").types.carried == {"tag": pa.int32()}
    with pytest.raises(
        JobError, match=r"z.parquet: carried column 'tag' has type int64, planned i"
    ):
        nightly(pa.array([1]), "z")


def test_a_dataset_that_began_with_nulls_alone_says_why_values_do_not_fit(nightly: Make) -> None:
    nightly(pa.nulls(1), "a")
    with pytest.raises(JobError, match=r"planned null.*began with had nothing in it.* new sink"):
        nightly(pa.array(["x"]), "b")


def test_a_row_that_is_damaged_is_a_rejection(
    tmp_path: Path, make_job: Make, make_worker: Make
) -> None:
    """Text that is no UTF-8 is no text in any type."""
    kind = pa.large_string()
    raw = pa.array([b"ok", b"\xff", b"fine"], pa.large_binary())
    damaged = pa.Array.from_buffers(kind, 3, raw.buffers())
    nested = pa.StructArray.from_arrays([damaged], ["text"])
    table = pa.table({"prompt": PROMPTS, "tag": damaged, "more": nested})
    for name in ("tag", "more"):
        pq.write_table(table.select(["prompt", name]), tmp_path / f"{name}.parquet")
        job = make_job(tmp_path / f"{name}.parquet", tmp_path / f"out-{name}", source__carry=[name])
        worker, plan = make_worker(job)
        receipt = worker.make_shard(plan.shards[0])
        assert (receipt.num_rows, receipt.num_images) == (3, 2)
        assert receipt.rejected == {"invalid_text": 1}


def test_a_cell_that_is_too_large_is_a_rejection_in_any_type(
    tmp_path: Path, write_parquet: Make, make_job: Make, make_worker: Make
) -> None:
    """However a file stores it; small ones beside it stay."""
    large = "x" * (1024 * 1024 + 1)
    texts = ["a", large, "b"]
    for number, column in enumerate(
        [
            pa.array(texts, pa.string_view()),
            pa.array(texts).dictionary_encode(),
            pa.ListArray.from_arrays([0, 1, 2, 3], pa.array(texts).dictionary_encode()),
        ]
    ):
        source = write_parquet(tmp_path / f"{number}.parquet", prompt=PROMPTS, tag=column)
        job = make_job(source, tmp_path / f"out{number}", source__carry=["tag"])
        worker, plan = make_worker(job)
        receipt = worker.make_shard(plan.shards[0])
        assert (receipt.num_images, receipt.rejected) == (2, {"out_of_range": 1})


# Types in pairs


I8, I16, I32, I64 = pa.int8(), pa.int16(), pa.int32(), pa.int64()
U8, U32, U64 = pa.uint8(), pa.uint32(), pa.uint64()
F16, F32, F64 = pa.float16(), pa.float32(), pa.float64()


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [
        (I8, I64, I64),
        (U8, I8, I16),
        (U32, I8, I64),
        (U64, I8, None),
        (U8, U32, U32),
        (I8, F16, F16),
        (I16, F16, F32),
        (I32, F32, F64),
        (I64, F64, None),
        (F16, F64, F64),
        (pa.null(), pa.list_(I8), pa.list_(I8)),
        (pa.decimal128(5, 2), pa.decimal128(5, 0), pa.decimal128(7, 2)),
        (pa.decimal128(38, 2), pa.decimal128(5, 4), pa.decimal256(40, 4)),
        (pa.decimal256(76, 2), pa.decimal128(5, 4), None),
        (pa.decimal128(5, 2), F64, None),
        (pa.binary(3), pa.binary(4), pa.binary()),
        (pa.binary(), pa.string(), None),
        (pa.timestamp("ms"), pa.timestamp("us"), None),
        (pa.timestamp("us"), pa.timestamp("us", "UTC"), None),
        (pa.date32(), pa.timestamp("us"), None),
        (pa.list_(I8), pa.list_(I32), pa.list_(I32)),
        (pa.list_(I8, 2), pa.list_(I32, 2), pa.list_(I32, 2)),
        (pa.list_(I8, 2), pa.list_(I32, 3), pa.list_(I32)),
        (pa.list_(I8), pa.list_(pa.string()), None),
        (pa.struct([("a", I8)]), pa.struct([("a", I16)]), pa.struct([("a", I16)])),
        (pa.struct([("a", I8)]), pa.struct([("b", I8)]), None),
        (pa.struct([("a", I8)]), pa.struct([("a", pa.string())]), None),
        (pa.bool_(), I8, None),
    ],
)
def test_a_type_that_holds_two_holds_them_exactly(one: Any, other: Any, wanted: Any) -> None:
    assert common_type(one, other) == common_type(other, one) == wanted
    if wanted is not None:
        for kind in (one, other):
            assert can_carry(kind, wanted)
            assert carried_cells(pa.nulls(1, kind), wanted)[0].type == wanted


@pytest.mark.parametrize("name", INPUT)
def test_every_type_is_settled_once(name: str) -> None:
    settled = settled_type(INPUT[name].type)
    assert settled == settled_type(settled) == EXPECTED[name].type
    assert can_carry(INPUT[name].type, settled)
    assert (name in UNCHANGED) == (name not in CONVERTED)


def test_two_fields_of_one_name_are_refused() -> None:
    with pytest.raises(NotCarried, match="two fields have one name"):
        settled_type(pa.list_(pa.struct([("a", I8), ("a", I8)])))

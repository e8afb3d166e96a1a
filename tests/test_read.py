"""One shard of Parquet: every row is valid or rejected with its reason, in bounded memory."""

import datetime
import decimal
import hashlib
import io
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm_batch.config import CallConfig, SourceConfig
from ldm_batch.errors import ShardError
from ldm_batch.generate.text_to_image import TEXT_TO_IMAGE
from ldm_batch.identity import FORMS
from ldm_batch.read.rows import MAX_CARRIED_BYTES, RowContext
from ldm_batch.read.shard import ShardRows, read_shard
from ldm_batch.records import Call, InputFile, Reason, Shard

WriteParquet = Callable[..., str]
CALL = CallConfig(num_inference_steps=10, guidance_scale=2.0, height=64, width=32)
DEFAULT = Call(num_inference_steps=10, guidance_scale=2.0, eta=0.0, height=64, width=32)
BAD_TEXT = b"\xff\xfe"
MEASURE = """
import resource, sys
from ldm_batch.config import CallConfig, SourceConfig
from ldm_batch.read.footer import read_new_footers
from ldm_batch.generate.text_to_image import TEXT_TO_IMAGE
from ldm_batch.identity import FORMS
from ldm_batch.read.rows import RowContext
from ldm_batch.read.shard import read_shard
from ldm_batch.records import InputFile, Shard
from ldm_batch.storage import SourceFile
path, size_bytes, carry = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
[footer] = read_new_footers([SourceFile("a.parquet", path, size_bytes, "")])
file = InputFile("a.parquet", path, size_bytes, "", footer.num_rows, footer.sha256)
shard = Shard(0, file, 0, min(1000, footer.num_rows))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
CALL = CallConfig(height=8, width=8)
context = RowContext(SourceConfig(carry=carry), CALL, FORMS[1])
task = TEXT_TO_IMAGE
found = read_shard(shard, task.columns, task.parse_row, context)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(found.rows), len(found.rejections), (after - before) // 1024)
"""


def planned(path: str | Path, start: int = 0, num_rows: int | None = None) -> Shard:
    """The shard of some rows of a file, by default of all."""
    whole = Path(path).read_bytes()
    footer = whole[-8 - int.from_bytes(whole[-8:-4], "little") : -8]
    digest, total = hashlib.sha256(footer).hexdigest(), pq.read_metadata(path).num_rows
    file = InputFile("a.parquet", str(path), len(whole), "", total, digest)
    return Shard(0, file, start, total - start if num_rows is None else num_rows)


def read_rows(shard: Shard, source: SourceConfig, form: int = 2) -> ShardRows:
    context = RowContext(source, CALL, FORMS[form])
    return read_shard(shard, TEXT_TO_IMAGE.columns, TEXT_TO_IMAGE.parse_row, context)


def read(path: str | Path, **source: Any) -> ShardRows:
    return read_rows(planned(path), SourceConfig(**source))


@pytest.fixture
def read_columns(tmp_path: Path, write_parquet: WriteParquet) -> Callable[..., ShardRows]:
    """Write columns to a file, with `prompt` "a" where there is none, and read it back."""

    def write_and_read(source: dict[str, Any] | None = None, **columns: Any) -> ShardRows:
        prompts = {"prompt": ["a"] * len(next(iter(columns.values())))}
        return read(write_parquet(tmp_path / "a.parquet", **(prompts | columns)), **(source or {}))

    return write_and_read


def reasons(found: ShardRows) -> list[tuple[int, Reason]]:
    return [(rejection.input_row, rejection.reason) for rejection in found.rejections]


# Rows


def test_a_row_has_the_jobs_defaults(read_columns: Callable[..., ShardRows]) -> None:
    [row] = read_columns(prompt=["a cat"]).rows
    assert (row.key, row.inputs["prompt"], row.inputs["negative_prompt"]) == (
        "a.parquet#0",
        "a cat",
        "",
    )
    assert (row.call, row.seed, row.index, row.input_row, dict(row.carry)) == (
        (DEFAULT, None, 0, 0, {})
    )


def test_a_row_may_say_everything_itself(read_columns: Callable[..., ShardRows]) -> None:
    columns = {
        "id": ["cat"],
        "negative_prompt": ["dog"],
        "seed": [2**63 - 1],
        "num_inference_steps": [1000],
        "guidance_scale": [7.5],
        "eta": [1],
        "height": [8.0],
        "width": [4096],
    }
    [row] = read_columns(**columns).rows
    assert (row.key, row.inputs["negative_prompt"], row.seed) == ("cat", "dog", 2**63 - 1)
    assert row.call == Call(
        num_inference_steps=1000, guidance_scale=7.5, eta=1.0, height=8, width=4096
    )
    assert isinstance(row.call.height, int)


def test_null_cells_are_the_defaults(read_columns: Callable[..., ShardRows]) -> None:
    names = ["negative_prompt", "seed", "num_inference_steps", "guidance_scale", "eta", "height"]
    [row] = read_columns(**{name: pa.nulls(1) for name in names}).rows
    assert (row.call, row.seed, row.inputs["negative_prompt"]) == (DEFAULT, None, "")


def test_mapped_columns_are_read(read_columns: Callable[..., ShardRows]) -> None:
    source = {"columns": {"prompt": "my.caption", "id": "number", "seed": None}}
    found = read_columns(source, **{"my.caption": ["a", "b"]}, number=[7, -8], seed=[1, 2])
    assert [(row.key, row.inputs["prompt"], row.seed) for row in found.rows] == [
        ("7", "a", None),
        ("-8", "b", None),
    ]


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())],
)
def test_text_of_any_arrow_type(read_columns: Callable[..., ShardRows], kind: pa.DataType) -> None:
    prompts = pa.array(["ein Bär", "猫 \u0000 🐈", None, "ein Bär"]).cast(kind)
    found = read_columns(prompt=prompts, id=pa.array(["a", "b", "c", "d"]).cast(kind))
    assert [(row.key, row.inputs["prompt"]) for row in found.rows] == [
        ("a", "ein Bär"),
        ("b", "猫 \u0000 🐈"),
        ("d", "ein Bär"),
    ]


@pytest.mark.parametrize(
    "kind", [pa.int8(), pa.uint16(), pa.int64(), pa.uint64(), pa.float16(), pa.float64()]
)
def test_numbers_of_any_arrow_type(
    read_columns: Callable[..., ShardRows], kind: pa.DataType
) -> None:
    numbers = pa.array([8, None]).cast(kind)
    found = read_columns(seed=numbers, num_inference_steps=numbers, height=numbers)
    assert [(row.seed, row.call.num_inference_steps, row.call.height) for row in found.rows] == [
        (8, 8, 8),
        (None, 10, 64),
    ]


@settings(max_examples=20)
@given(st.data())
def test_any_range_of_rows_is_a_plain_slice(
    tmp_path_factory: pytest.TempPathFactory, write_parquet: WriteParquet, data: st.DataObject
) -> None:
    num_rows = data.draw(st.integers(1, 600))
    group = data.draw(st.integers(20, 400))
    start = data.draw(st.integers(0, num_rows - 1))
    stop = data.draw(st.integers(start + 1, num_rows))
    path = write_parquet(
        tmp_path_factory.mktemp("slices") / "a.parquet",
        row_group_size=group,
        prompt=[f"prompt {i % 50}" for i in range(num_rows)],
        number=list(range(num_rows)),
    )
    source = SourceConfig(carry=["number"])
    rows = read_rows(planned(path, start, stop - start), source).rows
    expected = pq.read_table(path).slice(start, stop - start).to_pylist()
    assert [row.input_row for row in rows] == list(range(start, stop))
    assert [row.index for row in rows] == list(range(stop - start))
    assert [
        {"prompt": row.inputs["prompt"], "number": row.carry["number"][0].as_py()} for row in rows
    ] == expected


# Rejections


@pytest.mark.parametrize(
    ("columns", "reason", "message"),
    [
        ({"prompt": [None]}, Reason.NULL_PROMPT, "the prompt is null"),
        ({"prompt": pa.nulls(1)}, Reason.NULL_PROMPT, "the prompt is null"),
        ({"prompt": [""]}, Reason.EMPTY_PROMPT, "empty or blank"),
        ({"prompt": [" \t\n\u3000"]}, Reason.EMPTY_PROMPT, "empty or blank"),
        ({"prompt": ["x" * 4097]}, Reason.PROMPT_TOO_LARGE, "prompt has 4097 bytes; at most 4096"),
        ({"prompt": ["ü" * 4097]}, Reason.PROMPT_TOO_LARGE, "prompt has 8194 bytes"),
        ({"prompt": ["x" * 2_000_000]}, Reason.PROMPT_TOO_LARGE, "2000000 bytes"),
        ({"negative_prompt": ["x" * 5000]}, Reason.PROMPT_TOO_LARGE, "negative_prompt has 5000"),
        ({"id": pa.array([None], pa.string())}, Reason.INVALID_ID, "the id is null"),
        ({"id": [""]}, Reason.INVALID_ID, "the id has 0 bytes"),
        ({"id": ["x" * 513]}, Reason.INVALID_ID, "the id has 513 bytes, it may have 1 to 512"),
        ({"seed": [-1]}, Reason.OUT_OF_RANGE, "seed -1 is not between 0 and"),
        ({"seed": [2.0**53]}, Reason.OUT_OF_RANGE, "seed 9007199254740992 is a float, and other"),
        ({"seed": [2.0**64]}, Reason.OUT_OF_RANGE, "seed 1.8446744073709552e+19 is not between"),
        ({"seed": [1.5]}, Reason.WRONG_TYPE, "seed 1.5 is not a whole number"),
        ({"seed": pa.array([1.5], pa.float16())}, Reason.WRONG_TYPE, "seed 1.5 is not a whole"),
        ({"seed": [float("nan")]}, Reason.WRONG_TYPE, "seed nan is not a whole number"),
        ({"seed": [float("inf")]}, Reason.WRONG_TYPE, "seed inf is not a whole number"),
        ({"num_inference_steps": [0]}, Reason.OUT_OF_RANGE, "num_inference_steps 0"),
        ({"num_inference_steps": [1001]}, Reason.OUT_OF_RANGE, "num_inference_steps 1001"),
        ({"guidance_scale": [-0.1]}, Reason.OUT_OF_RANGE, "guidance_scale -0.1"),
        ({"guidance_scale": [float("nan")]}, Reason.OUT_OF_RANGE, "guidance_scale nan"),
        ({"eta": [1.5]}, Reason.OUT_OF_RANGE, "eta 1.5 is not between 0.0 and 1.0"),
        ({"height": [100]}, Reason.OUT_OF_RANGE, "height 100 is not a multiple of 8"),
        ({"width": [0]}, Reason.OUT_OF_RANGE, "width 0 is not between 8 and 4096"),
        ({"height": [8.5]}, Reason.WRONG_TYPE, "height 8.5 is not a whole number"),
        ({"width": [4104]}, Reason.OUT_OF_RANGE, "width 4104"),
    ],
)
def test_every_bad_value_has_its_reason(
    read_columns: Callable[..., ShardRows], columns: dict[str, Any], reason: Reason, message: str
) -> None:
    found = read_columns(**columns)
    [rejection] = found.rejections
    assert (rejection.reason, found.rows) == (reason, [])
    assert message in rejection.message


@pytest.mark.parametrize("seed", [0, 2**53, 2**63 - 1, 2**63, 2**64 - 1])
def test_every_seed_that_we_derive_may_be_given(
    tmp_path: Path, write_parquet: WriteParquet, seed: int
) -> None:
    path = write_parquet(tmp_path / "a.parquet", prompt=["a"], seed=pa.array([seed], pa.uint64()))
    [row] = read(path).rows
    assert row.seed == seed
    of_form_1 = read_rows(planned(path), SourceConfig(), form=1)
    assert [r.reason for r in of_form_1.rejections] == [Reason.OUT_OF_RANGE] * (seed >= 2**63)


@pytest.mark.parametrize(("kind", "bits"), [(pa.float16(), 11), (pa.float32(), 24)])
def test_narrow_floats_are_seeds_as_far_as_they_are_exact(
    tmp_path: Path, write_parquet: WriteParquet, kind: pa.DataType, bits: int
) -> None:
    seeds = pa.array([0, 2**bits - 1, 2**bits], pa.float64()).cast(kind)
    path = write_parquet(tmp_path / "a.parquet", prompt=["a"] * 3, seed=seeds)
    found = read(path)
    assert [row.seed for row in found.rows] == [0, 2**bits - 1]
    assert "is a float, and other whole numbers have the same" in found.rejections[0].message
    of_form_1 = read_rows(planned(path), SourceConfig(), form=1)
    assert [row.seed for row in of_form_1.rows] == [0, 2**bits - 1, 2**bits]


def test_floats_are_seeds_as_far_as_they_are_exact(
    tmp_path: Path, write_parquet: WriteParquet
) -> None:
    path = write_parquet(tmp_path / "a.parquet", prompt=["a", "b"], seed=[7.0, 2.0**53 - 1])
    assert [row.seed for row in read(path).rows] == [7, 2**53 - 1]
    path = write_parquet(tmp_path / "b.parquet", prompt=["a"], seed=[2.0**62])
    assert [row.seed for row in read_rows(planned(path), SourceConfig(), form=1).rows] == [2**62]


@pytest.mark.parametrize("prompt", ["x" * 4096, "ü" * 4096, "🐈" * 4096, "\u0000", "."])
def test_prompts_at_the_edge_are_valid(read_columns: Callable[..., ShardRows], prompt: str) -> None:
    assert [row.inputs["prompt"] for row in read_columns(prompt=[prompt]).rows] == [prompt]


@pytest.mark.parametrize("name", ["prompt", "negative_prompt", "id"])
def test_bytes_that_are_no_text_reject_only_their_row(
    read_columns: Callable[..., ShardRows], name: str
) -> None:
    cells = [b"a", BAD_TEXT, b"b"]
    texts = pa.Array.from_buffers(pa.string(), 3, pa.array(cells).buffers())
    found = read_columns(**{name: texts})
    assert (len(found.rows), reasons(found)) == (2, [(1, Reason.INVALID_TEXT)])
    assert found.rejections[0].message.startswith(f"{name} is not UTF-8")


def test_an_id_that_stands_twice_counts_once(read_columns: Callable[..., ShardRows]) -> None:
    found = read_columns(id=["a", "b", "a", "a"], prompt=["w", "x", "y", "z"])
    assert [(row.key, row.inputs["prompt"]) for row in found.rows] == [("a", "w"), ("b", "x")]
    assert reasons(found) == [(2, Reason.DUPLICATE_ID), (3, Reason.DUPLICATE_ID)]
    assert [rejection.key for rejection in found.rejections] == ["a", "a"]


def test_a_rejected_row_keeps_its_id(read_columns: Callable[..., ShardRows]) -> None:
    found = read_columns(id=["a", None], prompt=[None, "x"])
    assert [rejection.key for rejection in found.rejections] == ["a", "a.parquet#1"]


def test_every_reason_of_prompts_can_happen_here() -> None:
    """The closed list, less what pipelines and images add: nothing is rejected without a test."""
    elsewhere = {Reason.TOO_MANY_TOKENS, Reason.NOT_FINITE, Reason.CONSTANT_IMAGE}
    elsewhere.add(Reason.MALFORMED_LINE)  # test_text_files.py
    of_images = {reason for reason in Reason if "image" in reason or "mask" in reason}
    assert {*Reason} - elsewhere - of_images == {
        Reason.NULL_PROMPT,
        Reason.EMPTY_PROMPT,
        Reason.PROMPT_TOO_LARGE,
        Reason.INVALID_TEXT,
        Reason.WRONG_TYPE,
        Reason.OUT_OF_RANGE,
        Reason.INVALID_ID,
        Reason.DUPLICATE_ID,
    }


CELLS = st.sampled_from([None, "", "a", "b", "x" * 50])


@given(st.lists(st.tuples(CELLS, CELLS, st.none() | st.integers(-1, 9)), min_size=1, max_size=30))
def test_no_row_is_lost(
    tmp_path_factory: pytest.TempPathFactory, write_parquet: WriteParquet, cells: list[Any]
) -> None:
    ids, prompts, seeds = (list(column) for column in zip(*cells, strict=True))
    path = write_parquet(
        tmp_path_factory.mktemp("rows") / "a.parquet",
        id=pa.array(ids, pa.string()),
        prompt=pa.array(prompts, pa.string()),
        seed=pa.array(seeds, pa.int64()),
    )
    found = read(path, max_prompt_chars=20)
    seen = [row.input_row for row in found.rows] + [r.input_row for r in found.rejections]
    assert sorted(seen) == list(range(len(cells)))
    assert len({row.key for row in found.rows}) == len(found.rows)


# Carried columns

DAY = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901)
CARRIED = {
    "bool": pa.array([True, None, False]),
    "int8": pa.array([1, None, -3], pa.int8()),
    "uint64": pa.array([2**64 - 1, None, 0], pa.uint64()),
    "float16": pa.array([1.5, None, 2.0], pa.float16()),
    "float32": pa.array([1.5, None, float("inf")], pa.float32()),
    "string": pa.array(["a", None, "ü"]),
    "large_string": pa.array(["a", None, "ü"], pa.large_string()),
    "string_view": pa.array(["a", None, "a longer string than twelve"], pa.string_view()),
    "binary": pa.array([b"a", None, BAD_TEXT]),
    "large_binary": pa.array([b"a", None, BAD_TEXT], pa.large_binary()),
    "fixed_size_binary": pa.array([b"ab", None, b"cd"], pa.binary(2)),
    "timestamp_ns": pa.array([1, None, 1767323045678901234], pa.timestamp("ns")),
    "timestamp_tz": pa.array([DAY, None, DAY], pa.timestamp("us", "Europe/Berlin")),
    "date": pa.array([DAY.date(), None, DAY.date()]),
    "time": pa.array([DAY.time(), None, DAY.time()]),
    "duration": pa.array([1, None, 2], pa.duration("ns")),
    "decimal": pa.array([decimal.Decimal("1.23"), None, decimal.Decimal("-4.50")]),
    "null": pa.nulls(3),
    "list": pa.array([["a"], None, []]),
    "large_list": pa.array([[1], None, []], pa.large_list(pa.int64())),
    "fixed_size_list": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int32(), 2)),
    "list_of_structs": pa.array([[{"a": [1]}], None, [{"a": None}]]),
    "struct": pa.array([{"a": 1, "b": {"c": "x"}}, None, {"a": None, "b": None}]),
    "map": pa.array([[("a", 1)], None, []], pa.map_(pa.string(), pa.int64())),
    "dictionary": pa.array(["a", None, "a"]).dictionary_encode(),
    "dictionary_of_numbers": pa.array([7, None, 7]).dictionary_encode(),
    "uuid": pa.array([uuid.UUID(int=1).bytes, None, uuid.UUID(int=2).bytes], pa.uuid()),
    "image": pa.array([{"bytes": b"x", "path": "a"}, None, {"bytes": None, "path": None}]),
}


@pytest.mark.parametrize("name", list(CARRIED))
def test_carried_columns_of_any_type(
    tmp_path: Path, write_parquet: WriteParquet, name: str
) -> None:
    try:
        path = write_parquet(tmp_path / "a.parquet", prompt=["a", "b", "c"], x=CARRIED[name])
    except pa.ArrowNotImplementedError as error:  # lists of a fixed size with nulls, before 25
        pytest.skip(f"pyarrow {pa.__version__} cannot write it: {error}")
    found = read(path, carry=["x"])
    stored = pq.read_table(path)["x"].combine_chunks()
    plain = stored.dictionary_decode() if pa.types.is_dictionary(stored.type) else stored
    assert found.carried == [("x", plain.type)]
    carried = pa.concat_arrays([row.carry["x"] for row in found.rows]).cast(plain.type)
    assert carried.equals(plain)


@pytest.mark.parametrize("kind", [pa.string(), pa.list_(pa.string())])
def test_carried_text_has_to_be_text(
    read_columns: Callable[..., ShardRows], kind: pa.DataType
) -> None:
    cells = pa.array([b"a", BAD_TEXT, b"b"])
    texts = pa.Array.from_buffers(pa.string(), 3, cells.buffers())
    if kind != pa.string():
        texts = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), texts)
    found = read_columns({"carry": ["x"]}, x=texts)
    assert [row.carry["x"].to_pylist() for row in found.rows] in (
        [["a"], ["b"]],
        [[["a"]], [["b"]]],
    )
    assert reasons(found) == [(1, Reason.INVALID_TEXT)]


@pytest.mark.parametrize("cell", ["x" * MAX_CARRIED_BYTES, [0] * (MAX_CARRIED_BYTES // 8 + 1)])
def test_too_large_a_carried_cell_rejects_its_row(
    read_columns: Callable[..., ShardRows], cell: Any
) -> None:
    found = read_columns({"carry": ["x"]}, x=[cell[:1], cell, None])
    assert [row.carry["x"].to_pylist() for row in found.rows] == [[cell[:1]], [None]]
    assert reasons(found) == [(1, Reason.OUT_OF_RANGE)]
    assert "carried column 'x' holds 10" in found.rejections[0].message


# Damage


@pytest.mark.parametrize("codec", ["none", "zstd", "snappy"])
def test_a_flipped_bit_in_a_page_is_found(tmp_path: Path, codec: str) -> None:
    """Every bit of the prompts' pages: damage is an error, never another prompt."""
    path = tmp_path / "a.parquet"
    table = pa.table({"prompt": [f"prompt {i}" for i in range(2000)]})
    pq.write_table(table, path, compression=codec, write_page_checksum=True, use_dictionary=False)
    whole, shard = path.read_bytes(), planned(path)
    middle = whole.index(b"prompt 1") if codec == "none" else shard.file.size_bytes // 3
    for bit in range(8):
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1 << bit]) + whole[middle + 1 :])
        with pytest.raises(ShardError, match=r"a.parquet: cannot be read: .*(CRC|checksum)"):
            read_rows(shard, SourceConfig())


def test_damage_elsewhere_does_not_matter(tmp_path: Path, write_parquet: WriteParquet) -> None:
    """Only the shard's own row groups are read."""
    prompts = [f"prompt {i:04d}" for i in range(300)]
    path = Path(write_parquet(tmp_path / "a.parquet", prompt=prompts, row_group_size=100))
    shard, whole = planned(path, 0, 100), path.read_bytes()
    path.write_bytes(whole.replace(b"prompt 0250", b"prompt 0251"))
    assert [row.inputs["prompt"] for row in read_rows(shard, SourceConfig()).rows] == prompts[:100]


@pytest.mark.parametrize("length", [0, 4, 100, -100, -1])
def test_a_file_cut_after_planning_fails_its_shard(
    tmp_path: Path, write_parquet: WriteParquet, length: int
) -> None:
    path = Path(write_parquet(tmp_path / "a.parquet", prompt=["a", "b"]))
    shard = planned(path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ShardError, match=r"a.parquet: (not a .*Parquet file|changed after)"):
        read_rows(shard, SourceConfig())


def test_another_file_in_its_place_fails_its_shard(
    tmp_path: Path, write_parquet: WriteParquet
) -> None:
    shard = planned(path := write_parquet(tmp_path / "a.parquet", prompt=["a", "b"]))
    write_parquet(Path(path), prompt=["a", "c"])
    with pytest.raises(ShardError, match=r"changed after it was planned \(its footer differs\)"):
        read_rows(shard, SourceConfig())


def test_a_gone_file_fails_its_shard(tmp_path: Path, write_parquet: WriteParquet) -> None:
    shard = planned(path := write_parquet(tmp_path / "a.parquet", prompt=["a"]))
    Path(path).unlink()
    with pytest.raises(ShardError, match=r"a.parquet: No such file"):
        read_rows(shard, SourceConfig())


def test_a_gone_column_fails_its_shard(tmp_path: Path, write_parquet: WriteParquet) -> None:
    shard = planned(write_parquet(tmp_path / "a.parquet", prompt=["a"]))
    with pytest.raises(ShardError, match="no column 'x'"):
        read_rows(shard, SourceConfig(carry=["x"]))


# Small files that unpack to much


def write_bomb(path: Path, *, num_rows: int, cell: str, carried: bool) -> None:
    """Many rows that a dictionary repeats: what is written is one cell and a run length."""
    indices = pa.array([0], pa.int32()).take(pa.array([0] * num_rows))
    repeated = pa.DictionaryArray.from_arrays(indices, pa.array([cell]))
    columns = {"prompt": ["a"] * num_rows, "x": repeated} if carried else {"prompt": repeated}
    buffer = io.BytesIO()
    pq.write_table(
        pa.table(columns),
        buffer,
        compression="zstd",
        store_schema=False,
        dictionary_pagesize_limit=2**30,
        write_page_checksum=True,
    )
    path.write_bytes(buffer.getvalue())


@pytest.mark.parametrize(
    ("num_rows", "num_bytes", "carried", "rejected"),
    [
        (1_000_000, 1_000, False, 0),
        (256, 10_000_000, False, 256),
        (256, 10_000_000, True, 256),
    ],
    ids=["many rows", "huge prompts", "huge carried cells"],
)
def test_a_small_file_does_not_take_much_memory(
    tmp_path: Path, num_rows: int, num_bytes: int, carried: bool, rejected: int
) -> None:
    """1 and 2.6 GB of text in files of a few hundred kB at most, one of them under 2 kB."""
    path = tmp_path / "bomb.parquet"
    write_bomb(path, num_rows=num_rows, cell="x" * num_bytes, carried=carried)
    assert path.stat().st_size < 500_000
    arguments = [str(path), str(path.stat().st_size), *(["x"] if carried else [])]
    command = [sys.executable, "-c", MEASURE, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    valid, refused, grown_mb = map(int, ended.stdout.split())
    assert (valid, refused) == (min(num_rows, 1000) - rejected, rejected)
    assert grown_mb < 200

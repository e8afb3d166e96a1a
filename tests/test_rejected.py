"""Rejected rows are kept as they stand in the input: within limits, whatever their cells hold."""

import hashlib
import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_read import CARRIED, planned

from ldm_batch.columns import TaskColumns
from ldm_batch.config import SourceConfig
from ldm_batch.errors import ShardError
from ldm_batch.generate.super_resolution import SUPER_RESOLUTION
from ldm_batch.generate.text_to_image import TEXT_TO_IMAGE
from ldm_batch.read.cells import digest_of
from ldm_batch.read.rejected import MAX_CELL_BYTES, MAX_SHARD_BYTES, read_rejected
from ldm_batch.records import Reason, Rejection, Shard
from ldm_batch.write.rejections import RejectedRows, make_rejections_file

WriteParquet = Callable[..., str]
TEXT = TEXT_TO_IMAGE.columns
BAD_TEXT = b"\xff\xfe"


def read(shard: Shard, places: list[int], task: TaskColumns = TEXT, **source: Any) -> RejectedRows:
    return read_rejected(shard, task, SourceConfig(**source), places)


def sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def left_out(found: RejectedRows) -> list[list[tuple[str, int, str]]]:
    """What is left out of each row: column, size, digest."""
    return [
        [(cell["column"], cell["size_bytes"], cell["sha256"]) for cell in row]
        for row in found.omitted.to_pylist()
    ]


def stored(found: RejectedRows, shard: Shard) -> list[dict[str, Any]]:
    """The rows as the file gives them back."""
    rejections = [
        Rejection(f"{i}", i, Reason.NULL_PROMPT, "because") for i in range(len(found.rows))
    ]
    file = make_rejections_file(shard, rejections, found)
    rows = pq.read_table(io.BytesIO(file.content), page_checksum_verification=True)["row"]
    return [row for chunk in rows.chunks for row in chunk.to_pylist()]


# What is kept


@settings(max_examples=20)
@given(st.data())
def test_any_rows_are_a_plain_choice_of_rows(
    tmp_path_factory: pytest.TempPathFactory, write_parquet: WriteParquet, data: st.DataObject
) -> None:
    num_rows, group = data.draw(st.integers(1, 600)), data.draw(st.integers(20, 400))
    start = data.draw(st.integers(0, num_rows - 1))
    stop = data.draw(st.integers(start + 1, num_rows))
    places = data.draw(st.sets(st.integers(start, stop - 1), min_size=1))
    path = write_parquet(
        tmp_path_factory.mktemp("rows") / "a.parquet",
        row_group_size=group,
        prompt=[f"prompt {i % 50}" if i % 7 else None for i in range(num_rows)],
        number=list(range(num_rows)),
        list=[[i] * (i % 4) for i in range(num_rows)],
    )
    carry = data.draw(st.sampled_from([["number"], ["number", "list"]]))
    found = read(planned(path, start, stop - start), [*places], carry=carry)
    table = pq.read_table(path, columns=["prompt", *carry])
    assert found.rows.to_pylist() == table.take(sorted(places)).to_pylist()
    assert left_out(found) == [[] for _ in places]


@pytest.mark.parametrize("name", list(CARRIED))
def test_cells_of_any_type_stay_of_that_type(
    tmp_path: Path, write_parquet: WriteParquet, name: str
) -> None:
    try:
        path = write_parquet(tmp_path / "a.parquet", prompt=["a", "b", None], x=CARRIED[name])
    except pa.ArrowNotImplementedError as error:  # lists of a fixed size with nulls, before 25
        pytest.skip(f"pyarrow {pa.__version__} cannot write it: {error}")
    shard = planned(path)
    found = read(shard, [0, 1, 2], carry=["x"])
    column = pq.read_table(path)["x"].combine_chunks()
    plain = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    if pa.types.is_string_view(plain.type):
        plain = plain.cast(pa.large_string())
    kept = found.rows.field("x")
    assert kept.cast(plain.type).equals(plain)
    assert (left_out(found), kept.type) == ([[], [], []], plain.type)
    assert [row["prompt"] for row in stored(found, shard)] == ["a", "b", None]


def test_columns_have_the_names_of_the_input(tmp_path: Path, write_parquet: WriteParquet) -> None:
    columns = {"my.caption": ["a", None], "seed": [1, 2], "other": [3, 4], "more": ["x", "y"]}
    path = write_parquet(tmp_path / "a.parquet", **columns)
    found = read(planned(path), [1], columns={"prompt": "my.caption"}, carry=["more"])
    assert found.rows.to_pylist() == [{"my.caption": None, "seed": 2, "more": "y"}]


def test_a_column_that_is_mapped_and_carried_stands_once(
    tmp_path: Path, write_parquet: WriteParquet
) -> None:
    path = write_parquet(tmp_path / "a.parquet", caption=["a", "b"])
    found = read(planned(path), [0, 1], columns={"prompt": "caption"}, carry=["caption"])
    assert found.rows.to_pylist() == [{"caption": "a"}, {"caption": "b"}]


# What is left out


@pytest.mark.parametrize("kind", [pa.string(), pa.binary(), pa.large_string()])
def test_cells_are_kept_up_to_a_limit(
    tmp_path: Path, write_parquet: WriteParquet, kind: pa.DataType
) -> None:
    cells = ["x" * MAX_CELL_BYTES, "x" * (MAX_CELL_BYTES + 1), None, ""]
    path = write_parquet(tmp_path / "a.parquet", prompt=["a"] * 4, x=pa.array(cells).cast(kind))
    found = read(planned(path), [0, 1, 2, 3], carry=["x"])
    assert found.rows.field("x").is_valid().to_pylist() == [True, False, False, True]
    omitted = ("x", MAX_CELL_BYTES + 1, sha256(b"x" * (MAX_CELL_BYTES + 1)))
    assert left_out(found) == [[], [omitted], [], []]


@pytest.mark.parametrize("is_repeated", [True, False])
def test_a_shard_keeps_so_much_and_no_more(
    tmp_path: Path, write_parquet: WriteParquet, is_repeated: bool
) -> None:
    """Rejected rows of 60 kB each, 96 MB of them: in a small file too, which repeats one."""
    size, num_rows, dice = 60_000, 1600, random.Random(0)
    same = dice.randbytes(size // 2).hex()
    prompts = [same if is_repeated else dice.randbytes(size // 2).hex() for _ in range(num_rows)]
    path = write_parquet(tmp_path / "a.parquet", prompt=prompts)
    found = read(planned(path), list(range(num_rows)))
    num_kept = MAX_SHARD_BYTES // size
    kept = found.rows.field("prompt")
    assert kept.null_count == num_rows - num_kept
    assert found.rows.nbytes < MAX_SHARD_BYTES + 100 * num_rows
    assert found.omitted.nbytes < 200 * num_rows
    first_out = prompts[num_kept].encode()
    assert left_out(found)[num_kept] == [("prompt", size, sha256(first_out))]
    assert left_out(found)[:num_kept] == [[]] * num_kept


def test_text_that_is_none_is_left_out(tmp_path: Path, write_parquet: WriteParquet) -> None:
    cells = pa.array([b"a", BAD_TEXT, b"b"])
    texts = pa.Array.from_buffers(pa.string(), 3, cells.buffers())
    nested = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), texts)
    path = write_parquet(tmp_path / "a.parquet", prompt=texts, x=nested)
    shard = planned(path)
    found = read(shard, [0, 1, 2], carry=["x"])
    good = [{"prompt": "a", "x": ["a"]}, {"prompt": "b", "x": ["b"]}]
    assert stored(found, shard) == [good[0], {"prompt": None, "x": None}, good[1]]
    [first, second] = left_out(found)[1]
    assert (first, second[0]) == (("prompt", 2, sha256(BAD_TEXT)), "x")


def test_a_large_image_keeps_its_path(tmp_path: Path, write_parquet: WriteParquet) -> None:
    large, kind = (
        random.Random(0).randbytes(MAX_CELL_BYTES + 1),
        pa.struct([pa.field("path", pa.string()), pa.field("bytes", pa.binary(), nullable=False)]),
    )
    cells = [{"bytes": b"x", "path": "a.png"}, {"bytes": large, "path": "b.png"}, None]
    images = pa.array(cells[:2], kind)
    path = write_parquet(tmp_path / "a.parquet", image=images)
    shard, task = planned(path), SUPER_RESOLUTION.columns
    found = read(shard, [0, 1], task)
    kept = [{"path": "a.png", "bytes": b"x"}, {"path": "b.png", "bytes": None}]
    assert stored(found, shard) == [{"image": image} for image in kept]
    assert left_out(found) == [[], [("image", len(large), sha256(large))]]
    path = write_parquet(tmp_path / "b.parquet", image=[b"x", large, None])
    found = read(planned(path), [0, 1, 2], task)
    assert found.rows.to_pylist() == [{"image": b"x"}, {"image": None}, {"image": None}]
    assert left_out(found) == [[], [("image", len(large), sha256(large))], []]


def test_an_image_whose_path_is_no_text_is_left_out(
    tmp_path: Path, write_parquet: WriteParquet
) -> None:
    cells = pa.array([b"a.png", BAD_TEXT])
    paths = pa.Array.from_buffers(pa.string(), 2, cells.buffers())
    images = pa.StructArray.from_arrays([pa.array([b"x", b"y"]), paths], ["bytes", "path"])
    shard = planned(write_parquet(tmp_path / "a.parquet", image=images))
    found = read(shard, [0, 1], SUPER_RESOLUTION.columns)
    assert stored(found, shard) == [{"image": {"bytes": b"x", "path": "a.png"}}, {"image": None}]
    assert left_out(found) == [[], [("image", 1, sha256(b"y"))]]


SHARED = pa.array([["x" * 50_000] * 2, ["a", "b"]])
HOSTILE: dict[str, tuple[Any, list[bool]]] = {
    "two fields of one name": (
        pa.StructArray.from_arrays([pa.array([1, 2]), pa.array(["a", "b"])], names=["x", "x"]),
        [True, True],
    ),
    "values shared in a list": (
        SHARED.cast(pa.list_(pa.dictionary(pa.int8(), pa.string()))),
        [False, True],
    ),
    "a list without values": (
        pa.array([[None] * (MAX_CELL_BYTES + 1), []], pa.list_(pa.null())),
        [False, True],
    ),
    "a list of empty texts": (pa.array([[""] * (MAX_CELL_BYTES + 1), []]), [False, True]),
    "a struct of numbers": (pa.array([{"a": 1, "b": [2]}, {"a": None, "b": None}]), [True, True]),
    "a map of much": (
        pa.array([[(i, 1) for i in range(9000)], []], pa.map_(pa.int64(), pa.int64())),
        [False, True],
    ),
    "a list of maps": (
        pa.array([[[("a", 1)]], [[("b", 2)]]], pa.list_(pa.map_(pa.string(), pa.int64()))),
        [True, True],
    ),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_odd_cells_are_kept_or_named(
    tmp_path: Path, write_parquet: WriteParquet, name: str
) -> None:
    cells, is_kept = HOSTILE[name]
    path = write_parquet(tmp_path / "a.parquet", prompt=[None, None], x=cells)
    found = read(planned(path), [0, 1], carry=["x"])
    assert found.rows.field("x").is_valid().to_pylist() == is_kept
    assert [[cell[0] for cell in row] for row in left_out(found)] == [
        [] if kept else ["x"] for kept in is_kept
    ]
    file = make_rejections_file(planned(path), [REJECTION] * 2, found)
    pq.read_table(io.BytesIO(file.content)).validate(full=True)


REJECTION = Rejection("a", 0, Reason.NULL_PROMPT, "because")


@pytest.mark.parametrize("depth", [49, 700])
def test_what_is_nested_too_deeply_is_left_out(tmp_path: Path, depth: int) -> None:
    """Readers take columns nested to some depth, and a row is one level more; before pyarrow 26
    they take any, and Python does not follow."""
    cell: Any = pa.array([1])
    for _ in range(depth):
        cell = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), cell)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": [""], "x": cell}), path, store_schema=False)
    try:
        shard = planned(path)
    except OSError as error:
        pytest.skip(f"pyarrow {pa.__version__} does not read it: {error}")
    found = read(shard, [0], carry=["x"])
    if found.rows.type.get_field_index("x") < 0:
        [[(column, _, _)]] = left_out(found)
        assert column == "x"
    else:
        assert left_out(found) == [[]]
    assert stored(found, shard)[0]["prompt"] == ""


# The same bytes


def test_what_is_hashed_of_a_cell_is_the_cell_alone() -> None:
    """Not where it stands, what stands beside it, nor what lies under a null."""
    arrays = []
    for under_null in (0, 99):
        values = b"".join(number.to_bytes(4, "little") for number in (1, under_null, 3))
        buffers = [pa.py_buffer(b"\x05"), pa.py_buffer(values)]
        numbers = pa.Array.from_buffers(pa.int32(), 3, buffers)
        arrays.append(pa.ListArray.from_arrays(pa.array([0, 3], pa.int32()), numbers))
    among = pa.array([[7], [1, None, 3], None, [1, None, 3]], pa.list_(pa.int32()))
    cells = [*arrays, among.slice(1, 1), among.slice(3, 1)]
    assert len({digest_of(cell) for cell in cells}) == 1
    assert digest_of(among.slice(0, 1)) != digest_of(cells[0])


def test_the_same_rows_are_the_same_bytes(tmp_path: Path, write_parquet: WriteParquet) -> None:
    """Wherever they stand in a row group, and however the file encodes them."""
    contents = set()
    prompts = [f"prompt {i % 3}" for i in range(900)]
    lists = [[None, i % 3] if i % 5 else None for i in range(900)]
    for number, (start, group) in enumerate([(0, 900), (300, 900), (600, 100)]):
        path = write_parquet(
            tmp_path / f"{number}.parquet", row_group_size=group, prompt=prompts, x=lists
        )
        shard = planned(path, start, 300)
        places = range(start, start + 300)
        found = read(shard, [*places], carry=["x"])
        rejections = [
            Rejection("a", place - start, Reason.NULL_PROMPT, "because") for place in places
        ]
        contents.add(make_rejections_file(shard, rejections, found).path)
    assert len(contents) == 1


# A shard that cannot be read again


def test_a_file_that_changed_meanwhile_is_a_shards_failure(
    tmp_path: Path, write_parquet: WriteParquet
) -> None:
    path = write_parquet(tmp_path / "a.parquet", prompt=["a", None])
    shard = planned(path)
    write_parquet(Path(path), prompt=["b", None, None])
    with pytest.raises(ShardError, match=r"a.parquet"):
        read(shard, [1])
    Path(path).unlink()
    with pytest.raises(ShardError, match=r"a.parquet: No such file"):
        read(shard, [1])


def test_damage_is_a_shards_failure(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"prompt": [f"prompt {i}" for i in range(100)]})
    pq.write_table(table, path, compression="none", write_page_checksum=True, use_dictionary=False)
    shard, whole = planned(path), path.read_bytes()
    path.write_bytes(whole.replace(b"prompt 50", b"prompt 51"))
    with pytest.raises(ShardError, match=r"a.parquet: cannot be read: .*(CRC|checksum)"):
        read(shard, [7])

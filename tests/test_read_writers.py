"""Files of every valid writer: each encoding, page and type is read, or refused by name, and where
a shard stands in its row group costs nothing."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import make_png

from ldm_batch.config import CallConfig, SourceConfig
from ldm_batch.errors import ShardError
from ldm_batch.generate.super_resolution import SUPER_RESOLUTION
from ldm_batch.generate.text_to_image import TEXT_TO_IMAGE
from ldm_batch.identity import FORMS
from ldm_batch.read import batches, decoding
from ldm_batch.read.decoding import choose_decoding
from ldm_batch.read.images import InputImages
from ldm_batch.read.input_types import NO_TYPES
from ldm_batch.read.matching import is_image
from ldm_batch.read.pages import read_pages
from ldm_batch.read.rejected import read_rejected
from ldm_batch.read.rows import RowContext
from ldm_batch.read.shard import ShardRows, read_shard
from ldm_batch.read.spliced import SplicedFile
from ldm_batch.records import InputFile, Reason, Shard
from ldm_batch.write.spool import Spool

NUM_ROWS = 1200
RANGES = [range(NUM_ROWS), range(5), range(590, 610), range(799, 801), range(1190, 1200)]


def planned(path: Path, rows: range | None = None) -> Shard:
    """The shard of some rows of a file, by default of all."""
    whole, num_rows = path.read_bytes(), pq.read_metadata(path).num_rows
    raw = whole[-8 - int.from_bytes(whole[-8:-4], "little") : -8]
    digest = hashlib.sha256(raw).hexdigest()
    file = InputFile("a.parquet", str(path), len(whole), "", num_rows, digest)
    rows = range(num_rows) if rows is None else rows
    return Shard(0, file, rows.start, len(rows))


def read(path: Path, rows: range | None = None, **source: Any) -> ShardRows:
    context = RowContext(SourceConfig(**source), CallConfig(height=8, width=8), FORMS[2])
    return read_shard(planned(path, rows), TEXT_TO_IMAGE.columns, TEXT_TO_IMAGE.parse_row, context)


def prompts(found: ShardRows) -> list[Any]:
    """The prompts of the rows that were read."""
    return [row.inputs["prompt"] for row in found.rows]


def same_everywhere(path: Path, expected: list[dict[str, Any]], columns: dict[str, Any]) -> None:
    """Hold what is read of some ranges of rows to what was written."""
    for rows in RANGES:
        found = read(path, rows, carry=["x"], columns=columns)
        assert found.rejections == []
        assert [row.input_row for row in found.rows] == list(rows)
        values = [(row.inputs["prompt"], row.seed, row.carry["x"][0].as_py()) for row in found.rows]
        wanted = [expected[i] for i in rows]
        assert values == [(row["prompt"], row["seed"], row["x"]) for row in wanted]


def some_rows(x: pa.Array[Any]) -> pa.Table:
    """Prompts of which some repeat, seeds of which some are null, and a column of another type."""
    texts = [f"prompt {i if i % 3 else i % 60} {'ü' * (i % 7)}" for i in range(NUM_ROWS)]
    seeds = [None if i % 11 == 0 else i * 7919 % 2**31 for i in range(NUM_ROWS)]
    return pa.table({"prompt": texts, "seed": pa.array(seeds, pa.int64()), "x": x})


# Encodings

NUMBERS = np.arange(NUM_ROWS)
COLUMNS: dict[str, tuple[Any, list[str]]] = {
    "bool": (pa.array(NUMBERS % 3 == 0), ["PLAIN", "RLE"]),
    "int32": (
        pa.array(NUMBERS, pa.int32()),
        ["PLAIN", "DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT"],
    ),
    "int64": (pa.array(NUMBERS), ["PLAIN", "DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT"]),
    "float": (pa.array(NUMBERS / 7, pa.float32()), ["PLAIN", "BYTE_STREAM_SPLIT"]),
    "double": (pa.array(NUMBERS / 7), ["PLAIN", "BYTE_STREAM_SPLIT"]),
    "binary": (
        pa.array([f"{i % 50}".encode() * (i % 9) for i in range(NUM_ROWS)]),
        ["PLAIN", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"],
    ),
    "fixed": (
        pa.array([f"{i:04}".encode() for i in range(NUM_ROWS)], pa.binary(4)),
        ["PLAIN", "DELTA_BYTE_ARRAY", "BYTE_STREAM_SPLIT"],
    ),
    "list": (
        pa.array([[f"{j}" for j in range(i % 4)] or None for i in range(NUM_ROWS)]),
        ["PLAIN"],
    ),
    "struct": (pa.array([{"a": i, "b": f"{i}"} if i % 5 else None for i in range(NUM_ROWS)]), []),
}
CASES = [(name, encoding) for name, (_, known) in COLUMNS.items() for encoding in (*known, "")]


@pytest.mark.parametrize(("name", "encoding"), CASES)
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_every_encoding_of_every_type(
    tmp_path: Path, name: str, encoding: str, version: str
) -> None:
    """Small pages, in which a dictionary is given up halfway."""
    table = some_rows(COLUMNS[name][0])
    text = {"": None, "PLAIN": "PLAIN"}.get(encoding, "DELTA_BYTE_ARRAY")
    chosen = {"prompt": text, "seed": "DELTA_BINARY_PACKED", "x": encoding} if text else {}
    if name == "list" and chosen:
        chosen["x.list.element"] = chosen.pop("x")
    pq.write_table(
        table,
        tmp_path / "a.parquet",
        use_dictionary=not encoding,
        column_encoding=chosen or None,
        data_page_version=version,
        data_page_size=1000,
        dictionary_pagesize_limit=4000,
        write_batch_size=100,
        row_group_size=800,
        write_page_checksum=True,
    )
    same_everywhere(tmp_path / "a.parquet", table.to_pylist(), {})


@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "brotli", "zstd", "lz4"])
@pytest.mark.parametrize("is_required", [False, True])
def test_every_codec_of_columns_with_nulls_and_without(
    tmp_path: Path, codec: str, is_required: bool
) -> None:
    table = some_rows(pa.array(NUMBERS % 2 == 0))
    table = table.set_column(1, "seed", pa.array(NUMBERS))
    schema = pa.schema([field.with_nullable(not is_required) for field in table.schema])
    pq.write_table(
        table.cast(schema),
        tmp_path / "a.parquet",
        compression=codec,
        data_page_size=1000,
        write_batch_size=100,
        dictionary_pagesize_limit=4000,
        write_page_index=is_required,
    )
    same_everywhere(tmp_path / "a.parquet", table.to_pylist(), {})


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("codec", ["snappy", "zstd", "lz4_raw"])
def test_what_duckdb_writes(tmp_path: Path, version: str, codec: str) -> None:
    path = tmp_path / "a.parquet"
    table = some_rows(pa.array(NUMBERS / 8))  # read by name in the query
    with duckdb.connect() as connection:
        connection.register("rows", table)
        connection.sql(
            f"copy rows to '{path}' (parquet_version {version}, codec '{codec}', "
            "row_group_size 2048)"
        )
    same_everywhere(path, table.to_pylist(), {})


# Where a shard stands in its row group


@pytest.fixture(scope="module")
def one_group(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200,000 prompts in a row group, of 12 MB in 8,192-byte pages."""
    path = tmp_path_factory.mktemp("group") / "a.parquet"
    prompts = [
        f"a picture of the number {i} in some distinct words {i * i}" for i in range(200_000)
    ]
    table = pa.table({"prompt": prompts, "seed": np.arange(len(prompts))})
    pq.write_table(table, path, row_group_size=len(prompts), data_page_size=8192)
    return path


def decoding_of(path: Path, rows: range, *, is_near: bool = True) -> decoding.Decoding:
    metadata = pq.read_metadata(path)
    with path.open("rb") as file:
        chosen, _ = choose_decoding(file, metadata, 0, ["prompt", "seed"], rows, is_near=is_near)
    return chosen


@pytest.mark.parametrize("start", [0, 100_000, 198_976])
def test_only_pages_that_hold_the_rows_are_unpacked(one_group: Path, start: int) -> None:
    rows = range(start, start + 1024)
    chosen = decoding_of(one_group, rows)
    assert all(rows.start - 21_000 < step.begins <= rows.start for step in chosen.steps[1:])
    assert chosen.unpacked_bytes < 2_500_000
    found = read(one_group, rows)
    assert [row.seed for row in found.rows] == list(rows)
    assert all(f"number {row.seed} in" in row.inputs["prompt"] for row in found.rows)


@pytest.mark.parametrize("start", [0, 100_000, 198_976])
def test_rows_before_the_shard_are_few_reads(
    one_group: Path, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no page may be looked at: far away, in a chunk that is not held."""
    monkeypatch.setattr(decoding, "HELD_BYTES", 0)
    rows = range(start, start + 1024)
    chosen = decoding_of(one_group, rows, is_near=False)
    assert ([step.begins for step in chosen.steps], chosen.as_dictionaries) == ([0], [])
    position = num_reads = num_rows = 0
    while position < rows.stop:
        num_rows = chosen.next_rows(position, num_rows, 100 * num_rows)
        position, num_reads = position + num_rows, num_reads + 1
    assert num_reads <= 60
    monkeypatch.setattr(batches, "LOCAL", re.compile("nothing"))
    assert [row.seed for row in read(one_group, rows).rows] == list(rows)


def images(*, num_images: int, image_bytes: int) -> Any:
    cells = np.random.default_rng(0).bytes(image_bytes)
    return pa.array([{"bytes": cells + b"%d" % i, "path": f"{i}.png"} for i in range(num_images)])


def test_a_huge_group_of_images_is_read_in_small_parts(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"image": images(num_images=3000, image_bytes=20_000)}), path, write_batch_size=64
    )
    metadata, rows = pq.read_metadata(path), range(2900, 3000)
    with path.open("rb") as file:
        chosen, _ = choose_decoding(file, metadata, 0, ["image"], rows, is_near=True)
    assert metadata.row_group(0).total_byte_size > 60_000_000
    assert 1800 <= chosen.steps[-1].begins <= 2900
    assert chosen.unpacked_bytes < 25_000_000
    assert chosen.steps[-1].first_rows * 20_000 < 2 * decoding.READ_BYTES


# Small files that unpack to much


def peak_of(path: Path, columns: list[str], rows: range) -> int:
    """Bytes of Arrow's memory at its highest while rows are read."""
    task = TEXT_TO_IMAGE.columns
    source = SourceConfig(columns={"prompt": columns[0]})
    shard = planned(path, rows)
    used = batches.find_columns(shard, task, source, NO_TYPES)
    before = pa.total_allocated_bytes()
    peak = 0
    for batch in batches.read_batches(shard, used, source, is_image=False):
        assert batch.num_rows
        peak = max(peak, pa.total_allocated_bytes() - before)
    return peak


def write_repeated(folder: Path, **settings: Any) -> Path:
    """A file of 100 prompts of 2 MB, all the same."""
    indices = pa.array([0] * 100, pa.int32())
    prompts: Any = pa.DictionaryArray.from_arrays(indices, pa.array(["x" * 2_000_000]))
    if not settings.get("use_dictionary", True):
        prompts = prompts.dictionary_decode()
    settings |= {"compression": "zstd", "store_schema": False, "write_statistics": False}
    pq.write_table(pa.table({"prompt": prompts}), folder / "a.parquet", **settings)
    return folder / "a.parquet"


REPEATED = {
    "dictionary": {"dictionary_pagesize_limit": 2**30},
    "dictionary of data pages V2": {"dictionary_pagesize_limit": 2**30, "data_page_version": "2.0"},
    "prefixes": {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"},
}


@pytest.mark.parametrize(("how", "start"), [*((how, 0) for how in REPEATED), ("dictionary", 80)])
def test_a_value_that_a_small_file_repeats_does_not_fill_the_memory(
    tmp_path: Path, how: str, start: int
) -> None:
    """200 MB in a file of some kB."""
    path = write_repeated(tmp_path, **REPEATED[how])
    assert path.stat().st_size < 100_000
    assert peak_of(path, ["prompt"], range(start, 100)) < 90_000_000


def test_a_footer_that_hides_its_dictionary_changes_nothing(tmp_path: Path) -> None:
    """The pages are asked, not the footer: it lists other encodings and sizes here."""
    path = write_repeated(tmp_path, dictionary_pagesize_limit=2**30)
    whole = path.read_bytes()
    listed = bytes([0x19, 0x35, 0x00, 0x06, 0x10])  # a list of three: PLAIN, RLE, RLE_DICTIONARY
    assert whole.count(listed) == 1
    path.write_bytes(whole.replace(listed, bytes([0x19, 0x35, 0x00, 0x06, 0x06])))
    assert pq.read_metadata(path).row_group(0).column(0).encodings == ("PLAIN", "RLE", "RLE")
    assert peak_of(path, ["prompt"], range(100)) < 90_000_000


def test_no_flipped_bit_of_a_page_header_does_worse_than_fail_its_shard(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"prompt": [f"prompt {i % 30}" for i in range(400)], "x": [0] * 400})
    pq.write_table(table, path, data_page_size=300, write_batch_size=50, write_page_checksum=True)
    whole = path.read_bytes()
    chunk = pq.read_metadata(path).row_group(0).column(0)
    start, size_bytes = chunk.dictionary_page_offset, chunk.total_compressed_size
    with path.open("rb") as file:
        found = list(read_pages(SplicedFile(file, 0), start, size_bytes, 400))
    assert len(found) > 4
    expected = prompts(read(path, range(190, 210)))
    places = [place for page in found for place in range(page.header_start, page.start)]
    num_failed = 0
    for place in places:
        bit = 1 << place % 8
        path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        try:
            assert prompts(read(path, range(190, 210))) == expected
        except ShardError:
            num_failed += 1
    assert num_failed > 20


# Types


@pytest.fixture
def read_column(tmp_path: Path) -> Callable[..., ShardRows]:
    """Write a column of some field and read the rows that it makes."""

    def write_and_read(field: str, column: Any, **settings: Any) -> ShardRows:
        path = tmp_path / "a.parquet"
        columns = {"prompt": ["a"] * len(column)} | {field: column}
        try:
            pq.write_table(pa.table(columns), path, **settings)
        except pa.ArrowNotImplementedError as error:  # decimals of 32 bits, before 22
            pytest.skip(f"pyarrow {pa.__version__} cannot write it: {error}")
        return read(path)

    return write_and_read


DECIMALS = [pa.decimal32(9, 1), pa.decimal64(18, 1), pa.decimal128(38, 1), pa.decimal256(76, 1)]


@pytest.mark.parametrize("kind", [*DECIMALS, pa.float16(), pa.float32()])
def test_numbers_of_every_width_are_numbers(
    read_column: Callable[..., ShardRows], kind: pa.DataType
) -> None:
    cells = pa.array([Decimal("7.5"), None, Decimal("100.5")])
    found = read_column("guidance_scale", cells.cast(pa.float64()).cast(kind))
    assert [row.call.guidance_scale for row in found.rows] == [7.5, 1.0]
    assert "guidance_scale 100.5 is not between 0.0 and 100.0" in found.rejections[0].message


@pytest.mark.parametrize("settings", [{}, {"store_decimal_as_integer": True}])
def test_decimals_are_seeds_to_the_last_digit(
    read_column: Callable[..., ShardRows], settings: dict[str, Any]
) -> None:
    kind = pa.decimal128(18, 0) if settings else pa.decimal128(38, 0)
    largest = 10**18 - 1 if settings else 2**64 - 1
    cells = pa.array([Decimal(largest), Decimal(2**53 + 1), Decimal(-1), None], kind)
    found = read_column("seed", cells, **settings)
    assert [row.seed for row in found.rows] == [largest, 2**53 + 1, None]
    assert [r.reason for r in found.rejections] == [Reason.OUT_OF_RANGE]


def test_a_fraction_is_no_whole_number(read_column: Callable[..., ShardRows]) -> None:
    found = read_column("num_inference_steps", pa.array([Decimal("20.0"), Decimal("20.5")]))
    assert [row.call.num_inference_steps for row in found.rows] == [20]
    assert found.rejections[0].message == "num_inference_steps 20.5 is not a whole number"
    assert found.rejections[0].reason == Reason.WRONG_TYPE


@pytest.mark.parametrize("size", [64, 128])
def test_heights_of_any_number_are_planned(
    tmp_path: Path, make_job: Any, plan_job: Any, size: int
) -> None:
    for number, kind in enumerate([pa.float16(), pa.decimal128(5, 1), pa.decimal256(40, 0)]):
        path = tmp_path / str(number) / "a.parquet"
        path.parent.mkdir()
        pq.write_table(
            pa.table({"prompt": ["a"], "height": pa.array([float(size)]).cast(kind)}), path
        )
        plan = plan_job(make_job(path, tmp_path / "out"))
        assert plan.shards[0].num_rows == 1
        assert [row.call.height for row in read(path).rows] == [size]


TEXTS = [
    *(pa.string(), pa.large_string(), pa.string_view()),
    *(pa.binary(), pa.large_binary(), pa.binary_view()),
    *(pa.dictionary(pa.int16(), kind) for kind in (pa.string(), pa.large_string(), pa.binary())),
]


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("field", ["prompt", "negative_prompt", "id"])
def test_text_of_every_type_is_text(
    read_column: Callable[..., ShardRows], kind: pa.DataType, field: str
) -> None:
    found = read_column(field, pa.array(["ein Bär", "猫 🐈"]).cast(pa.binary()).cast(kind))
    texts = [row.key if field == "id" else row.inputs[field] for row in found.rows]
    assert (texts, found.rejections) == (["ein Bär", "猫 🐈"], [])


@pytest.mark.parametrize("kind", [pa.binary(), pa.binary(3), pa.large_binary(), pa.binary_view()])
def test_bytes_that_are_no_text_reject_their_row(
    read_column: Callable[..., ShardRows], kind: pa.DataType
) -> None:
    found = read_column("prompt", pa.array([b"cat", b"\xff\xfe\xfd", b"dog"], kind))
    assert [row.inputs["prompt"] for row in found.rows] == ["cat", "dog"]
    assert [(r.input_row, r.reason) for r in found.rejections] == [(1, Reason.INVALID_TEXT)]


def test_names_of_databases_are_ids(tmp_path: Path) -> None:
    """UUIDs, JSON, whole decimals and bytes, as DuckDB writes them."""
    path, name = tmp_path / "a.parquet", "5f4dcc3b-5aa7-65d6-1d83-27deb882cf99"
    kinds = [f"'{name}'::uuid", "'{\"a\": 1}'::json", "7::decimal(38, 0)", "'x'::blob"]
    for kind, expected in zip(kinds, [name, '{"a": 1}', "7", "x"], strict=True):
        duckdb.sql(f"copy (select 'a' as prompt, {kind} as id, 7.5 as guidance_scale) to '{path}'")
        [row] = read(path).rows
        assert (row.key, row.call.guidance_scale) == (expected, 7.5)


@pytest.mark.parametrize("kind", [pa.bool_(), pa.date32(), pa.time32("s"), pa.timestamp("us")])
def test_what_is_no_number_is_refused_by_name(tmp_path: Path, kind: pa.DataType) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": ["a"], "seed": pa.nulls(1, kind)}), path)
    with pytest.raises(ShardError, match=r"column 'seed' has type .*, seed needs numbers; map"):
        read(path)


B, S = pa.binary(), pa.string()
PNG = make_png(np.full((8, 8, 3), 90, np.uint8), 8, 2)


@pytest.mark.parametrize(
    ("fields", "is_one"),
    [
        ({"bytes": B, "path": S}, True),
        ({"bytes": pa.null(), "path": S}, True),
        ({"bytes": B, "path": pa.null()}, True),
        ({"path": S}, True),
        ({"bytes": pa.binary_view(), "path": pa.string_view(), "height": pa.int64()}, True),
        ({"bytes": S, "path": S}, False),
        ({"bytes": B, "path": B}, False),
        ({"data": B, "name": S}, False),
        ({}, False),
    ],
)
def test_structs_of_bytes_or_paths_are_images(fields: dict[str, Any], is_one: bool) -> None:
    assert is_image(pa.struct(fields)) is is_one


@pytest.mark.parametrize(
    "cells",
    [
        [{"bytes": None, "path": "a.png"}, {"bytes": None, "path": "none.png"}],
        [{"path": "a.png"}, {"path": None}],
        [
            {"bytes": PNG, "path": "else.png", "height": 8},
            {"bytes": b"", "path": None, "height": 8},
        ],
        [{"label": [1], "bytes": PNG}, {"label": None, "bytes": None}],
    ],
)
def test_images_of_structs_are_read_and_rejected(
    tmp_path: Path, make_job: Any, cells: list[Any]
) -> None:
    """The rejected one is kept with its cells, too."""
    path, task = tmp_path / "a.parquet", SUPER_RESOLUTION
    (tmp_path / "a.png").write_bytes(PNG)
    pq.write_table(pa.table({"image": cells}), path)
    job, shard = make_job(path, tmp_path / "out"), planned(path)
    with Spool() as spool:
        kept = InputImages(job, task.columns, shard, spool)
        call = CallConfig(noise_level=0)
        context = RowContext(job.source, call, FORMS[2], kept)
        found = read_shard(shard, task.columns, task.parse_row, context)
    assert [row.input_row for row in found.rows] == [0]
    assert [rejection.input_row for rejection in found.rejections] == [1]
    rejected = read_rejected(shard, task.columns, job.source, [1])
    assert rejected.rows.to_pylist() == [{"image": cells[1]}]


# Kinds of the files that other projects keep to try readers on


def kinds() -> dict[str, tuple[Any, dict[str, Any], str]]:
    """Name -> table, how it is written, and what comes of it: rows, or words of the message."""
    texts = ["a", "b", "c"]
    day = pa.array([0, 1, 2], pa.timestamp("ns"))
    lists = pa.array([[["a"], []], None, [None, ["b", None]]])
    return {
        "nested lists beside": (pa.table({"prompt": texts, "x": lists}), {}, "3"),
        "nested lists as text": (pa.table({"prompt": lists}), {}, "prompt needs text"),
        "int96": (
            pa.table({"prompt": texts, "x": day}),
            {"use_deprecated_int96_timestamps": True},
            "3",
        ),
        "int96 as a number": (
            pa.table({"prompt": texts, "seed": day}),
            {"use_deprecated_int96_timestamps": True},
            "seed needs numbers",
        ),
        "nulls only": (pa.table({"prompt": pa.nulls(3, pa.string()), "x": pa.nulls(3)}), {}, "0"),
        "nulls without a type": (pa.table({"prompt": pa.nulls(3)}), {}, "0"),
        "no dictionary": (pa.table({"prompt": texts}), {"use_dictionary": False}, "3"),
        "large strings": (pa.table({"prompt": pa.array(texts, pa.large_string())}), {}, "3"),
        "a long text": (pa.table({"prompt": ["a", "b" * 3_000_000, "c"]}), {}, "2"),
        "no columns": (pa.table({}), {}, "no column 'prompt' .*; the file has no columns"),
        "a map": (
            pa.table({"prompt": texts, "x": pa.array([[("a", 1)]] * 3, pa.map_(S, pa.int64()))}),
            {},
            "3",
        ),
        "many codecs": (
            pa.table({"prompt": texts, "x": texts}),
            {"compression": {"prompt": "brotli", "x": "lz4"}},
            "3",
        ),
        "byte streams split": (
            pa.table({"prompt": texts, "guidance_scale": [1.0, 2.0, 3.5]}),
            {"use_dictionary": False, "column_encoding": {"guidance_scale": "BYTE_STREAM_SPLIT"}},
            "3",
        ),
    }


@pytest.mark.parametrize("name", list(kinds()))
def test_files_of_every_kind_end_in_rows_rejections_or_a_message(tmp_path: Path, name: str) -> None:
    table, settings, expected = kinds()[name]
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, **settings)
    carry = [column for column in table.column_names if column == "x"]
    if not expected.isdigit():
        with pytest.raises(ShardError, match=expected):
            read(path, carry=carry)
        return
    found = read(path, carry=carry)
    assert len(found.rows) == int(expected)
    assert len(found.rows) + len(found.rejections) == 3

"""Footers of input files: read apart from the rows, refused with a message when they lie."""

import base64
import hashlib
import io
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.parquet import encryption

from ldm_batch.config import SourceConfig
from ldm_batch.errors import JobError
from ldm_batch.generate.text_to_image import TEXT_TO_IMAGE
from ldm_batch.read.deadly_footers import find_deadly
from ldm_batch.read.footer import (
    largest_value,
    read_new_footers,
    read_planned_footer,
    row_group_ends,
)
from ldm_batch.read.matching import (
    carried_fields,
    columns_in_words,
    describe_unread,
    resolve_columns,
)
from ldm_batch.records import InputFile
from ldm_batch.storage import SourceFile

WriteParquet = Callable[..., str]

TASK = TEXT_TO_IMAGE.columns


def footer_of(path: str) -> Any:
    """The footer of a file, read as that of a planned one: in this process alone."""
    whole = Path(path).read_bytes()
    raw = whole[-8 - int.from_bytes(whole[-8:-4], "little") : -8]
    digest = hashlib.sha256(raw).hexdigest()
    return read_planned_footer(InputFile("x.parquet", path, len(whole), "1", 0, digest))


def read_sized(path: str, size_bytes: int) -> Any:
    [footer] = read_new_footers([SourceFile("x.parquet", path, size_bytes, "1")])
    return footer


def footer_with(tmp_path: Path, write_parquet: WriteParquet, **columns: Any) -> Any:
    return footer_of(write_parquet(tmp_path / "x.parquet", **columns))


def test_a_footer_tells_rows_and_schema(tmp_path: Path, write_parquet: WriteParquet) -> None:
    path = write_parquet(tmp_path / "a.parquet", prompt=list("abcde"), row_group_size=2)
    footer = footer_of(path)
    assert (footer.num_rows, footer.schema.names) == (5, ["prompt"])
    assert row_group_ends(footer) == [2, 4, 5]


def test_a_footer_longer_than_the_first_read(tmp_path: Path, write_parquet: WriteParquet) -> None:
    columns = {f"column_{i:05d}": [i] for i in range(2000)}
    path = write_parquet(tmp_path / "a.parquet", prompt=["a"], **columns)
    assert len(footer_of(path).schema.names) == 2001


def test_a_footers_digest_tells_files_apart(tmp_path: Path, write_parquet: WriteParquet) -> None:
    paths = [write_parquet(tmp_path / name, prompt=["a"]) for name in ("a", "b")]
    other = write_parquet(tmp_path / "c", prompt=["a", "b"])
    one, same, two = (footer_of(path).sha256 for path in (*paths, other))
    assert one == same != two


def test_a_file_without_rows(tmp_path: Path, write_parquet: WriteParquet) -> None:
    path = write_parquet(tmp_path / "a.parquet", prompt=pa.array([], pa.string()))
    footer = footer_of(path)
    assert (footer.num_rows, sum(row_group_ends(footer))) == (0, 0)


@pytest.mark.parametrize(
    "content",
    [b"PAR1", b"PAR1PAR1", b"\0\0\0\0PAR1", b"PAR1\0\0\0\0\0\0\0\0PAR1", b"x" * 100, b"{}", b"\0"],
)
def test_other_files_are_not_parquet(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(JobError, match=r"a.parquet: not a (readable )?Parquet file"):
        footer_of(str(tmp_path / "a.parquet"))


def test_a_file_cut_anywhere_is_refused(tmp_path: Path, write_parquet: WriteParquet) -> None:
    whole = Path(write_parquet(tmp_path / "whole.parquet", prompt=list("abc"))).read_bytes()
    for length in range(1, len(whole), 7):
        (tmp_path / "cut.parquet").write_bytes(whole[:length])
        with pytest.raises(JobError, match="cut off"):
            footer_of(str(tmp_path / "cut.parquet"))


def test_a_file_shorter_than_listed_is_refused(tmp_path: Path, write_parquet: WriteParquet) -> None:
    path = write_parquet(tmp_path / "a.parquet", prompt=list("abc"))
    with pytest.raises(JobError, match="not a Parquet file, or cut off"):
        read_sized(path, Path(path).stat().st_size + 10_000_000)


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"gone.parquet: No such file"):
        read_sized(str(tmp_path / "gone.parquet"), 100)


def test_names_that_are_no_utf8_end_in_a_message(
    tmp_path: Path, write_parquet: WriteParquet
) -> None:
    path = Path(write_parquet(tmp_path / "a.parquet", prompt=["a"], height=[8]))
    path.write_bytes(path.read_bytes().replace(b"height", b"heig\xff\xff"))
    with pytest.raises(JobError, match=r"a.parquet: not a readable Parquet file: 'utf-8' codec"):
        footer_of(str(path))


def test_a_date_that_python_cannot_hold_is_no_damage(
    tmp_path: Path, write_parquet: WriteParquet
) -> None:
    dates = pa.array([10_000_000], pa.int32()).cast(pa.date32())
    path = write_parquet(tmp_path / "a.parquet", prompt=["a"], far_away=dates)
    assert read_sized(path, Path(path).stat().st_size).num_rows == 1


def test_too_many_columns_are_refused(tmp_path: Path, write_parquet: WriteParquet) -> None:
    columns = {f"c{i}": pa.array([], pa.int8()) for i in range(10_001)}
    with pytest.raises(JobError, match="10001 columns, at most 10000"):
        footer_with(tmp_path, write_parquet, **columns)


@pytest.mark.parametrize("name", ["prompt", "my.prompt"])
def test_a_column_too_large_to_unpack_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A small file may unpack to any size; the limit is lowered, or this test would take 2 GB."""
    monkeypatch.setattr("ldm_batch.read.matching.MAX_CHUNK_BYTES", 1_000_000)
    table = pa.table({name: ["x" * 1_000_001]})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd")
    footer = footer_of(str(tmp_path / "a.parquet"))
    with pytest.raises(JobError, match=f"'{name}' of row group 0 unpacks to 10000.. bytes, at"):
        resolve_columns(footer, TASK, SourceConfig(columns={"prompt": name}), "a.parquet")


def test_a_large_column_that_is_not_read_is_no_trouble(
    tmp_path: Path, write_parquet: WriteParquet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldm_batch.read.matching.MAX_CHUNK_BYTES", 1_000_000)
    columns = {"prompt": ["a"], "photo": [b"x" * 1_000_001]}
    assert resolve(tmp_path, write_parquet, SourceConfig(), **columns) == {"prompt": "prompt"}


# Which column stands for which field


def resolve(tmp_path: Path, write: WriteParquet, source: SourceConfig, **columns: Any) -> Any:
    return resolve_columns(footer_with(tmp_path, write, **columns), TASK, source, "x.parquet")


def test_columns_of_a_fields_name_are_used(tmp_path: Path, write_parquet: WriteParquet) -> None:
    columns = {"seed": [1], "prompt": ["a"], "other": ["b"], "eta": [0.5]}
    resolved = resolve(tmp_path, write_parquet, SourceConfig(), **columns)
    assert resolved == {"prompt": "prompt", "seed": "seed", "eta": "eta"}
    assert columns_in_words(resolved) == "prompt, seed, eta"


def test_columns_are_mapped_and_ignored(tmp_path: Path, write_parquet: WriteParquet) -> None:
    source = SourceConfig(columns={"prompt": "caption", "id": "caption", "seed": None})
    resolved = resolve(tmp_path, write_parquet, source, caption=["a"], seed=["x"])
    assert resolved == {"prompt": "caption", "id": "caption"}
    assert columns_in_words(resolved) == "prompt (column 'caption'), id (column 'caption')"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            SourceConfig(columns={"prompt": "cation"}),
            r"no column 'cation' for prompt \(source.colu",
        ),
        (SourceConfig(columns={"prompt": "cation"}), "did you mean 'caption'?"),
        (SourceConfig(), "no column 'prompt' for prompt"),
        (SourceConfig(), "known: caption, seed"),
        (SourceConfig(columns={"prompt": "caption", "eta": "x"}), "no column 'x' for eta"),
        (
            SourceConfig(columns={"prompt": "caption"}, carry=["sed"]),
            r"no column 'sed' \(source.carry\); did you mean 'seed'?",
        ),
    ],
)
def test_missing_columns_are_named(
    tmp_path: Path, write_parquet: WriteParquet, source: SourceConfig, message: str
) -> None:
    with pytest.raises(JobError, match=message):
        resolve(tmp_path, write_parquet, source, caption=["a"], seed=[1])


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"])
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(JobError, match="two columns are named 'prompt'"):
        resolve_columns(footer_of(str(tmp_path / "x.parquet")), TASK, SourceConfig(), "x.parquet")


TEXTS = [
    *(pa.string(), pa.large_string(), pa.string_view(), pa.json_(), pa.null()),
    *(pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(3)),
    *(pa.dictionary(pa.int32(), kind) for kind in (pa.string(), pa.large_string(), pa.binary())),
]
INTEGERS = [pa.int8(), pa.uint64(), pa.int32(), pa.dictionary(pa.int8(), pa.int64())]
WHOLE = [pa.decimal128(38, 0), pa.decimal256(76, 0)]
FLOATS = [pa.float16(), pa.float32(), pa.float64()]
DECIMALS = [pa.decimal128(9, 2), pa.decimal256(76, 38)]
OTHERS = [
    *(pa.bool_(), pa.list_(pa.string()), pa.struct([("bytes", pa.binary())]), pa.list_(pa.int8())),
    *(pa.date32(), pa.time64("us"), pa.timestamp("ms"), pa.duration("s")),
]
NUMBERS = [*INTEGERS, *FLOATS, *WHOLE, *DECIMALS]


@pytest.mark.parametrize(
    ("field", "fitting", "refused"),
    [
        ("prompt", TEXTS, [*NUMBERS, *OTHERS, pa.uuid()]),
        ("negative_prompt", TEXTS, [*NUMBERS, *OTHERS, pa.uuid()]),
        ("id", [*TEXTS, *INTEGERS, *WHOLE, pa.uuid()], [*FLOATS, *DECIMALS, *OTHERS]),
        *(
            (field, [*NUMBERS, pa.null()], [pa.string(), pa.binary(), *OTHERS, pa.uuid()])
            for field in ("seed", "height", "eta")
        ),
    ],
)
def test_types_that_can_hold_a_field(
    tmp_path: Path,
    write_parquet: WriteParquet,
    field: str,
    fitting: list[pa.DataType],
    refused: list[pa.DataType],
) -> None:
    for kind in fitting:
        columns = {"prompt": ["a"]} | {field: pa.nulls(1, kind)}
        assert field in resolve(tmp_path, write_parquet, SourceConfig(), **columns)
    message = f"column '{field}' has type .*, {field} needs"
    for kind in refused:
        columns = {"prompt": ["a"]} | {field: pa.nulls(1, kind)}
        with pytest.raises(JobError, match=message):
            resolve(tmp_path, write_parquet, SourceConfig(), **columns)


def test_only_what_rows_can_do_without_may_be_ignored(
    tmp_path: Path, write_parquet: WriteParquet
) -> None:
    with pytest.raises(JobError, match=r"source.columns.prompt, or write it anew$"):
        resolve(tmp_path, write_parquet, SourceConfig(), prompt=[1])
    with pytest.raises(JobError, match=r"source.columns.seed, or null to ignore it$"):
        resolve(tmp_path, write_parquet, SourceConfig(), prompt=["a"], seed=["x"])


SPELT = {"Seed": [1], "ID": ["x"], "NEGATIVE_PROMPT": ["b"], "guidanceScale": [1.0], "my seed": [1]}


def test_columns_of_almost_a_fields_name_are_told(
    tmp_path: Path, write_parquet: WriteParquet
) -> None:
    footer = footer_with(tmp_path, write_parquet, prompt=["a"], **SPELT)
    told = describe_unread(footer, TASK, SourceConfig(), {"prompt": "prompt"})
    assert [line.partition(" is not read")[0] for line in told] == [
        f"column {name!r}" for name in list(SPELT)[:4]
    ]
    assert told[0].endswith("set source.columns.seed=Seed, else source.columns.seed=null")


@pytest.mark.parametrize(
    "source",
    [
        {"columns": {"seed": "Seed", "id": "ID"}},
        {"columns": {"seed": None, "id": None}},
        {"carry": ["Seed", "ID"]},
    ],
)
def test_what_is_used_carried_or_ignored_on_purpose_needs_no_word(
    tmp_path: Path, write_parquet: WriteParquet, source: dict[str, Any]
) -> None:
    footer = footer_with(tmp_path, write_parquet, prompt=["a"], Seed=[1], ID=["x"])
    config = SourceConfig(**source)
    used = resolve_columns(footer, TASK, config, "x.parquet")
    assert describe_unread(footer, TASK, config, used) == []


def test_a_missing_column_is_found_in_another_case(
    tmp_path: Path, write_parquet: WriteParquet
) -> None:
    with pytest.raises(JobError, match=r"no column 'prompt' .*; did you mean 'PROMPT'\?"):
        resolve(tmp_path, write_parquet, SourceConfig(), PROMPT=["a"])


def test_an_unfit_column_can_be_ignored(tmp_path: Path, write_parquet: WriteParquet) -> None:
    source = SourceConfig(columns={"seed": None})
    assert resolve(tmp_path, write_parquet, source, prompt=["a"], seed=["x"]) == {
        "prompt": "prompt"
    }


def test_carried_types_are_those_of_the_values(tmp_path: Path, write_parquet: WriteParquet) -> None:
    carried = {"a": pa.array(["x"]).dictionary_encode(), "b": pa.array([1.5])}
    footer = footer_with(tmp_path, write_parquet, prompt=["a"], **carried)
    source = SourceConfig(carry=["b", "a"])
    assert carried_fields(footer, TASK, source) == [("b", pa.float64()), ("a", pa.string())]


@pytest.mark.parametrize(
    ("values", "largest"),
    [
        (pa.array([8, 64, None, 16]), 64),
        (pa.array([-5, -7]), -5),
        (pa.array([8.0, float("nan")]), 8),
        (pa.array([None, None], pa.int32()), None),
        (pa.nulls(2), None),
        (pa.array([8, 64], pa.float16()), 64),
        (pa.array([Decimal("8.5"), Decimal("-1")]), Decimal("8.5")),
    ],
)
def test_the_largest_value_by_the_statistics(
    tmp_path: Path, write_parquet: WriteParquet, values: pa.Array, largest: float | None
) -> None:
    footer = footer_with(
        tmp_path, write_parquet, row_group_size=2, prompt=["a"] * len(values), h=values
    )
    assert largest_value(footer, "h") == largest


def test_the_largest_value_of_nothing_finite(tmp_path: Path, write_parquet: WriteParquet) -> None:
    """pyarrow before 26 writes the least number there is in place of minus infinity."""
    footer = footer_with(tmp_path, write_parquet, prompt=["a"], h=[float("-inf")])
    assert largest_value(footer, "h") in (float("-inf"), -sys.float_info.max)


def test_without_statistics_the_largest_value_is_unknown(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"h": [1, 2]}), buffer, write_statistics=False)
    (tmp_path / "a.parquet").write_bytes(buffer.getvalue())
    assert largest_value(footer_of(str(tmp_path / "a.parquet")), "h") is None


def test_no_flipped_bit_of_a_footer_ends_the_process(
    tmp_path: Path, write_parquet: WriteParquet
) -> None:
    """Some of these kill Parquet's reader; the driver survives them all and names the file."""
    path = Path(write_parquet(tmp_path / "a.parquet", prompt=list("abc"), height=[8, 16, 24]))
    whole = path.read_bytes()
    length = int.from_bytes(whole[-8:-4], "little")
    raw = whole[-8 - length : -8]
    flipped = []
    for bit in range(0, 8 * length, 3):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        flipped.append(bytes(damaged))
    num_deadly = 0
    while (deadly := find_deadly(flipped)) is not None:
        num_deadly += 1
        path.write_bytes(whole[: -8 - length] + flipped[deadly] + whole[-8:])
        if num_deadly == 1:
            with pytest.raises(JobError, match=r"a.parquet: a damaged footer"):
                read_sized(str(path), path.stat().st_size)
        if num_deadly == 4:
            break
        flipped = flipped[deadly + 1 :]
    assert num_deadly


# Nobody's file is to blame for a process that does not start


def unchecked(path: str) -> str:
    with pytest.raises(JobError, match="the input could not be checked") as refused:
        read_sized(path, Path(path).stat().st_size)
    assert "may be sound" in str(refused.value)
    return str(refused.value)


def test_a_check_that_cannot_start_blames_no_file(
    tmp_path: Path, write_parquet: WriteParquet, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_parquet(tmp_path / "a.parquet", prompt=["a"])
    python = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(python))
    assert "No such file" in unchecked(path)
    for script, why in [("exit 3", "exit code 3"), ("kill -9 $$", "signal 9"), ("foo", "foo")]:
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o700)
        told = unchecked(path)
        assert why in told
        assert "a.parquet" not in told


def test_a_check_that_is_killed_says_where(
    tmp_path: Path, write_parquet: WriteParquet, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_parquet(tmp_path / "a.parquet", prompt=["a"])
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nprintf +\nkill -9 $$\n")
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    assert "killed at that of" in (told := unchecked(path))
    assert "a.parquet, probably for want of memory" in told


# Encrypted files


class OpenKms(encryption.KmsClient):
    """Keys that are no secret."""

    def wrap_key(self, key: bytes, name: str) -> bytes:
        return base64.b64encode(key)

    def unwrap_key(self, key: bytes, name: str) -> bytes:
        return base64.b64decode(key)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "encrypted Parquet; ldm_batch takes no keys"),
        ({"plaintext_footer": True}, "columns of it are encrypted; ldm_batch takes no keys"),
    ],
    ids=["whole", "a column"],
)
def test_what_is_encrypted_is_called_that(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    path, table = tmp_path / "a.parquet", pa.table({"prompt": ["a"], "seed": [1]})
    asked = encryption.EncryptionConfiguration("k", column_keys={"k": ["prompt"]}, **settings)
    factory = encryption.CryptoFactory(lambda _: OpenKms())
    properties = factory.file_encryption_properties(encryption.KmsConnectionConfig(), asked)
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    with pytest.raises(JobError, match=rf"a.parquet: {message}"):
        read_sized(str(path), path.stat().st_size)


def test_footers_of_many_files_come_a_few_at_a_time_in_their_order(
    tmp_path: Path, write_parquet: WriteParquet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldm_batch.read.footer.FILES_AT_ONCE", 2)
    paths = [
        Path(write_parquet(tmp_path / f"{n}.parquet", prompt=["a"] * (n + 1))) for n in range(5)
    ]
    files = [SourceFile(path.name, str(path), path.stat().st_size, "1") for path in paths]
    found = read_new_footers(files)
    assert next(found).num_rows == 1
    paths[4].unlink()
    assert [next(found).num_rows for _ in range(3)] == [2, 3, 4]
    with pytest.raises(JobError, match=r"4.parquet: No such file"):
        next(found)

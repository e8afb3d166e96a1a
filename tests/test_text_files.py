"""Text files become Parquet: every line with data a row or a rejection, in bounded memory."""

import bz2
import csv
import gzip
import io
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm_batch.errors import JobError
from ldm_batch.read.text.columns import LINE, MESSAGE, OF_CONVERSION, REASON, TEXT, origin_of
from ldm_batch.read.text.convert import Reading, convert
from ldm_batch.read.text.delimited import MAX_RECORD_LINES
from ldm_batch.read.text.lines import MAX_LINE_BYTES, split_lines
from ldm_batch.read.text.pile import Pile
from ldm_batch.read.text.types import OtherType, parse_number, parser
from ldm_batch.storage import text_format
from ldm_batch.storage.tables import first_kind, is_table, why_beside

CELLS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\r"), max_size=8)
JUNK = st.text(st.sampled_from('a",\n'), max_size=40)


@pytest.fixture
def pile() -> Iterator[Pile]:
    found = Pile()
    yield found
    found.close()


def reading(name: str, **how: Any) -> Reading:
    found = text_format(name)
    assert found is not None
    return Reading(found, **how)


def table_of(data: bytes | BinaryIO, name: str = "a.csv", **how: Any) -> pa.Table:
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    pile = Pile()
    try:
        converted = convert(file, name, reading(name, **how), pile)
        converted.content.seek(0)
        table = pq.read_table(pa.BufferReader(converted.content.read()))
    finally:
        pile.close()
    assert table.num_rows == converted.num_rows
    assert table.num_rows - table[REASON].null_count == converted.num_faulty
    return table


def rows_of(data: bytes, name: str = "a.csv", **how: Any) -> list[dict[str, Any]]:
    """Cells of the rows; in place of one that is none, its line and why."""
    return [
        {name: cell for name, cell in row.items() if name not in OF_CONVERSION}
        if row[REASON] is None
        else {"line": row[LINE], "why": row[MESSAGE]}
        for row in table_of(data, name, **how).to_pylist()
    ]


def lines_of(data: bytes, name: str = "a.csv") -> list[int]:
    return [int(line) for line in table_of(data, name)[LINE].to_pylist()]


# Lines


@given(st.lists(st.binary(max_size=9).map(lambda b: b.replace(b"\n", b"")), max_size=9), st.data())
def test_lines_are_those_of_the_whole_wherever_blocks_end(lines: list[bytes], data: Any) -> None:
    whole = b"\n".join(lines)
    blocks, rest = [], whole
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        blocks.append(rest[:size])
        rest = rest[size:]
    expected = whole.removesuffix(b"\n").split(b"\n") if whole else []
    found = list(split_lines(blocks))
    assert [line.raw for line in found] == [line.removesuffix(b"\r") for line in expected]
    assert [line.number for line in found] == list(range(1, len(expected) + 1))


class Endless(io.RawIOBase):
    """A line of many bytes between two others, which never stands in memory."""

    def __init__(self, before: bytes, num_bytes: int, after: bytes) -> None:
        self._parts = [before, num_bytes, after]
        self.num_bytes = len(before) + num_bytes + len(after)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        while self._parts:
            part = self._parts[0]
            taken = min(size, part) if isinstance(part, int) else min(size, len(part))
            data = b"x" * taken if isinstance(part, int) else part[:taken]
            self._parts[0] = part - taken if isinstance(part, int) else part[taken:]
            if data:
                return data
            del self._parts[0]
        return b""


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("a.csv", b"prompt,seed\na,1\n", b"\nb,2\n"),
        ("a.csv", b'prompt,seed\na,1\n"', b"\nb,2\n"),
        ("a.jsonl", b'{"prompt":"a"}\n{"prompt":"', b'"}\n{"prompt":"b"}\n'),
        ("a.txt", b"a\n", b"\nb\n"),
    ],
)
def test_a_line_of_any_length_is_one_rejection_and_takes_no_memory(
    name: str, before: bytes, after: bytes
) -> None:
    table, _, peak = traced(name, before, 300 * 2**20, after)
    assert table["prompt"].to_pylist() == ["a", None, "b"]
    assert "bytes long, a row may have" in table[MESSAGE][1].as_py()
    assert len(table[TEXT][1].as_py()) <= 4096
    assert peak < 8 * MAX_LINE_BYTES


def test_many_rows_take_no_more_memory_than_a_group_of_them() -> None:
    data = b"prompt\n" + b"".join(b"%d of many prompts\n" % i for i in range(40_000))
    table, size, peak = traced("a.csv", data, 0, b"")
    assert table.num_rows == 40_000
    assert peak - size < 24 * 2**20


def traced(name: str, *parts: bytes | int) -> tuple[pa.Table, int, int]:
    """A table that is read in a process of its own, as tracing memory is not safe beside threads of
    other libraries; and the bytes that it takes, at the end and at most."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(trace, name, *parts).result()


def trace(name: str, *parts: bytes | int) -> tuple[pa.Table, int, int]:
    tracemalloc.start()
    table = table_of(cast(BinaryIO, Endless(*parts)), name)
    return table, *tracemalloc.get_traced_memory()


# CSV


@given(
    st.lists(st.tuples(CELLS, CELLS), max_size=6),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
def test_what_pythons_writer_writes_is_read(
    rows: list[tuple[str, str]], end: str, quoting: Any
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=end, quoting=quoting)
    writer.writerows([("prompt", "b"), *rows])
    found = rows_of(text.getvalue().encode())
    assert found == [{"prompt": a or None, "b": b or None} for a, b in rows]


@given(JUNK)
def test_no_line_with_data_is_lost(junk: str) -> None:
    """Whatever quotes do: between a row and the next there is no line that is not blank."""
    data = f"prompt,b\n{junk}".encode()
    lines = data.split(b"\n")
    table = table_of(data)
    starts = table[LINE].to_pylist()
    assert starts == sorted(set(starts))
    assert bool(starts) == any(line.strip() for line in lines[1:])
    ends = [*starts[1:], len(lines) + 1][: len(starts)]
    cells = {row[LINE]: row for row in table.to_pylist()}
    for start, end in zip(starts, ends, strict=True):
        row = cells[start]
        spanned = "".join(filter(None, (row.get("prompt"), row.get("b")))).count("\n") + 1
        if row[REASON] is not None:
            spanned = 1
        assert not any(line.strip() for line in lines[start - 1 + spanned : end - 1])


def test_quotes_hold_ends_of_lines_and_rows_keep_their_numbers() -> None:
    data = b'\xef\xbb\xbfprompt,seed\r\n"a ""red""\r\ncircle",64\r\n\r\n5" tall,7\r\nlast,8'
    assert rows_of(data) == [
        {"prompt": 'a "red"\ncircle', "seed": "64"},
        {"prompt": '5" tall', "seed": "7"},
        {"prompt": "last", "seed": "8"},
    ]
    assert lines_of(data) == [2, 5, 6]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"b", "has 1 cells, and there are 2 columns"),
        (b"b,1,2", "has 3 cells, and there are 2 columns"),
        (b"b\xff,1", "is not UTF-8: invalid start byte at byte 2 (source.encoding)"),
        (b"b\0,1", "holds a byte 0, which no text has (source.encoding)"),
        (b'"b"c,1', "has a quote with neither ',' nor the end of the line after it"),
        (b'"b,1', "has a quote in line 4 with neither ',' nor the end of the line after it"),
        (b"b\rc,1", "holds a line end of its own kind (CR alone) outside of quotes"),
    ],
)
def test_a_malformed_line_is_a_rejection_and_those_after_it_are_rows(line: bytes, why: str) -> None:
    found = rows_of(b"prompt,seed\na,1\n" + line + b'\n"c" ,2\nc,3\n')
    assert [found[0], found[-1]] == [{"prompt": "a", "seed": "1"}, {"prompt": "c", "seed": "3"}]
    assert [bad["line"] for bad in found[1:-1]] == [3, 4]
    assert why in found[1]["why"]


def test_a_quote_that_nothing_closes_costs_its_line_alone() -> None:
    data = b'prompt,b\n"a,1\n' + b"".join(b"p%d,%d\n" % (i, i) for i in range(20_000))
    found = rows_of(data)
    assert found[0] == {
        "line": 2,
        "why": f"opens a quote that nothing closes up to line {1 + MAX_RECORD_LINES}",
    }
    assert found[1:] == [{"prompt": f"p{i}", "b": str(i)} for i in range(20_000)]


def test_lines_that_all_open_quotes_are_read_a_few_times_and_not_for_each_other() -> None:
    """Each opens one, and none of the others closes it: by records alone that were n^2 lines."""
    data = b"prompt,b\n" + b'a","""b\n' * 50_000
    assert len(rows_of(data)) == 50_000


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"a,a\n1,2\n", "line 1 names two columns 'a'; rename one of them"),
        (b"prompt;seed\na;1\n", "set source.delimiter=';' if that stands between columns"),
        (b"prompt\tseed\na\t1\n", "set source.delimiter='tab' if"),
        (b"\n\nb\xff\na\n", "line 3, which names columns, is not UTF-8"),
        (b"a\rb\rc", "line 1, which names columns, holds a line end of its own kind"),
        (b"ldm_batch_line\n1\n", "a column is named 'ldm_batch_line', as ours are"),
        (",".join(f"c{i}" for i in range(2001)).encode(), "2001 columns, at most 2000"),
        ("prompt\nö\n".encode("utf-16"), "UTF-16 by its first bytes; set source.encoding=utf-16"),
        ("prompt\nö\n".encode("utf-16-le"), "holds a byte 0, which no text has (source.encoding)"),
        (b"PAR1" + bytes(9), "is Parquet by its first bytes; let its name end in .parquet"),
        (b"PK\x03\x04" + bytes(9), "export it as CSV in UTF-8"),
        (
            gzip.compress(b"prompt\na\n", mtime=0),
            "is gzip by its first bytes; let its name end in .gz",
        ),
    ],
)
def test_what_is_no_table_is_refused_by_name(data: bytes, why: str) -> None:
    with pytest.raises(JobError) as refused:
        rows_of(data)
    assert str(refused.value).startswith("a.csv: ")
    assert why in str(refused.value)


def test_columns_without_a_name_are_called_by_their_place() -> None:
    assert rows_of(b",prompt \n0,a\n") == [{"column_1": "0", "prompt": "a"}]


def test_delimiters_may_be_others() -> None:
    expected = [{"prompt": "a", "seed": "1"}]
    assert rows_of(b"prompt;seed\na;1\n", delimiter=";") == expected
    assert rows_of(b"prompt\tseed\na\t1\n", "a.tsv") == expected
    assert rows_of(b"prompt\tseed\n\t\n", "a.tsv") == [{"prompt": None, "seed": None}]
    assert rows_of(b"prompt;seed\n", delimiter=",") == []


def test_the_limit_of_pythons_reader_is_as_before() -> None:
    before = csv.field_size_limit()
    assert rows_of(b"prompt\n" + b"x" * 200_000)[0]["prompt"] == "x" * 200_000
    with pytest.raises(JobError):
        rows_of(b"a,a\n1,2\n")
    assert csv.field_size_limit() == before


# JSON lines


def test_values_of_json_are_the_texts_that_stand_for_them() -> None:
    data = (
        b'{"prompt":"x","seed":123456789012345678901234567890,"n":{"a":[1.50,null,true]}}\n'
        b'\n{"prompt":null}\n{"prompt":"","f":1e5,"b":true,"s":"64"}\n{}\n'
    )
    names = ("prompt", "seed", "n", "f", "b", "s")
    rows = [
        ("x", "123456789012345678901234567890", '{"a":[1.50,null,true]}', None, None, None),
        (None,) * 6,
        ("", None, None, "1e5", "true", "64"),
        (None,) * 6,
    ]
    assert rows_of(data, "a.jsonl") == [dict(zip(names, row, strict=True)) for row in rows]
    assert lines_of(data, "a.jsonl") == [1, 3, 4, 5]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"[1]", 'is no JSON object, such as {"prompt": "..."}'),
        (b'{"prompt":NaN}', "holds NaN, which is no JSON; write null"),
        (b'{"prompt":"\\ud800"}', "holds half a character"),
        (b'{"prompt":"a","prompt":"b"}', "names 'prompt' twice"),
        (b'{"prompt":"a"', "is no JSON: Expecting ',' delimiter"),
        (b'{"prompt":"a\tb"}', "is no JSON: Invalid control character"),
        (b'{"prompt":"\xff"}', "is not UTF-8"),
        (b'{"a":' + b"[" * 70 + b"]" * 70 + b"}", "has lists or objects more than 64 deep"),
        (b'{"a":' + b"[" * 9000, "has lists or objects more than 64 deep"),
    ],
)
def test_a_line_that_is_no_object_is_a_rejection(line: bytes, why: str) -> None:
    found = rows_of(b'{"prompt":"a"}\n' + line + b'\n{"prompt":"c"}', "a.ndjson")
    assert [found[0], found[2]] == [{"prompt": "a"}, {"prompt": "c"}]
    assert (found[1]["line"], why in found[1]["why"]) == (2, True)


@pytest.mark.parametrize("data", [b'[{"prompt":"a"},\n', b'\n{\n "prompt": "a"\n}\n'])
def test_json_as_a_whole_is_refused(data: bytes) -> None:
    with pytest.raises(JobError, match=r"a\.json: JSON over many lines.*one object a line"):
        rows_of(data, "a.json")


def test_rows_that_all_have_other_names_are_no_table() -> None:
    data = b"".join(b'{"k%d":1}\n' % i for i in range(2001))
    with pytest.raises(JobError, match="more than 2000 columns"):
        rows_of(data, "a.jsonl")


# Text


def test_a_prompt_a_line() -> None:
    data = b"one\r\n\n \t\n two \nb\xff\nx\ry\n\xc2\xa0\nlast"
    assert rows_of(data, "a.txt") == [
        {"prompt": "one"},
        {"prompt": " two "},
        {"line": 5, "why": "is not UTF-8: invalid start byte at byte 2 (source.encoding)"},
        {"line": 6, "why": "holds a line end of its own kind (CR alone)"},
        {"prompt": "last"},
    ]


# Bytes


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "latin-1", "cp1252", "shift_jis"])
def test_other_encodings(encoding: str) -> None:
    word = "ü" if encoding != "shift_jis" else "東"
    data = f"prompt,{word}\n{word} {word},1\n".encode(encoding)
    expected = [{"prompt": f"{word} {word}", word: "1"}]
    assert rows_of(data, encoding=encoding) == expected


def test_what_an_encoding_does_not_know_is_a_rejection_of_its_line() -> None:
    data = "prompt\na\nb\nc\n".encode("utf-16-le").replace(b"b\0", b"\0\xd8")
    found = rows_of(data, encoding="utf-16-le")
    assert [found[0], found[2]] == [{"prompt": "a"}, {"prompt": "c"}]
    assert (found[1]["line"], "is not UTF-8" in found[1]["why"]) == (3, True)


@pytest.mark.parametrize(
    ("end", "packed"),
    [
        (".gz", gzip.compress(b"prompt\na\n", mtime=0) + gzip.compress(b"b\n", mtime=0)),
        (".bz2", bz2.compress(b"prompt\na\nb\n")),
        (".zst", bytes(pa.compress(b"prompt\na\nb\n", "zstd", asbytes=True))),
    ],
)
def test_packed_files(end: str, packed: bytes) -> None:
    assert rows_of(packed, f"a.csv{end}") == [{"prompt": "a"}, {"prompt": "b"}]
    with pytest.raises(JobError, match=r"cannot be unpacked as .*damaged or cut off"):
        rows_of(packed[:-3], f"a.csv{end}")


# Types


@pytest.mark.parametrize(
    ("text", "number"),
    [("64", 64), (" 64.0 ", 64), ("1e3", 1000), ("-1.5", -1.5), (str(2**64 - 1), 2**64 - 1)],
)
def test_numbers_are_what_is_written(text: str, number: float) -> None:
    assert parse_number(text) == number
    assert type(parse_number(text)) is type(number)


@pytest.mark.parametrize(
    "text", ["", "a", "NaN", "inf", "1_0", "٣", "0x10", "1,5", "1" * 401, "--1"]
)
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(OtherType):
        parse_number(text)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("int8", {"-128": -128, "127": 127}, ["128", "1.5", "x"]),
        ("uint64", {str(2**64 - 1): 2**64 - 1}, ["-1", str(2**64)]),
        ("float32", {"1.5": 1.5}, ["1e39", "1e999999", "nan"]),
        ("float64", {"1e308": 1e308, "1" * 300: float("1" * 300)}, ["1e309", "x"]),
        ("bool", {"true": True, "FALSE": False}, ["1", "yes"]),
    ],
)
def test_cells_of_types(kind: str, good: dict[str, Any], bad: list[str]) -> None:
    parse = parser(kind)
    assert {text: parse(text) for text in good} == good
    for text in bad:
        with pytest.raises(OtherType):
            parse(text)


def test_a_cell_of_another_type_rejects_its_row() -> None:
    data = b"prompt,score\na,1.5\nb,x\nc,\n"
    table = table_of(data, types={"score": "float64"})
    assert table.schema.field("score").type == pa.float64()
    assert table["score"].to_pylist() == [1.5, None, None]
    assert table[REASON].to_pylist() == [None, "wrong_type", None]
    assert table[MESSAGE][1].as_py() == "score 'x' is no float64 (source.types)"
    both = table_of(b"prompt,score,n\na,x,1.5\n", types={"score": "float64", "n": "int64"})
    assert both[MESSAGE][0].as_py() == (
        "score 'x' is no float64 (source.types); n '1.5' is no int64 (source.types)"
    )
    with pytest.raises(JobError, match=r"no column 'skore' \(source.types\); there are: prompt"):
        table_of(data, types={"skore": "float64"})


# Parquet


def test_the_same_bytes_make_the_same_bytes(pile: Pile) -> None:
    data = b"prompt,width\n" + b"".join(b"%d,%d\n" % (i, i % 99) for i in range(20_000))
    how = reading("a.csv", measured=("width",))
    made = [convert(io.BytesIO(data), name, how, pile) for name in ("a.csv", "b.csv")]
    contents = []
    for one in made:
        one.content.seek(0)
        contents.append(one.content.read())
    assert contents[0] == contents[1]
    file = pq.ParquetFile(pa.BufferReader(contents[0]))
    origin = origin_of(file.schema_arrow)
    assert origin is not None
    assert (origin["sha256"], origin["largest"]) == (made[0].text_sha256, {"width": 98})
    assert file.metadata.num_row_groups == 2


def test_columns_that_come_late_are_null_before(pile: Pile) -> None:
    lines = [b'{"a":"x"}\n'] * 20_000 + [b'{"b":"y"}\n']
    table = table_of(b"".join(lines), "a.jsonl")
    assert table["a"].null_count == 1
    assert table["b"].null_count == 20_000


# Names


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.csv", ("csv", None)),
        ("A.CSV.GZ", ("csv", "gzip")),
        ("a.tsv.zst", ("tsv", "zstd")),
        ("a.ndjson", ("json", None)),
        ("a.json", ("json", None)),
        ("a.txt.bz2", ("text", "bz2")),
        ("a.parquet", None),
        ("csv", None),
        ("a.gz", None),
        ("a.csv.parquet", None),
    ],
)
def test_a_name_says_how_a_file_is_read(name: str, form: tuple[str, str | None] | None) -> None:
    assert text_format(name) == form
    assert is_table(name) == (name.endswith(".parquet") or (form is not None and name != "a.json"))


def test_a_folder_is_read_as_one_kind() -> None:
    def left(*names: str) -> set[str]:
        kind = first_kind(names)
        return {name for name in names if why_beside({kind}, name)}

    assert left("a.csv", "b.jsonl", "README.txt") == {"README.txt"}
    assert left("a.parquet", "b.csv", "c.txt") == {"b.csv", "c.txt"}
    assert left("a.txt", "b.txt") == set()

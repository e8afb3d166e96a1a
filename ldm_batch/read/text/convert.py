"""A text file -> a Parquet file that is read as any other, in bounded memory.

The same bytes, read in the same way by the same pyarrow, make the same bytes. Must not know jobs,
plans or stores.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import IO, Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ldm_batch.errors import JobError
from ldm_batch.read.text.columns import LINE, MESSAGE, OF_CONVERSION, ORIGIN_KEY, REASON, TEXT
from ldm_batch.read.text.delimited import read_delimited
from ldm_batch.read.text.json_lines import read_json_lines
from ldm_batch.read.text.lines import split_lines
from ldm_batch.read.text.pile import Pile
from ldm_batch.read.text.prompts import read_prompts
from ldm_batch.read.text.records import MAX_COLUMNS, Record
from ldm_batch.read.text.stream import HashedFile, read_text
from ldm_batch.read.text.types import OtherType, Parse, arrow_type, parse_number, parsers
from ldm_batch.records import Reason
from ldm_batch.storage import TextFormat

CONVERTER = 1
"""Another number where the same text makes other rows."""
ROWS_PER_GROUP = 16_384
BYTES_PER_GROUP = 16 * 1024 * 1024
"""Of text, in memory at once and in a row group, but for the last line."""
CELL_BYTES = 32
"""Of a cell, beside those of its text."""
MAX_VALUE_CHARS = 200
"""Of a value that a message repeats."""
LARGEST_STATED = 10**6


@dataclass(frozen=True, slots=True)
class Reading:
    """How a file of text is read."""

    format: TextFormat
    encoding: str = "utf-8"
    delimiter: str | None = None
    """Of CSV; None: a comma."""
    types: Mapping[str, str] = field(default_factory=dict)
    """Of columns that are not to be text."""
    measured: tuple[str, ...] = ()
    """Columns whose largest whole number the footer is to say: how large images may become."""

    def identity(self) -> dict[str, Any]:
        """What of it makes other rows of the same bytes."""
        return {
            "converter": CONVERTER,
            "format": self.format.lines,
            "compression": self.format.compression,
            "encoding": self.encoding,
            "delimiter": self.delimiter,
            "types": dict(sorted(self.types.items())),
            "measured": sorted(self.measured),
        }


@dataclass(frozen=True, slots=True)
class Converted:
    """A text file as Parquet."""

    content: BinaryIO
    """The Parquet file, for as long as its pile is open."""
    size_bytes: int
    text_sha256: str
    """SHA-256 (hexadecimal) of the file that it was made of."""
    text_bytes: int
    """How many that had."""
    num_rows: int
    num_faulty: int
    """Of these, rows that stand for lines which are none."""
    first_fault: str


def convert(file: BinaryIO, uri: str, reading: Reading, pile: Pile) -> Converted:
    """Read a text file once, and write what stands in it as Parquet.

    Args:
        file: at its start.
        uri: what messages call it.
        reading: how.
        pile: where the Parquet file goes.

    Raises:
        JobError: it is not what its name says, or no table; nothing is left of it in the pile.
        OSError: there is no room.
    """
    hashed = HashedFile(file)
    lines = split_lines(read_text(hashed, uri, reading.format.compression, reading.encoding))
    records = _read_records(lines, uri, reading)
    with tempfile.TemporaryFile(prefix="ldm_batch-") as spool, closing(records):
        rows = _Rows(spool, uri, reading)
        for group in _groups(records):
            rows.add(group)
        origin = {**reading.identity(), "sha256": hashed.finish(), "largest": rows.largest}
        start = pile.begin().tell()
        try:
            rows.write(pile.begin(), {ORIGIN_KEY: json.dumps(origin, sort_keys=True).encode()})
        except BaseException:
            pile.cut(start)
            raise
    content = pile.end(start)
    return Converted(
        content,
        size_bytes=content.seek(0, 2),
        text_sha256=str(origin["sha256"]),
        text_bytes=hashed.size_bytes,
        num_rows=rows.num_rows,
        num_faulty=rows.num_faulty,
        first_fault=rows.first_fault,
    )


def _read_records(lines: Any, uri: str, reading: Reading) -> Any:
    if reading.format.lines == "json":
        return read_json_lines(lines, uri)
    if reading.format.lines == "text":
        return read_prompts(lines, uri)
    tab = "\t" if reading.format.lines == "tsv" else None
    return read_delimited(lines, uri, reading.delimiter or tab)


def _groups(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Records, as many at once as make a row group."""
    group: list[Record] = []
    num_bytes = 0
    for record in records:
        group.append(record)
        num_bytes += record.num_bytes + CELL_BYTES * len(record.cells)
        if len(group) == ROWS_PER_GROUP or num_bytes >= BYTES_PER_GROUP:
            yield group
            group, num_bytes = [], 0
    if group:
        yield group


class _Rows:
    """Rows on their way: in a local file until all columns are known, then as Parquet."""

    def __init__(self, spool: Any, uri: str, reading: Reading) -> None:
        self._spool, self._uri = spool, uri
        self._types, self._parsers = reading.types, parsers(reading.types)
        self._measured = reading.measured
        self._names: dict[str, None] = {}
        self._starts: list[int] = []
        self.largest: dict[str, int] = {}
        self.num_rows = self.num_faulty = 0
        self.first_fault = ""

    def add(self, group: list[Record]) -> None:
        """Keep the rows of a group."""
        self._learn_names(group)
        columns: dict[str, Any] = {
            LINE: [record.line for record in group],
            REASON: [str(Reason.MALFORMED_LINE) if record.fault else None for record in group],
            MESSAGE: [record.fault or None for record in group],
            TEXT: [
                record.raw.decode("utf-8", "replace") if record.fault else None for record in group
            ],
        }
        for name in self._names:
            cells: list[Any] = [record.cells.get(name) for record in group]
            if name in self._measured:
                self._measure(name, cells)
            if name in self._parsers:
                _parse_cells(name, self._types[name], self._parsers[name], cells, columns)
            columns[name] = cells
        first = next((i for i, reason in enumerate(columns[REASON]) if reason), None)
        if first is not None:
            place = f"line {columns[LINE][first]}: {columns[MESSAGE][first]}"
            self.first_fault = self.first_fault or place
            self.num_faulty += sum(reason is not None for reason in columns[REASON])
        self.num_rows += len(group)
        self._keep(pa.record_batch(columns, schema=self._schema()))

    def write(self, file: IO[bytes], metadata: dict[bytes, bytes]) -> None:
        """Write all of them as Parquet, a row group for each group.

        Raises:
            JobError: a type is given to a column that there is not.
        """
        for name in self._types:
            if name not in self._names and self.num_rows:
                raise JobError(
                    f"{self._uri}: no column {name!r} (source.types); there are: "
                    f"{', '.join([*self._names][:20])}"
                )
        schema = self._schema().with_metadata(metadata)
        with pq.ParquetWriter(
            file, schema, version="2.6", compression="zstd", write_page_checksum=True
        ) as writer:
            for start in self._starts:
                self._spool.seek(start)
                with pa.ipc.open_stream(self._spool) as stream:
                    writer.write_table(_completed(stream.read_all(), schema))

    def _learn_names(self, group: list[Record]) -> None:
        for record in group:
            if not record.cells.keys() <= self._names.keys():
                self._names.update(dict.fromkeys(record.cells))
        if len(self._names) > MAX_COLUMNS:
            raise JobError(
                f"{self._uri}: more than {MAX_COLUMNS} columns; a table has the same few names in "
                "every row"
            )
        if taken := self._names.keys() & OF_CONVERSION.keys():
            raise JobError(f"{self._uri}: a column is named {min(taken)!r}, as ours are; rename it")

    def _schema(self) -> pa.Schema:
        kinds = {name: arrow_type(self._types.get(name, "string")) for name in self._names}
        return pa.schema({**kinds, **OF_CONVERSION})

    def _measure(self, name: str, cells: Iterable[str | None]) -> None:
        for text in {cell for cell in cells if cell is not None}:
            try:
                number = min(parse_number(text), LARGEST_STATED)
            except OtherType:
                continue
            self.largest[name] = max(self.largest.get(name, 0), int(number))

    def _keep(self, batch: pa.RecordBatch) -> None:
        self._spool.seek(0, 2)
        self._starts.append(self._spool.tell())
        with pa.ipc.new_stream(self._spool, batch.schema) as stream:
            stream.write_batch(batch)


def _parse_cells(
    name: str, kind: str, parse: Parse, cells: list[Any], columns: Mapping[str, list[Any]]
) -> None:
    """Make values of the texts of a column; a row of which one is none gets a reason."""
    for i, text in enumerate(cells):
        if text is None:
            continue
        try:
            cells[i] = None if text == "" and kind != "string" else parse(text)
        except OtherType:
            cells[i] = None
            columns[REASON][i] = columns[REASON][i] or str(Reason.WRONG_TYPE)
            shown = f"{text[:MAX_VALUE_CHARS]!r}{' ...' * (len(text) > MAX_VALUE_CHARS)}"
            told = f"{name} {shown} is no {kind} (source.types)"
            before = columns[MESSAGE][i]
            columns[MESSAGE][i] = told if before is None else f"{before}; {told}"


def _completed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows with the columns that were only met later, of nulls."""
    here = {*table.schema.names}
    columns = [
        table.column(f.name) if f.name in here else pa.nulls(len(table), f.type) for f in schema
    ]
    return pa.table(columns, schema=schema)

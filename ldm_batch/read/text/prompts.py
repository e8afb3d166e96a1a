"""A text file of one prompt a line -> rows; a line without a letter is none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ldm_batch.read.text.lines import Line
from ldm_batch.read.text.records import Record, fault_of_bytes, fault_of_encoding, faulty

COLUMN = "prompt"
"""What the only column is called."""


def read_prompts(lines: Iterable[Line], uri: str) -> Iterator[Record]:
    """A row for every line that is not blank; a prompt is kept as it is written.

    Args:
        lines: of the file.
        uri: what messages call it.
    """
    for line in lines:
        if not line.raw or line.raw.isspace():
            continue
        fault = fault_of_bytes(line)
        if not fault and b"\r" in line.raw:
            fault = "holds a line end of its own kind (CR alone)"
        if fault:
            yield faulty(line, fault)
            continue
        try:
            text = line.raw.decode()
        except UnicodeDecodeError as error:
            yield faulty(line, fault_of_encoding(error))
            continue
        if text.strip():
            yield Record(line.number, len(line.raw), {COLUMN: text})

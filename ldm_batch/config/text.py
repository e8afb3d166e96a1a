"""How tables that are text are read: encodings, delimiters, types; and the checks of these.

Pure; must not know files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ldm_batch.config.bounds import one_of, suggest

ENCODINGS = (
    *("utf-8", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"),
    *("cp1250", "cp1251", "cp1252", "cp1253", "cp1254", "iso8859-2", "iso8859-15", "koi8-r"),
    *("shift_jis", "cp932", "euc_jp", "gb18030", "big5", "euc_kr", "cp949"),
)
TYPES = (
    *("string", "bool", "int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64", "float32", "float64"),
)
DELIMITER_NAMES = {"tab": "\t", "\\t": "\t"}
NO_DELIMITERS = '"\r\n\0'


def delimiter_of(text: str | None) -> str | None:
    """The character that a job's `source.delimiter` stands for."""
    return None if text is None else DELIMITER_NAMES.get(text, text)


def check_text(encoding: str, delimiter: str | None, types: Mapping[str, str]) -> Iterator[str]:
    """Problems of the fields of `source` that text is read by, a line each."""
    yield from one_of("source.encoding", encoding, ENCODINGS)
    mark = delimiter_of(delimiter)
    if mark is not None and (len(mark) != 1 or mark in NO_DELIMITERS):
        yield f"source.delimiter: {delimiter!r} is not one character, such as ';', or 'tab'"
    for name, kind in types.items():
        if kind not in TYPES:
            yield f"source.types.{name}: unknown type {kind!r}{suggest(str(kind), TYPES)}"

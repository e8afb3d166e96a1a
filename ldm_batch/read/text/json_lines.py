"""JSON lines -> rows: every value as the text that stands for it, numbers to their last digit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

from ldm_batch.errors import JobError, one_line
from ldm_batch.read.text.lines import Line
from ldm_batch.read.text.records import Record, fault_of_bytes, fault_of_encoding, faulty

MAX_DEPTH = 64
"""Of lists and objects within each other: Python gives up somewhere above."""


class _NotRow(Exception):
    """Why a line is no row."""


class _Number(str):
    """A number as it is written."""


def read_json_lines(lines: Iterable[Line], uri: str) -> Iterator[Record]:
    """A row for every line that is not blank.

    Strings are cells as they are, null and a name that is missing are both null; numbers, true and
    false stay as they are written; lists and objects become JSON without spaces.

    Args:
        lines: of the file.
        uri: what messages call it.

    Raises:
        JobError: the file is one list or one object over many lines.
    """
    is_first = True
    for line in lines:
        if not line.raw or line.raw.isspace():
            continue
        if is_first:
            _refuse_whole(line, uri)
            is_first = False
        fault = fault_of_bytes(line)
        try:
            if not fault:
                yield Record(line.number, len(line.raw), _cells(line.raw.decode()))
                continue
        except UnicodeDecodeError as error:
            fault = fault_of_encoding(error)
        except RecursionError:
            fault = _too_deep()
        except _NotRow as error:
            fault = str(error)
        except ValueError as error:
            fault = f"is no JSON: {one_line(error, 200)}"
        yield faulty(line, fault)


def _refuse_whole(line: Line, uri: str) -> None:
    if line.raw.lstrip().startswith(b"[") or line.raw.strip() == b"{":
        raise JobError(
            f"{uri}: JSON over many lines, which is not read; write one object a line (JSON "
            "lines), as `jq -c '.[]'` does"
        )


def _cells(text: str) -> dict[str, str | None]:
    row = _LOADER.decode(text.strip(" \t\r"))
    if not isinstance(row, dict):
        raise _NotRow('is no JSON object, such as {"prompt": "..."}')
    cells = {name: _cell(value) for name, value in row.items()}
    if "\\u" in text:
        _refuse_halves(cells)
    return cells


def _cell(value: Any) -> str | None:
    if value is None or type(value) is str:
        return value
    return _as_json(value, MAX_DEPTH)


def _as_json(value: Any, depth: int) -> str:
    """A value as JSON without spaces, numbers as they were written."""
    if not depth:
        raise _NotRow(_too_deep())
    if isinstance(value, _Number):
        return str(value)
    if isinstance(value, dict):
        parts = (
            f"{json.dumps(k, ensure_ascii=False)}:{_as_json(v, depth - 1)}"
            for k, v in value.items()
        )
        return f"{{{','.join(parts)}}}"
    if isinstance(value, list):
        return f"[{','.join(_as_json(v, depth - 1) for v in value)}]"
    return json.dumps(value, ensure_ascii=False)


def _too_deep() -> str:
    return f"has lists or objects more than {MAX_DEPTH} deep"


def _refuse_halves(cells: dict[str, str | None]) -> None:
    for name, value in cells.items():
        for text in (name, value or ""):
            try:
                text.encode()
            except UnicodeEncodeError:
                raise _NotRow(f"{name!a} holds half a character (\\ud800 to \\udfff)") from None


def _refuse_twice(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _NotRow(f"names {one_line(twice, 100)!r} twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise _NotRow(f"holds {name}, which is no JSON; write null")


_LOADER = json.JSONDecoder(
    parse_int=_Number,
    parse_float=_Number,
    parse_constant=_refuse_constant,
    object_pairs_hook=_refuse_twice,
)

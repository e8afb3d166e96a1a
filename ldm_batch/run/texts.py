"""A typed word becomes one of Hydra's grammar: what is a text stays the text that was typed.

Hydra's own are a value in quotes, `null` and lists; several of these, with commas between, are
values of a sweep. All else that a field of texts is given is one text. The other direction is
`plan/command_line.py`'s. Must not know what a text may be.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from ldm_batch.config.texts import TextKind, text_fields, text_kind
from ldm_batch.errors import JobError
from ldm_batch.plan.command_line import WORD
from ldm_batch.run.no_code import check_interpolation

QUOTED = re.compile(r"""'([^'\\]|\\.)*'|"([^"\\]|\\.)*\"""", re.DOTALL)
UNPRINTABLE = re.compile(r"[\0\ud800-\udfff]")
OPENING, CLOSING = "([{", ")]}"


def as_hydra_reads(word: str, is_group: Callable[[str], bool]) -> str:
    """A word of the command line in Hydra's grammar.

    Args:
        is_group: tells of a name whether options of a group are chosen by it.

    Raises:
        JobError: `${...}` in a text names no field of the job, or it cannot be written in UTF-8.
    """
    if UNPRINTABLE.search(word):
        raise JobError(f"{word!a}: holds what is no text in UTF-8, which no plan could record")
    match = WORD.fullmatch(word)
    if match is None or match["prefix"] == "~" or is_group(match["key"]):
        return word
    key, value = match["key"], match["value"]
    if f"{key}.*" in text_fields():
        return word[: match.start("value")] + _keys(key, value)
    kind = text_kind(key)
    return word if kind is None else word[: match.start("value")] + _values(key, value, kind)


def is_sweep(word: str) -> bool:
    """Tell whether a word, as Hydra reads it, gives several values.

    Raises:
        HydraException: it cannot be read.
    """
    return bool(OverridesParser.create().parse_override(word).is_sweep_override())


def _values(key: str, value: str, kind: TextKind) -> str:
    """What a field of texts is given: one value, or those of a sweep."""
    pieces = _split(value)
    are_values = all(piece == "null" or QUOTED.fullmatch(piece) for piece in pieces)
    if kind != "one":
        are_values = all(p == "null" or QUOTED.fullmatch(p) or _is_list(p) for p in pieces)
    if len(pieces) > 1 and are_values:
        return ",".join(_one_value(key, piece, kind) for piece in pieces)
    return _one_value(key, value, kind)


def _one_value(key: str, value: str, kind: TextKind) -> str:
    if value == "null":
        return value
    if kind == "one":
        if _hydra_reads_a_list(value):
            raise JobError(
                f"{key}: {value} is a list, but one text is asked for; a text in brackets needs "
                f"quotes of its own: \"{key}='{value}'\""
            )
        return value if QUOTED.fullmatch(value) else _text(key, value)
    if _is_list(value):
        pieces = _split(value[1:-1]) if value[1:-1].strip() else []
        return f"[{','.join(_piece(key, piece) for piece in pieces)}]"
    text = value if QUOTED.fullmatch(value) else _text(key, value)
    return f"[{text}]" if kind == "many" else text


def _keys(key: str, value: str) -> str:
    """A mapping whose values are texts; what is none stays as it is, for Hydra to judge."""
    inner = value[1:-1]
    if not (value.startswith("{") and value.endswith("}") and inner.strip()):
        return value
    pairs = [piece.partition(":") for piece in _split(inner)]
    if not all(colon for _, colon, _ in pairs):
        return value
    return f"{{{','.join(f'{name}:{_piece(key, text.strip())}' for name, _, text in pairs)}}}"


def _piece(key: str, piece: str) -> str:
    """A text within a list or a mapping."""
    is_hydras = piece == "null" or QUOTED.fullmatch(piece) or piece[:1] in ("[", "{")
    return piece if is_hydras else _text(key, piece)


def _text(key: str, text: str) -> str:
    """A text in Hydra's quotes; `${` is an interpolation only where a field's name follows."""
    position, parts = 0, []
    for match in re.finditer(r"(\\*)\$\{", text):
        is_escaped, stop = len(match[1]) % 2, text.find("}", match.end())
        parts.append(text[position : match.start()])
        if is_escaped:
            parts.append(match[0])
        elif stop < 0:
            parts.append(f"{match[1] * 2}\\${{")
        else:
            check_interpolation(key, text[match.end() : stop])
            parts.append(match[0])
        position = match.end()
    whole = "".join([*parts, text[position:]])
    escaped = re.sub(r"(\\*)(?='|\Z)", r"\1\1", whole)
    return "'" + escaped.replace("'", "\\'") + "'"


def _is_list(value: str) -> bool:
    return value.startswith("[") and value.endswith("]") and len(_split(value)) == 1


def _hydra_reads_a_list(value: str) -> bool:
    if not (value.startswith("[") and value.endswith("]")):
        return False
    try:
        return isinstance(OverridesParser.create().parse_rule(value, "value"), list)
    except HydraException:
        return False


def _split(text: str) -> list[str]:
    """Pieces between commas, without spaces around; commas in quotes and in brackets part none.

    Quotes count where a piece, of whatever depth, begins with them.
    """
    pieces, depth, start, position, begins = [], 0, 0, 0, True
    while position < len(text):
        quoted = QUOTED.match(text, position) if begins else None
        if quoted:
            position, begins = quoted.end(), False
            continue
        character = text[position]
        if character == "," and depth == 0:
            pieces.append(text[start:position].strip())
            start = position + 1
        depth = max(0, depth + (character in OPENING) - (character in CLOSING))
        begins = character in ",:[{" or (begins and character.isspace())
        position += 1
    return [*pieces, text[start:].strip()]


def refuse_several_values(word: str) -> JobError:
    """What is said of the values of a sweep where one job is to be run."""
    return JobError(
        f"{word}: several values are several jobs: put -m before all settings; a list is in "
        "brackets, FIELD=[a,b]"
    )

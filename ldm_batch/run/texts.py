"""A typed word becomes one of Hydra's grammar: what is a text stays the text that was typed.

Hydra's own are a value in quotes, `null` and lists; several of these, with commas between, are
values of a sweep. All else that a field of texts is given is one text. The other direction is
`plan/command_line.py`'s. Must not know what a text may be.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from ldm_batch.config.texts import TextKind, is_text, text_fields, text_kind
from ldm_batch.errors import JobError
from ldm_batch.plan.command_line import WORD
from ldm_batch.run.no_code import NO_TEXT, UNPRINTABLE, check_interpolation

QUOTED = re.compile(r"""'([^'\\]|\\.)*'|"([^"\\]|\\.)*\"""", re.DOTALL)
OPENING, CLOSING = "([{", ")]}"
MIXED = re.compile(r"(upscale\.)?model\.loras|cluster\.runtime_env(\..*)?", re.DOTALL)
"""Fields of mappings and lists in which texts stand beside numbers."""
PLAIN_KEY, HYDRAS_KEY = re.compile(r"[\w-]+"), re.compile(r"[\w/.@-]+", re.ASCII)


def as_hydra_reads(word: str, is_group: Callable[[str], bool]) -> str:
    """A word of the command line in Hydra's grammar.

    Args:
        is_group: tells of a name whether options of a group are chosen by it.

    Raises:
        JobError: `${...}` in a text names no field of the job, or it cannot be written in UTF-8.
    """
    if UNPRINTABLE.search(word):
        encoding = sys.getfilesystemencoding()
        how = "" if encoding == "utf-8" else f"; Python reads {encoding} here, set PYTHONUTF8=1"
        raise JobError(f"{word!a}: {NO_TEXT}{how}")
    match = WORD.fullmatch(word)
    if match is None or match["prefix"] == "~" or is_group(match["key"]):
        return word
    key, value = match["key"], match["value"]
    if f"{key}.*" in text_fields():
        return word[: match.start("value")] + _keys(key, value)
    kind, before = text_kind(key), word[: match.start("value")]
    if kind is None:
        return before + _mixed_values(key, value) if MIXED.fullmatch(key) else word
    for name in (field.removesuffix(".*") for field in text_fields() if field.endswith(".*")):
        own = key.removeprefix(f"{name}.")
        if own != key and not PLAIN_KEY.fullmatch(own) and HYDRAS_KEY.fullmatch(own):
            return f"{match['prefix'] or ''}{name}={{{own}:{_one_value(key, value, kind)}}}"
    return before + _values(key, value, kind)


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


def _mixed_values(key: str, value: str) -> str:
    """What a field of mappings and lists is given: one value, or those of a sweep."""
    pieces = _split(value)
    if len(pieces) > 1 and all(piece == "null" or piece[:1] in ("[", "{") for piece in pieces):
        return ",".join(_mixed(key, piece) for piece in pieces)
    return _mixed(key, value)


def _mixed(path: str, value: str) -> str:
    """A value with its texts in Hydra's quotes, at any depth; `[]` in a path is a list's piece."""
    inner = value[1:-1]
    if _is_enclosed(value, "[") and inner.strip():
        return f"[{','.join(_mixed(f'{path}[]', piece) for piece in _split(inner))}]"
    if _is_enclosed(value, "{") and inner.strip():
        pairs = [piece.partition(":") for piece in _split(inner)]
        values = [_mixed(f"{path}.{name.strip()}", text.strip()) for name, _, text in pairs]
        named = zip(pairs, values, strict=True)
        return f"{{{','.join(f'{name}{colon}{text}' for (name, colon, _), text in named)}}}"
    if value == "null" or QUOTED.fullmatch(value) or value[:1] in ("[", "{"):
        return value
    return _text(path, value) if is_text(path) or not _hydra_reads(value) else value


def _hydra_reads(value: str) -> bool:
    try:
        OverridesParser.create().parse_override(f"x={value}")
    except HydraException:
        return False
    return True


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
    return _is_enclosed(value, "[")


def _is_enclosed(value: str, opening: str) -> bool:
    """Tell whether the bracket that begins a text is closed at its end, and not before."""
    if not value.startswith(opening):
        return False
    ends = (position for position, _, depth in _outside_quotes(value) if depth == 0)
    return next(ends, None) == len(value) - 1 and value[-1] == CLOSING[OPENING.index(opening)]


def _hydra_reads_a_list(value: str) -> bool:
    return _is_list(value) and _hydra_reads(value)


def _split(text: str) -> list[str]:
    """Pieces between commas, without spaces around; commas in quotes and in brackets part none."""
    commas = [at for at, sign, depth in _outside_quotes(text) if sign == "," and depth == 0]
    starts, ends = [0, *(at + 1 for at in commas)], [*commas, len(text)]
    return [text[start:end].strip() for start, end in zip(starts, ends, strict=True)]


def _outside_quotes(text: str) -> Iterator[tuple[int, str, int]]:
    """Position and character of all that stands in no quotes, and how deep in brackets one is then.

    Quotes count where a piece, of whatever depth, begins with them.
    """
    depth, position, begins = 0, 0, True
    while position < len(text):
        quoted = QUOTED.match(text, position) if begins else None
        if quoted:
            position, begins = quoted.end(), False
            continue
        character = text[position]
        depth = max(0, depth + (character in OPENING) - (character in CLOSING))
        yield position, character, depth
        begins = character in ",:[{" or (begins and character.isspace())
        position += 1


def refuse_several_values(word: str) -> JobError:
    """What is said of the values of a sweep where one job is to be run."""
    return JobError(
        f"{word}: several values are several jobs: put -m before all settings; a list is in "
        "brackets, FIELD=[a,b]"
    )

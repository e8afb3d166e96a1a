"""Commands as they are printed and recorded: a shell, and then a job, reads them back as meant.

The other direction, from a typed word to a value, is `run/texts.py`'s. Must not know stores or
workers.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

from ldm_batch.config import JobConfig, parse_loras
from ldm_batch.config.texts import place_fields, text_kind

PROGRAM = ("python", "-m", "ldm_batch.run")
CONFIG_DIR = "--config-dir="
WORD = re.compile(r"(?P<prefix>\+\+|\+|~)?(?P<key>[^=\s]*)=(?P<value>.*)", re.DOTALL)
"""FIELD=VALUE, with what Hydra lets stand before it."""
OF_ONE_RUN = ("shards", "overwrite", "dry_run", "plan_again")
"""Fields that the command which resumes leaves out."""
OUR_SHELL_WORD = re.compile(r"[\w@%+=:,./-]+", re.ASCII)
RUNTIME_ENV, VARIABLES = "cluster.runtime_env", "env_vars"
IN_DOUBLE_QUOTES = re.compile(r"[^\"$`\\!]*")


def resume_command(given: JobConfig, job: JobConfig, words: Sequence[str]) -> str:
    """The command that goes on with a job from any folder, without the choice of shards and without
    environment variables of workers, whose values are nobody's to read; see `variables_to_set`.

    Args:
        given: as it was composed.
        job: the same with its paths independent of the working directory.
        words: the command's own; `--config-dir=FOLDER` first, if there is one.
    """
    kept: dict[str, str] = {}
    for word in words:
        match = WORD.fullmatch(word)
        if match is None or word.startswith("-"):
            kept[word] = word
            continue
        prefix, key = match["prefix"] or "", match["key"]
        if key.startswith("hydra") or key in OF_ONE_RUN or _is_variable(key):
            continue
        kind = text_kind(key)
        if prefix == "~" or not _has(given, key):
            kept[prefix + key] = word
        elif key == RUNTIME_ENV and VARIABLES in given.cluster.runtime_env:
            rest = {k: v for k, v in given.cluster.runtime_env.items() if k != VARIABLES}
            kept[prefix + key] = prefix + _setting(key, rest)
        elif kind is None:
            kept[prefix + key] = word
        elif key not in place_fields():
            kept[prefix + key] = prefix + text_word(key, _value_at(given, key))
    places = [(key, _value_at(job, key), _value_at(given, key)) for key in place_fields()]
    for key, value, before in places:
        if value != before or _is_local(value) or any(_key_of(word) == key for word in words):
            kept[key] = text_word(key, value)
    kept.update(_moved(given, job))
    for key, value in (("source.uri", _one_or_all(job.source.uri)), ("sink.uri", job.sink.uri)):
        kept.pop(key, None)
        kept[key] = text_word(key, value)
    return shell_line([*PROGRAM, *kept.values()])


def _moved(given: JobConfig, job: JobConfig) -> Iterator[tuple[str, str]]:
    """Settings of what names a place somewhere within, where that is written otherwise now."""
    for section, was, now in (
        ("model", given.model, job.model),
        ("upscale.model", given.upscale.model, job.upscale.model),
    ):
        name = f"{section}.loras"
        if now.loras and parse_loras(name, was.loras) != now.loras:
            yield name, _setting(name, now.loras)
    name, folder = "cluster.runtime_env.working_dir", job.cluster.runtime_env.get("working_dir")
    if folder != given.cluster.runtime_env.get("working_dir"):
        yield f"++{name}", f"++{_setting(name, folder)}"


def variables_to_set(runtime_env: Any) -> str:
    """What to add to a command that resumes: it leaves out the values of environment variables;
    empty where a job has none."""
    names = runtime_env.get(VARIABLES) if isinstance(runtime_env, Mapping) else None
    if not isinstance(names, Mapping) or not names:
        return ""
    fields = " ".join(f"{RUNTIME_ENV}.{VARIABLES}.{name}=VALUE" for name in names)
    return f"where the command line set these, add them, their values are not recorded: {fields}"


def resume_at(command: str, sink: str, options: Sequence[str] = ()) -> str:
    """A recorded command for a dataset that stands elsewhere by now.

    Args:
        command: as its plan recorded it.
        sink: where the dataset is.
        options: more words, which win over the recorded ones of their fields.
    """
    try:
        words = shlex.split(command)
    except ValueError:  # a plan that somebody wrote
        return command
    if "sink.uri" not in map(_key_of, words):
        return command
    new = [text_word("sink.uri", sink), *options]
    replaced = {_key_of(word) for word in new}
    return shell_line([*(w for w in words if _key_of(w) not in replaced), *new])


def settings_of(job: JobConfig, base: JobConfig) -> list[str]:
    """What a command says to make a job of another one: FIELD=VALUE for each that differs."""
    before = dict(_leaves(base))
    return [_setting_of(path, value) for path, value in _leaves(job) if value != before[path]]


def section_settings(prefix: str, section: Any) -> list[str]:
    """FIELD=VALUE for each field of one section that is not at its default."""
    usual = dict(_leaves(type(section)()))
    return [_setting_of(f"{prefix}.{k}", v) for k, v in _leaves(section) if v != usual[k]]


def _setting_of(path: str, value: Any) -> str:
    return f"{'++' if isinstance(value, dict) else ''}{_setting(path, value)}"


def text_word(path: str, value: Any) -> str:
    """FIELD=VALUE of a field of texts, as the command line reads it back."""
    if value is None:
        return f"{path}=null"
    if isinstance(value, list | tuple):
        return f"{path}=[{','.join(map(_in_list, value))}]"
    text = _escaped(str(value))
    is_read_otherwise = text[:1] in ("'", '"', "[") or text.startswith("null")
    return f"{path}={_in_quotes(text) if is_read_otherwise else text}"


def shell_line(words: Sequence[str]) -> str:
    """Words as a shell reads them back, with as few quotes as can be."""
    return " ".join(map(_for_shell, words))


def _for_shell(word: str) -> str:
    if OUR_SHELL_WORD.fullmatch(word):
        return word
    if "'" in word and IN_DOUBLE_QUOTES.fullmatch(word):
        return f'"{word}"'
    return shlex.quote(word)


def _setting(path: str, value: Any) -> str:
    if text_kind(path) is not None and isinstance(value, str | list | tuple | None):
        return text_word(path, value)
    return f"{path}={_as_override(value)}"


def _in_list(value: Any) -> str:
    if not isinstance(value, str):
        return _as_override(value)
    text = _escaped(value)
    is_plain = not re.search(r"""[][(){},'"]""", text) and text == text.strip()
    return text if text and is_plain and text != "null" else _in_quotes(text)


def _as_override(value: Any) -> str:
    """A value as Hydra's override grammar reads it back, of the same type."""
    if value is None:
        return "null"
    if isinstance(value, bool | int | float):
        return str(value).lower()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {n: v for n, v in dataclasses.asdict(value).items() if v is not None}
    if isinstance(value, Mapping):
        pairs = (f"{_key(str(key))}:{_as_override(inner)}" for key, inner in value.items())
        return f"{{{','.join(pairs)}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_as_override, value))}]"
    text = _escaped(str(value))
    is_plain = re.fullmatch(r"[a-zA-Z/][\w/.:@-]*", text, re.ASCII)
    if is_plain and text.lower() not in ("null", "true", "false", "inf", "nan"):
        return text
    return _in_quotes(text)


def _key(text: str) -> str:
    is_plain = re.fullmatch(r"[\w/.@-]+", text, re.ASCII)
    return text if is_plain else _in_quotes(text)


def _escaped(text: str) -> str:
    """A text whose `${` are no interpolations: a backslash before, and those before it doubled."""
    return re.sub(r"(\\*)\$\{", lambda match: f"{match[1] * 2}\\${{", text)


def _in_quotes(text: str) -> str:
    """In the quotes that need less: backslashes mean themselves, but before one and at the end."""
    quote = "'" if '"' in text and "'" not in text else '"'
    escaped = re.sub(rf"(\\*)(?={quote}|\Z)", r"\1\1", text)
    return quote + escaped.replace(quote, f"\\{quote}") + quote


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Fields that are no sections, dotted, and their values."""
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def _has(job: JobConfig, path: str) -> bool:
    try:
        _value_at(job, path)
    except (AttributeError, KeyError):
        return False
    return True


def _value_at(job: JobConfig, path: str) -> Any:
    """The value of a field, dotted; also of a key that a user gave one."""
    return reduce(
        lambda node, name: node[name] if isinstance(node, Mapping) else getattr(node, name),
        path.split("."),
        job,
    )


def _key_of(word: str) -> str:
    match = WORD.fullmatch(word)
    return "" if match is None else match["key"]


def _one_or_all(values: Any) -> Any:
    return values[0] if isinstance(values, list) and len(values) == 1 else values


def _is_local(value: Any) -> bool:
    return isinstance(value, str) and "://" not in value and not value.startswith("demo:")


def _is_variable(key: str) -> bool:
    """Tell whether a field is a variable of the workers' environment, or all of them."""
    return f"{key}.".startswith(f"{RUNTIME_ENV}.{VARIABLES}.")

"""What the yaml beside a checkpoint says of its model: numbers of a closed list of keys.

Must not know what the numbers mean. Whatever is not asked for is refused by name, since a setting
that is passed over makes another model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ldm_batch.errors import JobError

MAX_YAML_BYTES = 1024 * 1024
"""The paper's have up to 4 kB."""
MAX_LEVELS = 16


class _PlainLoader(yaml.SafeLoader):
    """Builds plain values only, each where it is written: aliases can multiply without end."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose what comes next in the text."""
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("it has an alias, which is not read")
        return super().compose_node(parent, index)


class Section:
    """One mapping of the yaml, each of whose keys is taken or refused."""

    def __init__(self, values: object, place: str) -> None:
        if not isinstance(values, Mapping):
            raise JobError(f"{place}: must be a mapping of settings, not {_shown(values)}")
        self.place = place
        self._values = dict(values)
        self._left = set(self._values)

    def section(self, name: str) -> Section:
        """The mapping under a key."""
        return Section(self._take(name, None), f"{self.place}.{name}")

    def has(self, name: str) -> bool:
        """Tell whether a key is there and not null."""
        return self._values.get(name) is not None

    def is_mapping(self, name: str) -> bool:
        """Tell whether a key holds settings of its own."""
        return isinstance(self._values.get(name), Mapping)

    def integer(self, name: str, default: int | None = None, *, most: int = 1_000_000) -> int:
        """A whole number of 1 to `most`."""
        return self._integer(name, self._take(name, default), 1, most)

    def integers(self, name: str, *, can_be_empty: bool = False) -> tuple[int, ...]:
        """A list of whole numbers from 1 on, at most 16."""
        value = self._take(name, None)
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise self._refusal(name, value, "a list of whole numbers")
        if len(value) > MAX_LEVELS or not (value or can_be_empty):
            raise self._refusal(name, value, f"1 to {MAX_LEVELS} whole numbers")
        return tuple(self._integer(name, item, 1, 1_000_000) for item in value)

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number; `1e-4`, which YAML takes for text, too."""
        value = self._take(name, default)
        try:
            number = float(value) if not isinstance(value, bool) else math.nan  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise self._refusal(name, value, "a number")
        return number

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._take(name, default)
        if not isinstance(value, bool):
            raise self._refusal(name, value, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string."""
        value = self._take(name, default)
        if not isinstance(value, str):
            raise self._refusal(name, value, "text")
        return value

    def target(self, *known: str) -> str:
        """The class that a section names, one of these."""
        value = self.text("target")
        if value not in known:
            raise JobError(
                f"{self.place}.target: {value} cannot be imported; known is {', '.join(known)}"
            )
        return value

    def must_be(self, name: str, *allowed: object) -> None:
        """Refuse any other value than these; a key that is not there is right."""
        value = self._values.get(name, allowed[0])
        self._left.discard(name)
        if not any(value == one and type(value) is type(one) for one in allowed):
            what = " or ".join(map(_shown, allowed))
            raise self._refusal(name, value, f"{what} to be imported")

    def ignore(self, names: Iterable[str]) -> None:
        """Let these keys be whatever they are: they change no image."""
        self._left -= set(names)

    def refuse_others(self) -> None:
        """Refuse every key that was neither taken nor ignored."""
        if self._left:
            names = ", ".join(sorted(map(str, self._left))[:3])
            raise JobError(f"{self.place}: {names} is no setting that can be imported")

    def _take(self, name: str, default: object) -> object:
        self._left.discard(name)
        if name not in self._values:
            if default is None:
                raise JobError(f"{self.place}: {name} is missing")
            return default
        return self._values[name]

    def _integer(self, name: str, value: object, least: int, most: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self._refusal(name, value, f"a whole number of {least} to {most}")
        return value

    def _refusal(self, name: str, value: object, wanted: str) -> JobError:
        return JobError(f"{self.place}.{name}: must be {wanted}, not {_shown(value)}")


def read_settings(path: Path) -> Section:
    """Read the section `model` of a yaml, plain values only.

    Raises:
        JobError: it cannot be read, is too large, no YAML, or has no such section.
    """
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise JobError(f"{path}: is larger than {MAX_YAML_BYTES} bytes; is it a model's yaml?")
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainLoader)
    except OSError as error:
        raise JobError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise JobError(f"{path}: is no YAML of plain values: {_first_line(error)}") from error
    if not isinstance(values, Mapping) or "model" not in values:
        raise JobError(f"{path}: has no section `model`; is it the yaml of this checkpoint?")
    return Section(values["model"], f"{path}: model")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, int) and value.bit_length() > 64:
        return "a number of more than 64 bits"
    return repr(value)[:60]

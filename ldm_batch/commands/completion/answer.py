"""How a command line may go on: commands, their options, groups, fields, values and places.

It is asked at every press of a key, so it reads names from files and dataclasses and imports
nothing that computes. Must not know shells.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ldm_batch.commands.words import CONFIG_DIR, HELP, INFO, INFO_ON, own_folders
from ldm_batch.config.described import Field, job_fields
from ldm_batch.config.groups import find_groups
from ldm_batch.errors import JobError

COMMANDS = (
    *("run", "status", "verify", "sheet", "sweep", "tradeoff", "import"),
    *("init", "completion", "demo"),
)
OF_STORE = ("--endpoint", "--region", "--anonymous", "--path-style", "--no-path-style")
OF_DATASET = ("--help", *OF_STORE, "--ca-bundle", "--storage")
OPTIONS: dict[str, tuple[str, ...]] = {
    "run": ("--help", "--cfg", "--config-dir", "--multirun", "--resolve", "--info", "--version"),
    "status": (*OF_DATASET, "--json"),
    "verify": (*OF_DATASET, "--json", "--regenerate", "--choice", "--model-path", "--lora-path"),
    "sheet": (*OF_DATASET, "--output", "--images"),
    "sweep": (*OF_DATASET, "--older-than", "--dry-run"),
    "tradeoff": (
        *("--help", "--output", "--column", "--model", "--guidance-scale", "--num-prompts"),
        *("--schedulers", "--steps", "--reference", "--presets"),
    ),
    "import": ("--help", "--config", "--tokenizer", "--revision", "--variant"),
    "init": ("--help",),
    "completion": ("--help",),
    "demo": ("--help",),
}
"""What commands take, as `COMMAND --help` says it; a test holds these to that."""
SHELLS = ("bash", "zsh", "fish")
OF_PLACES = (
    *("--ca-bundle", "--config", "--lora-path", "--model", "--model-path", "--output"),
    "--tokenizer",
)
"""Options whose value is a file or a folder."""
WITH_PLACES = ("status", "verify", "sheet", "sweep", "tradeoff", "import", "init")
"""Commands whose arguments are files or folders."""
ENGINES = ("ldm", "diffusers", "random_pixels")
"""Values of `model.engine`; a test holds these to the table of engines."""
END = "\ufdd0"
"""Stands for the place of the cursor; no character of any text."""


def answer(line: str) -> list[str]:
    """Words that the last one of a command line may become.

    Args:
        line: from its start to the cursor, as it was typed.

    Returns:
        Whole words, unquoted; one that is finished ends with a space.
    """
    words = split(line)
    if len(words) < 2:
        return []
    *before, current = words[1:]
    try:
        return sorted({word for word in _going_on(before, current) if word.startswith(current)})
    except JobError:  # of a folder that is named wrong, which running tells
        return []


def split(line: str) -> list[str]:
    """The words of a command line up to the cursor, the last one as far as it was typed."""
    for end in ("", '"', "'"):
        try:
            words = shlex.split(line + END + end)
        except ValueError:  # a quote is open
            continue
        return [word.removesuffix(END) for word in words]
    return []


def has_open_quote(line: str) -> bool:
    """Tell whether the cursor stands between quotes."""
    try:
        shlex.split(line + END)
    except ValueError:
        return True
    return False


def _going_on(before: Sequence[str], current: str) -> Iterator[str]:
    if not before:
        yield from _finished([*COMMANDS, "--help", "--version"])
    elif before[0] == "run":
        yield from _of_run(before[1:], current)
    elif before[0] == "completion":
        yield from _finished([*SHELLS, "--help"])
    elif before[0] in OPTIONS:
        if before[-1] in OF_PLACES:
            yield from _places(current)
        elif current.startswith("-"):
            yield from _finished(OPTIONS[before[0]])
        elif before[0] in WITH_PLACES:
            yield from _places(current)


def _of_run(before: Sequence[str], current: str) -> Iterator[str]:
    """How a job's words go on."""
    name, equals, value = current.partition("=")
    last = before[-1] if before else ""
    if last in CONFIG_DIR:
        yield from _places(current, folders=True)
    elif last in ("--cfg", "-c"):
        yield from _finished(["job", "hydra", "all"])
    elif last in INFO and not current.startswith("-") and not equals:
        yield from _finished(INFO_ON)
    elif current.startswith("-"):
        yield from _finished(OPTIONS["run"])
    elif equals:
        start = f"{name}="
        yield from (start + more for more in _values(name.lstrip("+"), value, before))
    elif set(HELP) & set(before):
        fields = [path for path in job_fields() if path.count(".") <= current.count(".")]
        yield from _finished([*find_groups(own_folders(before)), *fields])
    else:
        yield from (f"{group}=" for group in find_groups(own_folders(before)))
        yield from _names(current)


def _names(current: str) -> Iterator[str]:
    """Fields on the level that was reached, and the sections below it."""
    for field in job_fields().values():
        if field.section == current.rpartition(".")[0]:
            yield f"{field.path}{'.' if field.is_section else '='}"


def _values(name: str, value: str, before: Sequence[str]) -> Iterator[str]:
    """What a group or a field may be set to."""
    options = find_groups(own_folders(before)).get(name, [])
    yield from _finished(option.name for option in options)
    field = job_fields().get(name)
    if field is None:
        return
    if field.is_place:
        yield from _places(value)
    elif not options:
        yield from _finished(_closed(field))


def _closed(field: Field) -> Sequence[str]:
    """The values of a closed list; empty where there is none."""
    if field.path in ("scheduler.name", "upscale.scheduler.name"):
        return [option.name for option in find_groups()["scheduler"]]
    return ENGINES if field.path == "model.engine" else field.values


def _places(current: str, *, folders: bool = False) -> Iterator[str]:
    """Files and folders that begin so; folders end with a slash, hidden ones must be asked for."""
    start = current.rpartition("/")[2]
    typed = current[: len(current) - len(start)]
    folder = Path(os.path.expanduser(typed) or ".")
    try:
        entries = list(os.scandir(folder))
    except (OSError, ValueError):
        return
    for entry in entries:
        if entry.name.startswith(start) and (start or not entry.name.startswith(".")):
            if entry.is_dir():
                yield f"{typed}{entry.name}/"
            elif not folders:
                yield f"{typed}{entry.name} "


def _finished(words: Iterable[str]) -> Iterator[str]:
    return (f"{word} " for word in words)

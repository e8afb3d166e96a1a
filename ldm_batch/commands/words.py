"""The words that follow `run`, read before anything is composed: what is no setting, and was meant.

Knows names only: of options, groups and fields; must not know what composing makes of a value.
"""

from __future__ import annotations

import difflib
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

from ldm_batch.commands.ending import ends
from ldm_batch.commands.program import program
from ldm_batch.commands.run_help import help_on
from ldm_batch.config.described import Field, job_fields
from ldm_batch.config.fields import first_named
from ldm_batch.config.groups import JOBS, Option, find_groups, shipped
from ldm_batch.config.places import with_home
from ldm_batch.errors import JobError
from ldm_batch.versions import version_line

DEMO_PROMPTS = "demo_output/prompts.parquet"
"""The input of the job that runs where none is named; `demo` writes it."""
HELP = ("--help", "-h")
CONFIG_DIR = ("--config-dir", "-cd")
FLAGS = (
    *HELP,
    *("--version", "--resolve", "--run", "-r", "--multirun", "-m"),
)
VALUED = (
    *CONFIG_DIR,
    *("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn"),
    "--experimental-rerun",
)
"""Options that Hydra has, without and with a value; `--info` may have one."""
INFO = ("--info", "-i")
INFO_ON = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
QUESTIONS = (*INFO, "--cfg", "-c")
NOT_HERE = {"--hydra-help": "--help", "--shell-completion": "completion", "-sc": "completion"}
"""Options of Hydra that this program has otherwise."""
ALIASES = {
    "input": "source.uri",
    "prompts": "source.uri",
    "output": "sink.uri",
    "out": "sink.uri",
    "steps": "call.num_inference_steps",
    "guidance": "call.guidance_scale",
    "job": JOBS,
    "config": JOBS,
}
"""What other programs call what this one calls otherwise."""


@dataclass(frozen=True, slots=True)
class _Known:
    """The names there are."""

    groups: Mapping[str, list[Option]]
    fields: Mapping[str, Field]

    def options(self, group: str) -> list[str]:
        return [option.name for option in self.groups.get(group, [])]


@ends
def before_run() -> None:
    """Answer `run --help`, or put the command line's words as composing takes them; see
    `check_words`."""
    options, settings = _apart(sys.argv[1:])
    if set(HELP) & set(options):
        print(help_on(settings, program("run"), own_folders(options)))
        sys.exit()
    if "--version" in options:
        print(version_line())
        sys.exit()
    if not sys.argv[1:] and not Path(DEMO_PROMPTS).exists():
        raise JobError(
            f"no job: `{program('demo')}` writes prompts and runs the demo; a job of your own is "
            f"`{program('run')} conf=JOB source.uri=PROMPTS sink.uri=DATASET`, and "
            f"`{program('run')} --help` lists what there is"
        )
    sys.argv[1:] = check_words(sys.argv[1:])


def check_words(words: Sequence[str]) -> list[str]:
    """The words of a `run` with the options first, wherever they stood.

    Args:
        words: settings, and options with their values, as a command line has them.

    Raises:
        JobError: a word is neither, in a sentence that says what was meant.
    """
    options, settings = _apart(words)
    asked = [word for word in options if word.partition("=")[0] in QUESTIONS]
    if asked and {"-m", "--multirun"} & set(options):
        raise JobError(f"{asked[0]}: shows one job; leave -m out, and give each field one value")
    known = _Known(find_groups(own_folders(options)), job_fields())
    for place, word in enumerate(settings):
        name, equals, value = word.partition("=")
        if not equals and not word.startswith("~"):
            _refuse_word(settings, place, known)
        if "," not in value:
            _check_setting(word, name.lstrip("+"), value, known)
    return [*options, *settings]


def own_folders(options: Sequence[str]) -> list[Path]:
    """The folder that `--config-dir` names, if it is there.

    Raises:
        JobError: it is named twice, or is empty.
    """
    names = [f"{name}=" for name in CONFIG_DIR]
    found = [after for word, after in pairwise(options) if word in CONFIG_DIR]
    found += [word.partition("=")[2] for word in options if word.startswith(tuple(names))]
    if len(found) > 1:
        raise JobError(f"--config-dir: {' and '.join(found)}; name one folder")
    if "" in found or options[-1:] in (["--config-dir"], ["-cd"]):
        raise JobError("--config-dir: names no folder; write --config-dir FOLDER")
    return [Path(with_home(folder)) for folder in found]


def _apart(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options with their values, and the rest."""
    options: list[str] = []
    settings: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("-") or word == "-":
            settings.append(word)
        elif word in FLAGS or (word.partition("=")[0] in (*VALUED, *INFO) and "=" in word):
            options.append(word)
        elif word in VALUED:
            options += [word, *left[:1]]
            del left[:1]
        elif word in INFO:
            has_value = left[:1] and left[0] in INFO_ON
            options += [word, left.pop(0)] if has_value else [word]
        else:
            _refuse_option(word, left)
    return options, settings


def _refuse_option(word: str, after: Sequence[str]) -> NoReturn:
    name, equals, value = word.lstrip("-").partition("=")
    if not equals and after and not after[0].startswith("-") and "=" not in after[0]:
        value = after[0]
    if name_here := NOT_HERE.get(word.partition("=")[0]):
        what = name_here if name_here.startswith("-") else f"the command `{name_here}`"
        raise JobError(f"{word}: no such option; did you mean {what}?")
    known = _Known(find_groups(), job_fields())
    meant = _meant(name, value, known)
    if not meant and len(word) > 2:
        close = difflib.get_close_matches(word, (*FLAGS, *VALUED, *INFO), n=1, cutoff=0.7)
        meant = close[0] if close else ""
    raise JobError(f"{word}: no such option; {_did_you_mean(meant)}")


def _refuse_word(settings: Sequence[str], place: int, known: _Known) -> NoReturn:
    """Refuse a word without `=`, and say what was probably meant."""
    word, after = settings[place], settings[place + 1 : place + 2]
    before = settings[place - 1] if place else ""
    if before.endswith("="):
        raise JobError(f"{before}: has no value; did you mean {before}{word}, without a space?")
    if os.path.exists(f"{before.partition('=')[2]} {word}"):
        raise JobError(f"{word}: is no setting; did you mean '{before} {word}', in quotes?")
    value = after[0] if after and "=" not in after[0] else ""
    if after == ["="]:
        value = "".join(settings[place + 2 : place + 3])
    name, colon, text = word.partition(":")
    if colon and name in known.fields:
        word_meant = shlex.quote(f"{name}={text.strip()}")
        raise JobError(f"{word}: is no setting; did you mean {word_meant}, with = for :?")
    if word in known.options(JOBS):
        meant = f"{JOBS}={word}"
    else:
        meant = _meant(word, value, known, is_sure=True) or _as_places(settings, known)
    raise JobError(f"{word}: is no setting; {_did_you_mean(meant)}")


def _as_places(settings: Sequence[str], known: _Known) -> str:
    """Words without `=` as source and sink, where these are not set otherwise."""
    words = [word for word in settings if "=" not in word]
    set_already = {word.partition("=")[0] for word in settings if "=" in word}
    free = [path for path in ("source.uri", "sink.uri") if path not in set_already]
    if len(words) == 1 and not _is_place(words[0]) and free != ["sink.uri"]:
        close = difflib.get_close_matches(words[0], known.options(JOBS), n=1, cutoff=0.6)
        return f"{JOBS}={close[0]}" if close else ""
    if len(words) > len(free):
        return ""
    named = zip(free, words, strict=False)
    return " ".join(shlex.quote(f"{path}={word}") for path, word in named)


def _is_place(word: str) -> bool:
    return any(sign in word for sign in "/.*~") or os.path.exists(word)


def _meant(name: str, value: str, known: _Known, *, is_sure: bool = False) -> str:
    """The setting that a name of somebody's own stands for; empty where there is none.

    Args:
        is_sure: take no name that only looks alike.
    """
    plain = name.replace("-", "_")
    if value in known.options(plain) or ALIASES.get(plain) == JOBS:
        return shlex.quote(f"{ALIASES.get(plain, plain)}={value or '...'}")
    for path in (plain, "" if is_sure else ALIASES.get(plain, "")):
        if path in known.fields and not known.fields[path].is_section:
            return _with_value(known.fields[path], value)
    if plain in ("source", "sink", "model"):
        return _of_place(plain, value, known) if value else ""
    leaves = [field for field in known.fields.values() if field.name == plain]
    leaves = [field for field in leaves if not field.is_section]
    if not leaves and not is_sure:
        names = [field.name for field in known.fields.values() if not field.is_section]
        close = difflib.get_close_matches(plain, names, n=1, cutoff=0.7)
        leaves = [field for field in known.fields.values() if field.name in close]
    paths = first_named([field.path for field in leaves])
    return " or ".join(_with_value(known.fields[path], value) for path in paths)


def _with_value(field: Field, value: str) -> str:
    usual = "true" if field.values[:1] == ("true",) else "..."
    return shlex.quote(f"{field.path}={value}") if value else f"{field.path}={usual}"


def _of_place(section: str, value: str, known: _Known) -> str:
    """What names a place where an option of a group was expected."""
    if section != "model":
        return shlex.quote(f"{section}.uri={value}")
    is_folder = value.startswith((".", "/", "~")) or os.path.exists(value)
    field = "path" if is_folder or "/" not in value else "repo_id"
    return f"model=local {shlex.quote(f'model.{field}={value}')}"


def _check_setting(word: str, name: str, value: str, known: _Known) -> None:
    """Refuse a setting of which is certain what was meant instead."""
    options = known.options(name)
    is_option = value.removesuffix(".yaml") in (*options, "", "null")
    if name == JOBS and not is_option and value.endswith((".yaml", ".yml")):
        raise JobError(f"{word}: names a file; {_of_file(Path(value))}")
    meant = ""
    own = {*known.fields, *known.groups}
    if name in ALIASES and name not in own and name.partition("@")[0] not in own:
        meant = shlex.quote(f"{ALIASES[name]}={value}")
    elif name == "scheduler" and value.endswith("Scheduler"):
        meant = f"scheduler.name={value}"
    elif name in ("source", "sink", "model") and not is_option and _is_place(value):
        meant = _of_place(name, value, known)
    elif "-" in name and name.replace("-", "_") in own:
        meant = f"{name.replace('-', '_')}={value}"
    if meant:
        raise JobError(f"{word}: no such setting; {_did_you_mean(meant)}")


def _of_file(path: Path) -> str:
    """How the job in a file is named."""
    folder, name = path.parent, path.stem
    if folder.resolve() == (shipped("conf") / JOBS).resolve():
        return f"did you mean {JOBS}={name}?"
    if folder.name == JOBS or folder.resolve().name == JOBS:
        above = shlex.quote(str(folder.parent if folder.name == JOBS else folder.resolve().parent))
        return f"did you mean --config-dir {above} {shlex.quote(f'{JOBS}={name}')}?"
    target = folder / JOBS / f"{name}.yaml"
    return (
        f"a job of your own stands in a folder `{JOBS}`: move it to {target}, then "
        f"--config-dir {shlex.quote(str(folder))} {shlex.quote(f'{JOBS}={name}')}"
    )


def _did_you_mean(meant: str) -> str:
    if meant:
        return f"did you mean {meant}?"
    return (
        "settings are FIELD=VALUE or GROUP=OPTION, such as source.uri=prompts.parquet; see --help"
    )

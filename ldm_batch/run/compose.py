"""A job is composed of `conf/`, a folder of the user's own, and settings; nothing is run for that.

Hydra parses and composes. None of what Hydra itself would run, log or make is used.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.version import VersionBase, setbase
from omegaconf import OmegaConf, open_dict

from ldm_batch.config import JobConfig
from ldm_batch.config.fields import no_such_field
from ldm_batch.config.groups import JOBS
from ldm_batch.errors import JobError, LdmBatchError
from ldm_batch.plan.command_line import CONFIG_DIR
from ldm_batch.run.explain import OF_USERS, explain
from ldm_batch.run.folder import config_folder
from ldm_batch.run.job_files import read_here
from ldm_batch.run.no_code import check_interpolations, refuse_code, refuse_word
from ldm_batch.run.texts import as_hydra_reads, is_sweep, refuse_several_values

OPEN_FIELDS = (
    "source.columns",
    "source.storage",
    "sink.storage",
    "source.types",
    "model.scheduler_config",
    "upscale.model.scheduler_config",
    "scheduler.settings",
    "upscale.scheduler.settings",
    "cluster.resources",
    "cluster.labels",
    "cluster.runtime_env",
)
"""Fields whose keys are the user's own: an override may add one without Hydra's `+`."""
VERSION_BASE = "1.3"
_hydra_turn = threading.Lock()


@dataclass(frozen=True, slots=True)
class Composed:
    """A job, and the words of the command line that make it."""

    job: JobConfig
    words: tuple[str, ...]
    """Its settings; before them `--config-dir=FOLDER` where there is one."""


def compose_job(settings: Sequence[str]) -> JobConfig:
    """The job that settings make, as the command composes it; Hydra is left as it was.

    Raises:
        JobError: a setting is wrong, in a sentence.
    """
    return compose_jobs(settings)[0].job


def compose_jobs(
    settings: Sequence[str], *, folder: Path | None = None, is_sweep: bool = False
) -> list[Composed]:
    """The jobs that settings make: one, or of a sweep one for each combination of values.

    Args:
        settings: as they are typed.
        folder: of configuration, for what `conf/` has not; its own `config.yaml` is not read.
        is_sweep: whether a setting may give several values.

    Raises:
        JobError: a setting or a file is wrong, in a sentence; whatever would be code is.
    """
    if folder is not None and not folder.is_dir():
        raise JobError(f"--config-dir: {folder} is no folder; name one that has {JOBS}/NAME.yaml")
    try:
        words = read_settings(settings, is_sweep=is_sweep)
        with _own_hydra(folder):
            combinations = _combinations(words) if is_sweep else [words]
            jobs = [_compose(combination) for combination in combinations]
    except LdmBatchError:
        raise
    except UnicodeDecodeError as error:
        raise JobError(f"{_not_utf8(folder)}: is no text in UTF-8; save it as UTF-8") from error
    except OF_USERS as error:
        raise JobError(explain(error, settings)) from error
    option = [] if folder is None else [f"{CONFIG_DIR}{folder.absolute()}"]
    typed = [settings] if not is_sweep else combinations
    return [Composed(job, (*option, *own)) for job, own in zip(jobs, typed, strict=True)]


def _not_utf8(folder: Path | None) -> str:
    """The first file of a user's own configuration that is no text."""
    for path in sorted(folder.rglob("*.yaml")) if folder is not None else ():
        try:
            path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            return str(path)
        except OSError:
            continue
    return "a file of configuration"


def read_settings(settings: Sequence[str], *, is_sweep: bool = False) -> list[str]:
    """Settings in Hydra's grammar, with texts as they are typed.

    Raises:
        JobError: one is code, names no field in `${...}`, or has several values without a sweep.
    """
    words = []
    for typed in settings:
        refuse_word(typed)
        _refuse_outside(typed)
        word = as_hydra_reads(typed, is_group)
        check_interpolations(word)
        if not is_sweep and _has_several_values(word):
            raise refuse_several_values(typed)
        words.append(f"++{word}" if _is_open(word) else word)
    return words


def is_group(name: str) -> bool:
    """Tell whether options of a group are chosen by a name."""
    return (config_folder() / name.partition("@")[0]).is_dir() if name else False


def _refuse_outside(word: str) -> None:
    """Refuse an option that is no file of its group's folder."""
    name, _, option = word.lstrip("+~").partition("=")
    is_chosen = is_group(name) and any(part in ("", "..") for part in option.split("/")[:-1])
    if ".." in name.split("/") or is_chosen or (is_group(name) and option.endswith("..")):
        raise JobError(
            f"{word}: refused, outside the folder of its group; a folder of your own is "
            "--config-dir FOLDER"
        )


def _is_open(word: str) -> bool:
    return any(word.startswith((f"{name}.", f"{name}=")) for name in OPEN_FIELDS)


def _has_several_values(word: str) -> bool:
    try:
        return is_sweep(word)
    except HydraException:  # composing says what is wrong
        return False


def _combinations(words: Sequence[str]) -> list[list[str]]:
    """Words of one value each, for every combination of values; the last of a field counts."""
    loader = GlobalHydra.instance().config_loader()
    choices: dict[str, list[str]] = {}
    for override in OverridesParser.create(config_loader=loader).parse_overrides(list(words)):
        key = override.get_key_element()
        if not override.is_sweep_override():
            choices[key] = [str(override.input_line)]
        elif override.is_discrete_sweep():
            choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise JobError(f"{override.input_line}: no values to make a job of each")
    return [list(combination) for combination in itertools.product(*choices.values())]


def _compose(words: Sequence[str]) -> JobConfig:
    config = hydra.compose("config", list(words), return_hydra_config=True)
    refuse_code(config)
    with open_dict(config):
        del config["hydra"]
    job: JobConfig = OmegaConf.to_object(config)  # type: ignore[assignment]
    _refuse_added(config, job)
    return job


def _refuse_added(config: Any, node: Any, prefix: str = "") -> None:
    """Refuse fields that `+field=value` added where the schema has none."""
    known = {field.name for field in fields(node)}
    for name in config:
        if name not in known:
            raise JobError(no_such_field(f"{prefix}{name}"))
        if is_dataclass(getattr(node, name)):
            _refuse_added(config[name], getattr(node, name), f"{prefix}{name}.")


@contextlib.contextmanager
def _own_hydra(folder: Path | None = None) -> Iterator[None]:
    """Hydra on our configuration, for one thread at a time: what it keeps is the process's."""
    with _hydra_turn:
        before, version = GlobalHydra.instance().hydra, VersionBase.instance().getbase()
        GlobalHydra.instance().clear()
        try:
            setbase(VERSION_BASE)
            ConfigStore.instance().store(name="job_schema", node=JobConfig)
            # Private: the public `initialize_config_dir` takes one folder, and none in an order.
            places = create_config_search_path(str(config_folder()))
            if folder is not None:
                query = SearchPathQuery(provider="schema")
                places.prepend("command-line", f"file://{folder.absolute()}", anchor=query)
            with read_here():
                Hydra.create_main_hydra2(task_name="ldm_batch", config_search_path=places)
                yield
        finally:
            GlobalHydra.instance().hydra = before
            VersionBase.instance().version_base = version

"""A configuration holds values, never code: what is refused of one, wherever it came from.

Nothing that is looked at here is resolved or built. Must not know where a value came from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from ldm_batch.config.fields import field_paths
from ldm_batch.errors import JobError
from ldm_batch.plan.command_line import WORD

HYDRAS_OWN = {
    "hydra.launcher._target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "hydra.sweeper._target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
}
"""All that may stand in a `_target_`; and nothing is made of them."""
HARMLESS = ("hydra/launcher", "hydra/sweeper", "hydra.launcher", "hydra.sweeper")
UNPRINTABLE = re.compile(r"[\0\ud800-\udfff]")
NO_TEXT = "holds what is no text in UTF-8, which no plan could record"
RESERVED = re.compile(r"_.*_", re.DOTALL)
PATH = re.compile(r"[A-Za-z_][\w.-]*")
RELATIVE = re.compile(r"\.+[A-Za-z_][\w.-]*")


def refuse_word(word: str) -> None:
    """Refuse a setting of Hydra's own, before anything is composed of it.

    Raises:
        JobError: it would run code, or has no meaning for a job.
    """
    match = WORD.fullmatch(word)
    key = match["key"] if match else word.lstrip("+~")
    if re.match(r"hydra\b", key) is None:
        return
    if "_target_" in word and not any(
        key == name and match and match["value"] == own for name, own in HYDRAS_OWN.items()
    ):
        raise _code(key)
    if not key.startswith(HARMLESS) or key.startswith("hydra.sweeper.params"):
        raise JobError(f"{key}: refused, a setting of Hydra's own, which a job has no use for")


def check_interpolations(word: str) -> None:
    """Refuse a setting, in Hydra's grammar, whose `${...}` names no field of the job.

    Raises:
        JobError: it does.
    """
    key, _, value = word.partition("=")
    for name in interpolations(value):
        check_interpolation(key.lstrip("+~"), name)


def refuse_code(config: Any) -> None:
    """Refuse what a composed configuration, unresolved, may not hold.

    Raises:
        JobError: `_target_` and the like at any depth, an interpolation of anything but a field of
            the job, or what no file can hold as text.
    """
    document = OmegaConf.to_container(config, resolve=False)
    assert isinstance(document, dict)
    for path, key, value in _leaves_of(document, ""):
        if RESERVED.fullmatch(key) and HYDRAS_OWN.get(path) != value:
            raise _code(path)
        if path.startswith("hydra."):
            continue
        for text in (key, value):
            if isinstance(text, str) and UNPRINTABLE.search(text):
                raise JobError(ascii(path).strip("'") + f": {text!a}: {NO_TEXT}")
        if isinstance(value, str):
            for name in interpolations(value):
                check_interpolation(path, name)


def check_interpolation(path: str, name: str) -> None:
    """Refuse `${name}` unless it names a field of the job, or one beside the field itself.

    Raises:
        JobError: it names something else: a resolver, which may read the environment, or nothing.
    """
    is_known = PATH.fullmatch(name) and any(
        name == known or name.startswith(f"{known}.") for known in field_paths()
    )
    if not is_known and not RELATIVE.fullmatch(name):
        raise JobError(
            f"{path}: ${{{name}}}: refused, only fields of the job can be named so, such as "
            "${seed}; a text that holds these characters has a backslash before them, \\${"
        )


def interpolations(text: str) -> Iterator[str]:
    """What stands between `${` and `}` of a text, unless the `${` is escaped."""
    for match in re.finditer(r"(\\*)\$\{", text):
        if len(match[1]) % 2 == 0:
            yield text[match.end() :].partition("}")[0]


def _code(path: str) -> JobError:
    return JobError(f"{path}: refused, a configuration holds values, never code")


def _leaves_of(node: Any, path: str) -> Iterator[tuple[str, str, Any]]:
    """Every key at any depth, with its path and its value."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            here = f"{path}.{key}" if path else str(key)
            yield here, str(key), value
            yield from _leaves_of(value, here)
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for number, value in enumerate(node):
            yield f"{path}[{number}]", "", value
            yield from _leaves_of(value, f"{path}[{number}]")

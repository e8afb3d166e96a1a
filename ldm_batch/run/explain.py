"""What Hydra and OmegaConf complain of, in one sentence."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from ldm_batch.config.bounds import suggest
from ldm_batch.config.fields import no_such_field
from ldm_batch.config.groups import JOBS
from ldm_batch.config.texts import text_kind
from ldm_batch.run.folder import config_folder

IN_FILE = re.compile(
    r"In '([^']+)': \w+ raised while composing config:\n(.*?)(?:\n\s*full_key: (\S*).*)?\Z",
    re.DOTALL,
)
"""What Hydra says of a value of a file: which file, what is wrong, and the field."""
QUOTES = "''"
OF_USERS = (HydraException, OmegaConfBaseException, ValueError, RecursionError, OSError)
"""What reading settings and files of configuration raises for a mistake in them."""
SIZE = re.compile(r"([0-9.]+) ?([kKMGT])(i?)[bB]?")
FACTORS = {"k": 1, "K": 1, "M": 2, "G": 3, "T": 4}


def explain(error: Exception, settings: Sequence[str] | None = None) -> str:
    """One message for a mistake in the configuration: the field, what is wrong, what was meant.

    Args:
        settings: those that were given; None: the command line's.
    """
    while isinstance(cause := error.__cause__, (HydraException, OmegaConfBaseException)):
        if isinstance(error, OmegaConfBaseException) and error.full_key:
            break  # under a debugger OmegaConf keeps causes, which no longer name the field
        error = cause
    if isinstance(error, OmegaConfBaseException):
        return _explain_value(error)
    if isinstance(error, RecursionError):
        return (
            "the `defaults` of a file lead back to the file itself: a job that builds on another "
            f"names that one, not itself{_of_jobs(settings)}"
        )
    text = str(error)
    if in_file := IN_FILE.match(text):
        file, what, key = in_file.groups()
        return f"{file}.yaml: {_said_plainly(key, what, empty=QUOTES)}"
    unknown = re.search(r"Could not override '([^']+)'|Key '([^']+)' (?:is )?not in", text)
    if unknown:
        return no_such_field(unknown[1] or unknown[2])
    if "Config group override must be" in text:  # and Hydra does not say which
        empty = [a.removesuffix("=null") for a in (settings or sys.argv) if a.endswith("=null")]
        nameless = [name for name in empty if (config_folder() / name).is_dir()]
        text = f"Could not find '{nameless[0]}/null'" if nameless else text
    group = re.search(r"Could not find '([\w./-]+)/([\w.-]*)'", text)
    if group:
        known = sorted(path.stem for path in (config_folder() / group[1]).glob("*.yaml"))
        return f"{group[1]}: no option {group[2]!r}{suggest(group[2], known)}"
    if isinstance(error, OverrideParseException):
        return (
            f"cannot read the override {error.override!r}: {text.splitlines()[0]}; brackets and "
            "quotes need their other half, and quotes of the shell around them"
        )
    return text.splitlines()[0] if text else type(error).__name__


def _explain_value(error: OmegaConfBaseException) -> str:
    key = str(error.full_key or error.key or "")
    text = str(error.msg or error).splitlines()[0]
    if "issing mandatory value" in text:
        return f"{key}: ??? alone stands for a value that is missing; write it otherwise, as ./???"
    return _said_plainly(key, text, empty=f"{key}=")


def _said_plainly(key: str, text: str, *, empty: str) -> str:
    """What OmegaConf says of a field's value, in the words of whoever wrote it.

    Args:
        empty: how an empty text is written there.
    """
    if "not in" in text and key:
        return no_such_field(key)
    if "is not Optional" in text or "Incompatible value 'None'" in text:
        return f"{key}: may not be null" + (f"; empty is {empty}" if text_kind(key) else "")
    if "is not a ListConfig" in text:
        return f"{key}: must be a list, in brackets: [a, b]"
    if section := re.search(r"is not a subclass of (\w+)Config", text):
        name = key or section[1].lower()
        return f"{name}: is a section, of which fields are set: {name}.FIELD"
    if "Cannot merge" in text:
        text = "a list stands where a mapping belongs, or a mapping where a list does"
    text = _explain_type(key, text) or text
    return f"{key}: {text}" if key else text


def _of_jobs(settings: Sequence[str] | None) -> str:
    named = [word for word in (settings or ()) if word.startswith(f"{JOBS}=")]
    return f" ({', '.join(named)})" if named else ""


def _explain_type(key: str, text: str) -> str:
    """What a value of another type should be; empty where that is not the trouble."""
    number = re.fullmatch(r"Value '(.*)' of type '\w+' could not be converted to (\w+)", text)
    if number and number[2] in ("Integer", "Float"):
        value, wanted = number[1], "whole number" if number[2] == "Integer" else "number"
        meant = _as_number(value, is_whole=number[2] == "Integer")
        return f"{value!r} is no {wanted}{f'; did you mean {key}={meant}?' if meant else ''}"
    if flag := re.match(r"Value '(.*)' is not a valid bool", text):
        return f"{flag[1]!r} is neither true nor false"
    if re.match(r"Cannot assign \w+ to Dict", text):
        return f"must be names and values, as {key}.NAME=VALUE or {key}={{NAME: VALUE}}"
    return ""


def _as_number(value: str, *, is_whole: bool) -> str:
    """The number that a value with a unit stands for; empty where it is not certain."""
    if is_whole and (size := SIZE.fullmatch(value)) and size[1].count(".") < 2:
        base = 1024 if size[3] else 1000
        return str(int(float(size[1]) * base ** FACTORS[size[2]]))
    if is_whole and re.fullmatch(r"[0-9]+\.0|[0-9.]+e\+?[0-9]+", value):
        number = float(value)
        return str(int(number)) if number == int(number) else ""
    if not is_whole and re.fullmatch(r"[0-9]+(\.[0-9]+)?%", value):
        return f"{float(value[:-1]) / 100:g}"
    return ""

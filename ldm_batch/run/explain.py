"""What Hydra and OmegaConf complain of, in one sentence."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

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
        whole = re.search(r"^ +full_key: (\S+)$", text, re.MULTILINE)
        where = f"{file[1]}.yaml: " if file else ""
        return where + no_such_field(unknown[1] or (whole[1] if whole else unknown[2]))
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
    return f"{key}: {text}" if key else text


def _of_jobs(settings: Sequence[str] | None) -> str:
    named = [word for word in (settings or ()) if word.startswith(f"{JOBS}=")]
    return f" ({', '.join(named)})" if named else ""

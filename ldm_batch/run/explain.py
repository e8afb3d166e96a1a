"""What Hydra and OmegaConf complain of, in one sentence."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from ldm_batch.config.bounds import suggest
from ldm_batch.config.fields import no_such_field
from ldm_batch.run.folder import config_folder


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
    text = str(error)
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
        return f"cannot read the override {error.override!r}: {text.splitlines()[0]}"
    return text.splitlines()[0] if text else type(error).__name__


def _explain_value(error: OmegaConfBaseException) -> str:
    key = str(error.full_key or error.key or "")
    text = str(error.msg or error).splitlines()[0]
    if "issing mandatory value" in text:
        return f"{key}: ??? alone stands for a value that is missing; write it otherwise, as ./???"
    if "not in" in text and key:
        return no_such_field(key)
    return f"{key}: {text}" if key else text

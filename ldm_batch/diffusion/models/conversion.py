"""What we know of a folder that we made of another: from which files, and what came out.

Such folders stand in our own cache only. Imports no torch; must not know how one is made
(convert.py does).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ldm_batch.diffusion.models.cache import cache_folder
from ldm_batch.diffusion.models.side_file import CONVERTER

CONVERTER_KEY = "converter"
RECORD = "conversion.json"


@dataclass(frozen=True, slots=True)
class Conversion:
    """A folder of safetensors made of one with pickles."""

    source: dict[str, str]
    """SHA-256 by path of the files it was made of, and the converter's number."""
    result: dict[str, str]
    """SHA-256 by path of the files it has."""
    tied: Mapping[str, Mapping[str, str]]
    """Component -> weight that is stored under another name -> that name."""


def models_folder() -> Path:
    """Where converted models are kept on this machine."""
    return cache_folder() / "models"


def read_conversion(folder: Path) -> Conversion | None:
    """What a folder was made of, if it is one of ours and whole."""
    if folder.parent != models_folder():
        return None
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        source, result = _digests(record["source"]), _digests(record["result"])
        tied = {name: _digests(names) for name, names in record["tied"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    is_whole = all((folder / path).is_file() for path in result)
    made = Conversion(source, result, tied)
    return made if is_whole and source.get(CONVERTER_KEY) == str(CONVERTER) else None


def _digests(values: dict[str, str]) -> dict[str, str]:
    """A record's texts by name; a TypeError where it has anything else."""
    if not all(isinstance(value, str) for value in values.values()):
        raise TypeError
    return dict(values)

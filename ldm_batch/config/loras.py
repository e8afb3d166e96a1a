"""The LoRAs that a job lays over its model, and the checks of them.

Pure. Must not look at their files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

from ldm_batch.config.bounds import suggest

ENDING = ".safetensors"
LARGEST_SCALE = 10.0
"""Ten times what it was trained to do."""
MAX_LORAS = 64
"""Each is converted and traced whenever a model is loaded."""


@dataclass(frozen=True)
class LoraConfig:
    """One LoRA: where its weights are, and how strongly they count."""

    path: str | None = None
    """A `.safetensors` file, or a folder that holds one."""
    scale: float = 1.0
    """What its change of the weights is multiplied by: -10 to 10, and not 0."""
    repo_id: str | None = None
    """Hub repository, used when `path` is not set."""
    revision: str | None = None
    """Full commit sha of the hub repository (40 hexadecimal digits)."""
    file: str | None = None
    """The `.safetensors` file in the hub repository."""


NAMES = tuple(field.name for field in fields(LoraConfig))


def parse_loras(path: str, given: Any) -> list[LoraConfig]:
    """Return the LoRAs that a document names, in its order.

    Args:
        path: the field, for messages.
        given: a list of LoraConfig, or of mappings with its fields.

    Raises:
        ValueError: something in it is wrong; names the field.
    """
    if not isinstance(given, list | tuple):
        raise ValueError(f"{path}: {given!r} is not a list; write [{{path: FILE, scale: 0.8}}]")
    if len(given) > MAX_LORAS:
        raise ValueError(f"{path}: {len(given)} of them; at most {MAX_LORAS}")
    return [_parse(f"{path}[{number}]", one) for number, one in enumerate(given)]


def check_loras(path: str, given: Any) -> Iterator[str]:
    """Problems of the LoRAs of a document, a line each."""
    try:
        parse_loras(path, given)
    except ValueError as error:
        yield str(error)


def _parse(path: str, given: Any) -> LoraConfig:
    if isinstance(given, LoraConfig):
        given = {name: getattr(given, name) for name in NAMES}
    if not isinstance(given, Mapping):
        raise ValueError(f"{path}: {given!r} is not of the form {{path: FILE, scale: 0.8}}")
    for name in given:
        if name not in NAMES:
            raise ValueError(f"{path}.{name}: no such field{suggest(str(name), NAMES)}")
    scale = given.get("scale", 1.0)
    if isinstance(scale, bool) or not isinstance(scale, Real):
        raise ValueError(f"{path}.scale: {scale!r} is not a number")
    scale = float(scale)
    if not math.isfinite(scale) or abs(scale) > LARGEST_SCALE:
        raise ValueError(f"{path}.scale: {scale} is not between -10 and 10")
    if scale == 0:
        raise ValueError(f"{path}.scale: 0 leaves the model as it is; take the LoRA out instead")
    texts = {name: given.get(name) for name in NAMES if name != "scale"}
    for name, text in texts.items():
        if text is not None and (not isinstance(text, str) or not text):
            raise ValueError(f"{path}.{name}: {text!r} is not a text")
    found = LoraConfig(scale=scale, **texts)
    _check_place(path, found)
    return found


def _check_place(path: str, lora: LoraConfig) -> None:
    if (lora.path is None) == (lora.repo_id is None):
        what = "not set" if lora.path is None else f"set together with {path}.repo_id"
        raise ValueError(
            f"{path}.path: {what}; name a {ENDING} file, or repo_id, revision and file"
        )
    if lora.path is not None:
        for name in ("revision", "file"):
            if getattr(lora, name) is not None:
                raise ValueError(f"{path}.{name}: set together with {path}.path; leave it out")
        return
    if re.fullmatch(r"[0-9a-f]{40}", lora.revision or "") is None:
        raise ValueError(
            f"{path}.revision: {lora.revision!r} is not a full commit sha (40 hexadecimal digits); "
            "branches and tags can change under a dataset"
        )
    file = lora.file or ""
    if not file.endswith(ENDING) or not all(part.strip(". ") for part in file.split("/")):
        raise ValueError(f"{path}.file: {lora.file!r} is not the name of a {ENDING} file in it")

"""What marks a field as a place, a URL or a path of this machine, and what `~` is in one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import Field
from typing import Any

from ldm_batch.errors import JobError

PLACE: Mapping[str, Any] = {"is_place": True}
"""Metadata of a field that names a place, or a list of places."""


def is_place(field: Field[Any]) -> bool:
    """Tell whether a field of a section names a place."""
    return bool(field.metadata.get("is_place"))


def with_home(path: str) -> str:
    """A path as it is written, but that a `~` which begins it is the home folder.

    Raises:
        JobError: there is no such user here.
    """
    found = os.path.expanduser(path)
    if found.startswith("~"):
        what = "no such user is known here" if path[1:2] not in ("", "/") else "no home folder here"
        raise JobError(f"{path}: {what}; write the path out, of a file of this name ./{path}")
    return found

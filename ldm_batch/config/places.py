"""What marks a field as a place: a URL, or a path of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PLACE: Mapping[str, Any] = {"is_place": True}
"""Metadata of a field that names a place, or a list of places."""

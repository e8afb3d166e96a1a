"""Where the configuration is."""

from __future__ import annotations

from pathlib import Path


def config_folder() -> Path:
    """The `conf/` tree: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"

"""Where the configuration is."""

from __future__ import annotations

from pathlib import Path

from ldm_batch.config.groups import shipped


def config_folder() -> Path:
    """The `conf/` tree: inside an installed package, beside it in a checkout."""
    return shipped("conf")

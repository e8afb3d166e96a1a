"""What software this process runs: the versions that can change an image.

Must not know jobs or workers.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping

__version__ = "0.1.0"
RECORDED_PACKAGES = (
    *("torch", "diffusers", "transformers", "numpy", "pillow", "simplejpeg", "pyarrow", "ray"),
)
DECISIVE = ("torch", "diffusers", "transformers", "pillow", "simplejpeg", "device")
"""Of an environment, what images may differ by: in their last bits, or in the bytes that they are
stored as."""


def versions() -> dict[str, str]:
    """Versions of everything that can change an image."""
    installed = {name: importlib.metadata.version(name) for name in RECORDED_PACKAGES}
    return {"ldm_batch": __version__, "python": platform.python_version(), **installed}


def version_line() -> str:
    """Versions of ldm_batch and of what decides images, on one line; imports none of them."""
    found = versions()
    names = ("ldm_batch", "python", *(name for name in DECISIVE if name in found))
    return ", ".join(f"{name} {found[name]}" for name in names)


def differing_versions(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """Name what differs between two environments, e.g. `torch 2.6.0 (here 2.13.0)`."""
    return [
        f"{name} {there.get(name, 'missing')} (here {here.get(name, 'missing')})"
        for name in sorted(here.keys() | there.keys())
        if here.get(name) != there.get(name)
    ]


def decisive_differences(planned: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Name what differs of that by which images differ, e.g. `torch 2.6.0, now 2.13.0`; what only
    one of the two knows is no difference."""
    return [
        f"{name} {planned[name]}, now {now[name]}"
        for name in DECISIVE
        if name in planned and name in now and planned[name] != now[name]
    ]

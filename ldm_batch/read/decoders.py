"""The decoders that are open to files of unknown origin, and what they say while they decode.

Pillow warns and libtiff prints without a word of which row it is about: what means damage is heard
here, the rest goes nowhere. Must not know what is asked of an image.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from PIL import Image, _imaging

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
"""The closed list; AVIF and WebP where Pillow was built with them."""
MAX_ERRORS = 3
HEIF = "HEIF"
"""Read where pillow-heif is installed, the extra `heif`."""
_this_thread = threading.local()


@cache
def known_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that can be read here."""
    Image.init()
    _quieten()
    names = [name for name in FORMATS if name in Image.OPEN]
    return (*names, HEIF) if _open_heif() else tuple(names)


@contextmanager
def hear_libtiff() -> Iterator[list[str]]:
    """Collect the errors that libtiff tells of in this thread; some leave pixels out and go on."""
    errors: list[str] = []
    _this_thread.errors = errors
    try:
        yield errors
    finally:
        del _this_thread.errors


def _open_heif() -> bool:
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener(
        thumbnails=False, depth_images=False, aux_images=False, decode_threads=1
    )
    return HEIF in Image.OPEN


def _quieten() -> None:
    """Turn off what Pillow and libtiff tell of single files; a log cannot name the row."""
    warnings.filterwarnings("ignore", module=r"(PIL|pillow_heif)\b")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    core = ctypes.CDLL(_imaging.__file__)  # finds what Pillow's own libtiff exports, if it does
    for name, handler in (("TIFFSetErrorHandler", _on_error), ("TIFFSetWarningHandler", None)):
        try:
            set_handler = getattr(core, name)
        except AttributeError:
            continue
        set_handler.restype = ctypes.c_void_p
        set_handler(handler)


def _hear_error(module: bytes | None, message: bytes | None, _: Any) -> None:
    errors: list[str] | None = getattr(_this_thread, "errors", None)
    if errors is not None and len(errors) < MAX_ERRORS:
        # the numbers and names stand in C's own arguments
        words = (message or b"").removeprefix(b"%s").partition(b"%")[0].strip(b" :(")
        errors.append(b": ".join(filter(None, (module, words))).decode("ascii", "replace"))


_on_error = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)(_hear_error)
"""Kept for as long as libtiff may call it."""

"""What an image file of each format says of its samples and colours, where Pillow does not tell.

Must not know how it is followed: that is profiles.py's.
"""

from __future__ import annotations

import re

from PIL import Image

from ldm_batch.read.decoders import HEIF
from ldm_batch.read.png_chunks import PngChunks, apply_transparent_colour
from ldm_batch.read.profiles import Declared

TIFF_BITS = 258
NCLX = re.compile(rb"colrnclx(.{2})(.{2})(.{2})(.)", re.DOTALL)
GIF_PROFILE = b"\x21\xff\x0bICCRGBG1012"
"""How the extension begins that holds an ICC profile, which Pillow passes over."""
NUM_HEADER_BYTES = 1 << 16
"""Of an AVIF or HEIC, in which its properties stand: Pillow does not tell of them."""


def declare(image: Image.Image, data: bytes, chunks: PngChunks | None) -> Declared:
    """Gather what a loaded image's file declares.

    Args:
        image: loaded.
        data: its file.
        chunks: of that file, where it is a PNG.
    """
    if chunks is not None:
        return _declare_png(image, data, chunks)
    if image.format == "TIFF":
        return Declared(max(image.tag_v2.get(TIFF_BITS) or (8,)))  # type: ignore[attr-defined]
    if image.format == "BMP":
        return Declared(ignores_empty_alpha=True)
    if image.format == "GIF":
        return Declared(profile=_find_gif_profile(data))
    if image.format == HEIF:
        return _declare_heif(image)
    if image.format == "AVIF" and not image.info.get("icc_profile"):
        return Declared(code_points=_find_nclx(data[:NUM_HEADER_BYTES]))
    return Declared()


def _declare_png(image: Image.Image, data: bytes, chunks: PngChunks) -> Declared:
    told = chunks.told
    gamma, xy = (told.get(name, b"") for name in (b"gAMA", b"cHRM"))
    numbers = [int.from_bytes(xy[i : i + 4]) / 100_000 for i in range(0, 32, 4)]
    white, colours = numbers[:2], numbers[2:]
    return Declared(
        sample_bits=chunks.bit_depth,
        alpha=apply_transparent_colour(image, data, chunks),
        profile=told.get(b"iCCP"),  # as it is: not followed where the decoder could not unpack it
        code_points=_code_points(told.get(b"cICP")),
        is_srgb=b"sRGB" in told,
        gamma=int.from_bytes(gamma) / 100_000 if len(gamma) == 4 else None,
        chromaticities=(*colours, *white) if len(xy) == 32 else None,
    )


def _code_points(chunk: bytes | None) -> tuple[int, int, int, bool] | None:
    """Those of a cICP; of one of another length such as nobody follows."""
    if chunk is None:
        return None
    return (chunk[0], chunk[1], chunk[2], chunk[3] == 1) if len(chunk) == 4 else (0, 0, 0, False)


def _declare_heif(image: Image.Image) -> Declared:
    """The decoder made RGB of full range, whatever the file's matrix and range were."""
    nclx = image.info.get("nclx_profile")
    points = None
    if nclx and not image.info.get("icc_profile"):
        points = (nclx["color_primaries"], nclx["transfer_characteristics"], 0, True)
    return Declared(sample_bits=int(image.info.get("bit_depth", 8)), code_points=points)


def _find_nclx(header: bytes) -> tuple[int, int, int, bool] | None:
    found = NCLX.search(header)
    if found is None:
        return None
    return int.from_bytes(found[1]), int.from_bytes(found[2]), 0, True


def _find_gif_profile(data: bytes) -> bytes | None:
    """The profile, in sub-blocks of at most 255 bytes, each after its length."""
    place = data.find(GIF_PROFILE)
    if place < 0:
        return None
    place += len(GIF_PROFILE)
    parts = []
    while place < len(data) and (size := data[place]):
        parts.append(data[place + 1 : place + 1 + size])
        place += 1 + size
    return b"".join(parts)

"""Bytes of an untrusted image -> RGB pixels, or the reason why there are none.

Nothing is decoded before its format, byte length and pixel count were accepted, and whatever a
damaged file makes a decoder raise ends as a `Fault`. Must not know rows, shards or models; how
colours become RGB is colour.py's.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ldm_batch.read.colour import is_convertible, to_rgb
from ldm_batch.records import Fault, Reason

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
"""The closed list; AVIF where Pillow was built with it."""
MAX_JPEG_SCANS = 200
"""A progressive JPEG has about ten; each costs time by its pixels, not by its bytes."""
OTHER_FORMATS = {
    b"8BPS": "PSD",
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"<svg": "SVG",
    b"<?xm": "XML or SVG",
    b"\x00\x00\x01\x00": "ICO",
    b"\x00\x00\x00\x0cjP": "JPEG 2000",
    b"\xffO\xffQ": "JPEG 2000",
    b"\xff\x0a": "JPEG XL",
    b"\x00\x00\x00\x0cJXL": "JPEG XL",
    b"v/1\x01": "OpenEXR",
    b"DDS ": "DDS",
    b"qoif": "QOI",
    b"SIMPLE": "FITS",
}
"""First bytes of formats that people do send, to name them in the message."""
TIFF_TILE_WIDTH, TIFF_TILE_LENGTH, ORIENTATION = 322, 323, 274
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what puts the image upright."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What an image may cost; sides in pixels, upright."""

    max_bytes: int = 32 * 1024 * 1024
    max_pixels: int = 1024 * 1024
    max_side: int = 4095


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image as RGB, upright, and what was done to make it so."""

    pixels: NDArray[np.uint8]
    """`[height, width, 3]`, sRGB; under transparent pixels whatever the file holds there."""
    alpha: NDArray[np.uint8] | None
    """`[height, width]`, 255 is opaque; None where every pixel is."""
    format: str
    mode: str
    """Pillow's name of the pixel format that the file holds."""
    conversions: tuple[str, ...]
    """Names of what was converted, in order; see conf/README.md's table."""


def decode_image(data: bytes | None, limits: ImageLimits) -> DecodedImage | Fault:
    """Decode an image of unknown origin; never raises, whatever the bytes are.

    Args:
        data: a whole PNG, JPEG, WebP, BMP, TIFF, GIF or AVIF file.
        limits: checked before anything is decoded.
    """
    if not data:
        return Fault(Reason.NULL_IMAGE, "the image is null" if data is None else "no bytes")
    if len(data) > limits.max_bytes:
        return _too_large(f"{len(data)} bytes", f"{limits.max_bytes} (source.max_image_bytes)")
    if data[:2] == b"\xff\xd8" and data.count(b"\xff\xda") > MAX_JPEG_SCANS:
        return _too_large("a JPEG of more scans than any camera writes", f"{MAX_JPEG_SCANS} scans")
    try:
        with Image.open(io.BytesIO(data), formats=_known_formats()) as image:
            return _check_header(image, limits) or _decode(image, data)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return _too_large("its header", f"{limits.max_pixels} pixels (source.max_image_pixels)")
    except UnidentifiedImageError:
        return _unidentified(data)
    except Exception as error:  # a decoder may raise anything on a damaged file
        return Fault(
            Reason.UNDECODABLE_IMAGE, f"does not decode: {type(error).__name__}: {str(error)[:200]}"
        )


def flatten(
    pixels: NDArray[np.uint8], alpha: NDArray[np.uint8], background: tuple[int, int, int]
) -> NDArray[np.uint8]:
    """Lay an image over one colour: `(pixels * alpha + background * (255 - alpha)) / 255`.

    Args:
        pixels: uint8 `[height, width, 3]`.
        alpha: uint8 `[height, width]`.
        background: red, green and blue, 0 to 255.
    """
    weight = alpha[..., None].astype(np.uint32)
    colour = np.asarray(background, np.uint32)
    return ((pixels * weight + colour * (255 - weight) + 127) // 255).astype(np.uint8)


def _known_formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _check_header(image: Image.Image, limits: ImageLimits) -> Fault | None:
    """Judge what the header declares, before any pixel is decoded."""
    width, height = image.size
    if width < 1 or height < 1:
        return Fault(Reason.UNDECODABLE_IMAGE, f"declares {width}x{height} pixels")
    declared = [(width, height)]
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        declared.append((int(tags.get(TIFF_TILE_WIDTH, 1)), int(tags.get(TIFF_TILE_LENGTH, 1))))
    for wide, high in declared:
        if wide * high > limits.max_pixels:
            return _too_large(
                f"{wide}x{high} pixels", f"{limits.max_pixels} (source.max_image_pixels)"
            )
    if max(width, height) > limits.max_side:
        return _too_large(
            f"{width}x{height} pixels", f"{limits.max_side} a side, to fit its format when larger"
        )
    if not is_convertible(image):
        return Fault(
            Reason.UNSUPPORTED_IMAGE,
            f"samples of mode {image.mode}: which value is white is not defined",
        )
    return None


def _decode(image: Image.Image, data: bytes) -> DecodedImage:
    stored_format, mode = str(image.format), image.mode
    conversions = ["first_frame"] if _is_animated(image) else []
    turn = TRANSPOSITIONS.get(_orientation(image))
    image.load()
    pixels, alpha, converted = to_rgb(image, data)
    if turn is not None:
        conversions.append("exif_orientation")
        if stored_format != "TIFF":  # Pillow turns TIFFs itself
            pixels = np.asarray(Image.fromarray(pixels).transpose(turn))
            alpha = None if alpha is None else np.asarray(Image.fromarray(alpha).transpose(turn))
    return DecodedImage(pixels, alpha, stored_format, mode, (*conversions, *converted))


def _is_animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a damaged second frame does not spoil the first
        return True
    finally:
        image.seek(0)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, upright, where the metadata is damaged."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # metadata does not spoil the pixels
        return 1


def _too_large(what: str, limit: str) -> Fault:
    return Fault(Reason.IMAGE_TOO_LARGE, f"{what}; at most {limit}")


def _unidentified(data: bytes) -> Fault:
    for start, name in OTHER_FORMATS.items():
        if data.startswith(start):
            return Fault(Reason.UNSUPPORTED_IMAGE, f"{name} is none of {', '.join(FORMATS)}")
    return Fault(
        Reason.UNDECODABLE_IMAGE, f"no header of {', '.join(FORMATS)} in its {len(data)} bytes"
    )

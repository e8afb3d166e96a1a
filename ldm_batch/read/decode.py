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
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from ldm_batch.read.colour import is_convertible, to_rgb
from ldm_batch.read.declarations import NUM_HEADER_BYTES, declare
from ldm_batch.read.decoders import HEIF, hear_libtiff, known_formats
from ldm_batch.read.formats import name_damaged, name_unidentified, our_format
from ldm_batch.read.jpeg_scan import check_number_of_scans, check_scans, check_tiff_scans
from ldm_batch.read.png_chunks import PngChunks, check_length, is_png, read_chunks
from ldm_batch.records import Fault, Reason

JPEG_START = b"\xff\xd8"
TIFF_TILE_WIDTH, TIFF_TILE_LENGTH, TIFF_TILE_OFFSETS, ORIENTATION = 322, 323, 324, 274
TIFF_WIDTH, TIFF_HEIGHT = 256, 257
TIFF_STRIP_OFFSETS, TIFF_ROWS_PER_STRIP, TIFF_SAMPLES, TIFF_PLANES = 273, 278, 277, 284
SEPARATE_PLANES = 2
TIFF_COMPRESSION, OLD_JPEG = 259, 6
"""A whole JPEG beside the strips, which may be absent."""
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


def decode_image(
    data: bytes | None, limits: ImageLimits, *, is_colour: bool = True
) -> DecodedImage | Fault:
    """Decode an image of unknown origin; whatever the bytes are, only `MemoryError` gets out.

    Args:
        data: a whole PNG, JPEG, WebP, BMP, TIFF, GIF, AVIF or HEIC file.
        limits: checked before anything is decoded.
        is_colour: false of a mask: what its file declares its colours to be is not followed.
    """
    if not data:
        return Fault(Reason.NULL_IMAGE, "the image is null" if data is None else "no bytes")
    if len(data) > limits.max_bytes:
        return _too_large(f"{len(data)} bytes", f"{limits.max_bytes} (source.max_image_bytes)")
    if data.startswith(JPEG_START) and (fault := check_number_of_scans(data)):
        return fault
    chunks = read_chunks(data) if is_png(data) else None
    if isinstance(chunks, Fault):
        return chunks
    errors: list[str] = []
    try:
        with hear_libtiff() as errors:
            return _read(data, chunks, limits, errors, is_colour=is_colour)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return _too_large("its header", f"{limits.max_pixels} pixels (source.max_image_pixels)")
    except UnidentifiedImageError:
        return name_unidentified(data, known_formats(), _reason(data))
    except MemoryError:  # ours, not the file's: its size was accepted
        raise
    except Exception as error:  # a decoder may raise anything on a damaged file
        return name_damaged(data, _why_not_decoded(data, error, errors))


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


def _read(
    data: bytes,
    chunks: PngChunks | None,
    limits: ImageLimits,
    errors: list[str],
    *,
    is_colour: bool,
) -> DecodedImage | Fault:
    with Image.open(io.BytesIO(data), formats=known_formats()) as image:
        if fault := _check_header(image, limits):
            return fault
        if fault := (check_length(chunks) if chunks is not None else _check_strips(image)):
            return fault
        noted = _check_scans(image, data, limits)
        if isinstance(noted, Fault):
            return noted
        decoded = _decode(image, data, chunks, noted, is_colour=is_colour)
        if errors:
            return Fault(Reason.UNDECODABLE_IMAGE, f"a TIFF, damaged: {errors[0][:200]}")
        height, width, _ = decoded.pixels.shape
        if height * width > limits.max_pixels:  # a HEIC may hold more than it declares
            return _too_large(f"{width}x{height} pixels", "what its header declares")
        return decoded


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
            f"{width}x{height} pixels",
            f"{limits.max_side} a side, by what its format, or source.max_side, takes when larger",
        )
    if not is_convertible(image):
        return Fault(
            Reason.UNSUPPORTED_IMAGE,
            f"samples of mode {image.mode}: which value is white is not defined",
        )
    return None


def _check_strips(image: Image.Image) -> Fault | None:
    """Tell of a TIFF that lists fewer strips, or tiles, than its height and width take."""
    if image.format != "TIFF":
        return None
    tags = image.tag_v2  # type: ignore[attr-defined]
    width, height = int(tags[TIFF_WIDTH]), int(tags[TIFF_HEIGHT])  # as stored, before it is turned
    if wide := int(tags.get(TIFF_TILE_WIDTH, 0)):
        num = -(-width // wide) * -(-height // max(1, int(tags.get(TIFF_TILE_LENGTH, 0))))
        listed = tags.get(TIFF_TILE_OFFSETS, ())
    else:
        num = -(-height // (min(height, int(tags.get(TIFF_ROWS_PER_STRIP, height))) or height))
        listed = tags.get(TIFF_STRIP_OFFSETS, ())
    if tags.get(TIFF_PLANES) == SEPARATE_PLANES:
        num *= int(tags.get(TIFF_SAMPLES, 1))
    if len(listed) >= num or tags.get(TIFF_COMPRESSION) == OLD_JPEG:
        return None
    what = f"{len(listed)} of {num} strips or tiles"
    return Fault(Reason.UNDECODABLE_IMAGE, f"a TIFF, cut or damaged: it lists {what}")


def _check_scans(image: Image.Image, data: bytes, limits: ImageLimits) -> Fault | tuple[str, ...]:
    if data.startswith(JPEG_START):
        return check_scans(data, limits.max_pixels)
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        return check_tiff_scans(tags, data, limits.max_pixels)
    return ()


def _decode(
    image: Image.Image,
    data: bytes,
    chunks: PngChunks | None,
    noted: tuple[str, ...],
    *,
    is_colour: bool,
) -> DecodedImage:
    stored_format, mode = str(image.format), image.mode
    conversions = [*noted]
    if _is_animated(image):
        conversions.append("primary_image" if stored_format == HEIF else "first_frame")
    is_tiff = stored_format == "TIFF"
    orientation = _tiff_orientation(image) if is_tiff else 1
    image.load()
    orientation = orientation if is_tiff else _orientation(image)
    pixels, alpha, converted = to_rgb(image, declare(image, data, chunks), is_colour=is_colour)
    if stored_format == HEIF:
        conversions += _heif_orientation(image, data)
    elif orientation != 1:
        conversions.append("exif_orientation")
    if not is_tiff and (turn := TRANSPOSITIONS.get(orientation)) is not None:
        pixels = np.asarray(Image.fromarray(pixels).transpose(turn))
        alpha = None if alpha is None else np.asarray(Image.fromarray(alpha).transpose(turn))
    return DecodedImage(pixels, alpha, stored_format, mode, (*conversions, *converted))


def _is_animated(image: Image.Image) -> bool:
    start = image.tell()  # of a HEIC: which of its images is the primary one
    try:
        return bool(getattr(image, "is_animated", False))
    except MemoryError:
        raise
    except Exception:  # a damaged second frame does not spoil the first
        return True
    finally:
        image.seek(start)


def _tiff_orientation(image: Image.Image) -> int:
    """A TIFF's orientation, to be asked before it is loaded: Pillow turns it and forgets."""
    try:
        return int(image.tag_v2.get(ORIENTATION, 1))  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        return 1


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, upright, where the metadata is damaged.

    Only of an image that is loaded: asking loads a PNG, and would swallow what is wrong with it.
    """
    try:
        orientation = int(image.getexif().get(ORIENTATION, 1))
    except MemoryError:
        raise
    except Exception:  # metadata does not spoil the pixels
        return 1
    return orientation if orientation in TRANSPOSITIONS else 1


def _heif_orientation(image: Image.Image, data: bytes) -> list[str]:
    """What became of the orientation: the decoder turned by the file's own properties; where there
    are none, the standard leaves EXIF's aside."""
    if image.info.get("original_orientation") not in TRANSPOSITIONS:
        return []
    is_turned = any(box in data[:NUM_HEADER_BYTES] for box in (b"irot", b"imir"))
    return ["exif_orientation" if is_turned else "exif_orientation_ignored"]


def _reason(data: bytes) -> str:
    """What the decoder of its own format has against a file; Pillow only says that none took it."""
    name = our_format(data)
    if name not in known_formats():
        return ""
    try:
        with Image.OPEN[name][0](io.BytesIO(data), ""):
            return ""
    except MemoryError:
        raise
    except Exception as error:
        compression = _compression(data) if name == "TIFF" else None
        if compression in (None, *TiffImagePlugin.COMPRESSION_INFO):
            return str(error)
        return f"TIFF compression {compression} is not available"


def _why_not_decoded(data: bytes, error: Exception, errors: list[str]) -> str:
    """What a decoder has against a file that it began with.

    Args:
        errors: what libtiff told of meanwhile, which says more than Pillow's number of an error.
    """
    if not errors:
        return f"{type(error).__name__}: {error}"
    if "not configured" in errors[0]:
        return f"TIFF compression {_compression(data)} is not available"
    return errors[0]


def _compression(data: bytes) -> int | None:
    """The number of a TIFF's compression; None where it is damaged before it says so."""
    try:
        directory = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if 43 in data[2:4] else 8])
        file = io.BytesIO(data)
        file.seek(directory.next)
        directory.load(file)
        return int(directory.get(TIFF_COMPRESSION, 1))
    except MemoryError:
        raise
    except Exception:
        return None


def _too_large(what: str, limit: str) -> Fault:
    return Fault(Reason.IMAGE_TOO_LARGE, f"{what}; at most {limit}")

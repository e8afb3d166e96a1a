"""The chunks of a PNG: whether each is whole, and what those say that Pillow does not tell.

Pillow accepts a PNG with a wrong checksum in its pixels where its metadata is asked for first. Must
not know how colours become RGB.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldm_batch.records import Fault, Reason

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_PNG_CHUNKS = 50_000
"""32 MB in parts of 8 kB, as most software cuts them, are 4,000; 2.8 million take seconds."""
HEADER = len(SIGNATURE) + 8
"""Where the content of IHDR begins."""
GREY, RGB = 0, 2
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Colour type -> samples of a pixel."""
ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
"""First column and row of each of the seven images, and the steps between their pixels."""
UNPACKED_AT_ONCE = 1 << 20
TOLD = (b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"tRNS")


@dataclass(frozen=True, slots=True)
class PngChunks:
    """What the chunks of a whole PNG say, in bits, as the specification packs it."""

    bit_depth: int
    colour_type: int
    told: Mapping[bytes, bytes]
    """Name -> content of the first chunk of each name in `TOLD`."""
    pixel_data: tuple[memoryview, ...]
    """What the IDAT chunks hold, in order."""
    width: int
    height: int
    is_interlaced: bool


def is_png(data: bytes) -> bool:
    """Tell whether the first bytes are those of a PNG."""
    return data.startswith(SIGNATURE)


def read_chunks(data: bytes) -> PngChunks | Fault:
    """Check every chunk's checksum, to the last one; decodes nothing.

    Args:
        data: a file that begins as a PNG does; what stands behind IEND is not looked at.
    """
    told: dict[bytes, bytes] = {}
    pixel_data: list[memoryview] = []
    view, place, num_chunks = memoryview(data), len(SIGNATURE), 0
    kind = b""
    while kind != b"IEND":
        num_chunks += 1
        if num_chunks > MAX_PNG_CHUNKS:
            return Fault(Reason.IMAGE_TOO_LARGE, f"a PNG of more than {MAX_PNG_CHUNKS} chunks")
        length, kind = int.from_bytes(view[place : place + 4]), bytes(view[place + 4 : place + 8])
        end = place + 8 + length
        if end + 4 > len(data):
            return _damaged(f"cut, or damaged: it ends inside its chunk {num_chunks}")
        if zlib.crc32(view[place + 4 : end]) != int.from_bytes(view[end : end + 4]):
            return _damaged(f"damaged: the checksum of its chunk {num_chunks} is wrong")
        if num_chunks == 1 and (kind, length) != (b"IHDR", 13):
            return _damaged("without a header")
        if kind == b"IDAT":
            pixel_data.append(view[place + 8 : end])
        if kind in TOLD:
            told.setdefault(kind, bytes(view[place + 8 : end]))
        place = end + 4
    width, height, depth, colour_type, interlace = struct.unpack_from(">IIBB2xB", data, HEADER)
    return PngChunks(
        depth, colour_type, told, tuple(pixel_data), width, height, is_interlaced=interlace == 1
    )


def check_length(chunks: PngChunks) -> Fault | None:
    """Tell of pixels that end early: Pillow leaves the rest black where the stream itself is whole.

    For an image whose size is accepted: unpacks no more than that size takes.
    """
    left = _num_unpacked_bytes(chunks)
    unpacker = zlib.decompressobj()
    try:
        packed: bytes | memoryview
        for packed in (*chunks.pixel_data, memoryview(b"")):  # the last: what is still to give out
            while left > 0 and not unpacker.eof:
                num_bytes = len(unpacker.decompress(packed, min(left, UNPACKED_AT_ONCE)))
                left, packed = left - num_bytes, bytes(unpacker.unconsumed_tail)
                if not num_bytes and not packed:
                    break
    except zlib.error as error:
        return _damaged(f"damaged: {error}")
    return _damaged(f"cut, or damaged: its pixels lack {left} bytes") if left > 0 else None


def _num_unpacked_bytes(chunks: PngChunks) -> int:
    """Bytes of all rows, each with its filter's; interlaced, those of seven images (Adam7)."""
    bits = chunks.bit_depth * CHANNELS.get(chunks.colour_type, 0)
    steps = ADAM7 if chunks.is_interlaced else ((0, 0, 1, 1),)
    total = 0
    for x, y, across, down in steps:
        width, height = -(-(chunks.width - x) // across), -(-(chunks.height - y) // down)
        if width > 0 and height > 0:
            total += height * (1 + -(-width * bits // 8))
    return total


def _damaged(what: str) -> Fault:
    return Fault(Reason.UNDECODABLE_IMAGE, f"a PNG, {what}")


def apply_transparent_colour(
    image: Image.Image, data: bytes, chunks: PngChunks
) -> NDArray[np.uint8] | None:
    """Make the one transparent colour of a grey or RGB image mean what the file says.

    Pillow compares it with samples that it has scaled (2 and 4 bits) or cut (16 bits); older ones
    do not look it up in bilevel images.

    Args:
        image: loaded; its `transparency` is set right, or taken away where alpha is returned.

    Returns:
        alpha, uint8 `[height, width]`, where no 8-bit colour can say it.
    """
    key = chunks.told.get(b"tRNS", b"")
    bits = chunks.bit_depth
    if chunks.colour_type == GREY and bits in (2, 4) and len(key) >= 2:
        largest = 2**bits - 1
        image.info["transparency"] = (int.from_bytes(key[:2]) & largest) * 255 // largest
    if chunks.colour_type == GREY and bits == 1 and len(key) >= 2:
        image.info.pop("transparency", None)
        return np.where(np.asarray(image) == (key[1] & 1), 0, 255).astype(np.uint8)
    if chunks.colour_type != RGB or bits != 16 or len(key) < 6:
        return None
    image.info.pop("transparency", None)
    high = np.asarray(image) == np.frombuffer(key[0:6:2], np.uint8)
    low = np.asarray(_low_bytes(data)) == np.frombuffer(key[1:6:2], np.uint8)
    return np.where((high & low).all(axis=-1), 0, 255).astype(np.uint8)


def _low_bytes(data: bytes) -> Image.Image:
    """The low bytes of 16-bit RGB samples: PNG's order read as if it were the other one."""
    image = Image.open(io.BytesIO(data), formats=["PNG"])
    image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]
    image.load()
    return image

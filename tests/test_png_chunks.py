"""PNGs: every chunk whole, or none of its pixels; the one transparent colour, at every depth."""

import itertools
import struct
import zlib

import numpy as np
import pytest
from image_files import SIGNATURE, chunk, encode, make_png, with_chunks
from PIL import Image
from test_decode import LIMITS, decoded, draw

from ldm_batch.read.decode import DecodedImage, decode_image
from ldm_batch.read.png_chunks import ADAM7, MAX_PNG_CHUNKS, read_chunks
from ldm_batch.records import Fault, Reason

SMALL = {
    "rgb": encode(draw("RGB", (4, 3)), "PNG"),
    "palette": with_chunks(encode(draw("P", (3, 3)).quantize(4), "PNG"), gAMA=(45_455,)),
    "deep_grey": make_png(np.arange(9).reshape(3, 3, 1) * 7000, 16, 0, tRNS=b"\x1b\x58"),
}


@pytest.mark.parametrize("name", SMALL)
def test_every_flipped_bit_is_seen_or_changes_nothing(name: str) -> None:
    data = SMALL[name]
    whole = decoded(data)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        result = decode_image(bytes(flipped), LIMITS)
        if isinstance(result, DecodedImage):
            assert np.array_equal(result.pixels, whole.pixels)
        else:
            assert result.reason == Reason.UNDECODABLE_IMAGE, result


@pytest.mark.parametrize("name", SMALL)
def test_every_cut_is_seen(name: str) -> None:
    for end in range(1, len(SMALL[name])):
        result = decode_image(SMALL[name][:end], LIMITS)
        assert isinstance(result, Fault)
        assert result.reason == Reason.UNDECODABLE_IMAGE
        assert end < 8 or "cut" in result.message


def test_damage_in_metadata_is_damage() -> None:
    data = bytearray(encode(draw("RGB", (4, 3)), "PNG", exif=b"Exif\0\0II*\0" + bytes(20)))
    data[data.index(b"eXIf") + 8] ^= 1
    result = decode_image(bytes(data), LIMITS)
    assert isinstance(result, Fault)
    assert "checksum" in result.message


def test_what_stands_behind_the_end_is_not_looked_at() -> None:
    assert np.array_equal(decoded(SMALL["rgb"] + b"trailing").pixels, decoded(SMALL["rgb"]).pixels)


def test_many_chunks_are_refused_before_they_are_read() -> None:
    few = chunk(b"tIME", b"") * 100
    many = chunk(b"teXt", b"") * MAX_PNG_CHUNKS
    for between, is_fine in ((few, True), (many, False)):
        data = SMALL["rgb"][:33] + between + SMALL["rgb"][33:]
        result = read_chunks(data)
        assert isinstance(result, Fault) != is_fine
        assert is_fine or result.reason == Reason.IMAGE_TOO_LARGE


def test_a_png_without_header_is_damaged() -> None:
    result = read_chunks(SIGNATURE + chunk(b"IEND", b""))
    assert isinstance(result, Fault)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_transparent_grey_of_every_depth(bits: int) -> None:
    largest = 2**bits - 1
    levels = np.unique([0, 1, largest // 2, largest - 1, largest])
    samples = np.tile(levels, (3, 1))[..., None]
    for key in levels.tolist():
        result = decoded(make_png(samples, bits, 0, tRNS=int(key).to_bytes(2)))
        assert result.alpha is not None
        assert np.array_equal(result.alpha == 0, samples[..., 0] == key)
        shown = (samples[..., 0] * 255 + largest // 2) // largest
        assert np.array_equal(result.pixels[..., 0], shown)
        assert "alpha_split" in result.conversions


DEEP = [(0x1234, 0x5678, 0x9ABC), (0x1235, 0x5678, 0x9ABC), (0x1234, 0x56FF, 0x9ABC)]
DEEP_KEY = b"".join(part.to_bytes(2) for part in DEEP[0])


def deep_interlaced() -> bytes:
    """The 3x2 pixels of `DEEP`, twice, in the order of Adam7: first, third, second, second row."""
    packed = [b"".join(part.to_bytes(2) for part in colour) for colour in DEEP]
    first, second, third = packed
    rows = [first, third, second, first + second + third]
    header = struct.pack(">IIBBBBB", 3, 2, 16, 2, 0, 0, 1)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = ((b"IHDR", header), (b"tRNS", DEEP_KEY), (b"IDAT", body), (b"IEND", b""))
    return SIGNATURE + b"".join(chunk(*parts) for parts in chunks)


@pytest.mark.parametrize(
    "data",
    [make_png(np.array([DEEP] * 2), 16, 2, tRNS=DEEP_KEY), deep_interlaced()],
    ids=["plain", "interlaced"],
)
def test_the_transparent_colour_of_16_bits(data: bytes) -> None:
    result = decoded(data)
    assert result.alpha is not None
    assert result.alpha.tolist() == [[0, 255, 255]] * 2
    assert result.pixels.reshape(-1, 3).tolist() == [[0x12, 0x56, 0x9A]] * 6
    assert result.conversions == ("16_bit_to_8", "alpha_split")


def test_a_transparent_colour_that_no_pixel_has() -> None:
    opaque = decoded(make_png(np.array([DEEP] * 2), 16, 2, tRNS=b"\xff" * 6))
    assert (opaque.alpha, opaque.conversions) == (None, ("16_bit_to_8",))


def test_transparency_of_other_forms_is_pillows() -> None:
    for mode, file_format in itertools.product(("RGBA", "LA"), ("PNG",)):
        image = draw(mode, (5, 5))
        result = decoded(encode(image, file_format))
        assert np.array_equal(result.alpha, np.asarray(image.getchannel("A")))
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    result = decoded(encode(palette, "PNG", transparency=b"\xff\x80"))
    assert result.alpha is not None
    assert result.alpha.tolist() == [[128, 128]] * 2


SHAPES = [
    (bits, colour_type, channels)
    for colour_type, channels, depths in (
        (0, 1, (1, 2, 4, 8, 16)),
        (2, 3, (8, 16)),
        (3, 1, (1, 2, 4, 8)),
        (4, 2, (8, 16)),
        (6, 4, (8, 16)),
    )
    for bits in depths
]


@pytest.mark.parametrize("is_interlaced", [False, True])
@pytest.mark.parametrize(("bits", "colour_type", "channels"), SHAPES)
def test_pixels_that_end_early_are_missed(
    bits: int, colour_type: int, channels: int, is_interlaced: bool
) -> None:
    """Pillow leaves the rest black where the packed stream itself is whole."""
    palette = chunk(b"PLTE", bytes(3)) if colour_type == 3 else b""
    for width, height in ((1, 1), (2, 3), (5, 7), (9, 17)):
        header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, int(is_interlaced))
        steps = ADAM7 if is_interlaced else ((0, 0, 1, 1),)
        sizes = [
            (len(range(x, width, across)), len(range(y, height, down)))
            for x, y, across, down in steps
        ]
        num_bytes = sum(h * (1 + (w * bits * channels + 7) // 8) for w, h in sizes if w)
        for num, is_whole in ((num_bytes, True), (num_bytes - 1, False), (0, False)):
            body = chunk(b"IDAT", zlib.compress(bytes(num)))
            data = SIGNATURE + chunk(b"IHDR", header) + palette + body + chunk(b"IEND", b"")
            result = decode_image(data, LIMITS)
            assert isinstance(result, DecodedImage) == is_whole
            assert is_whole or "its pixels lack" in str(result)


def test_pixels_in_many_chunks_are_counted_in_all() -> None:
    rows = b"".join(b"\0" + bytes([y]) * 3 * 300 for y in range(200))
    packed = zlib.compress(rows)
    parts = b"".join(chunk(b"IDAT", packed[i : i + 7]) for i in range(0, len(packed), 7))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 300, 200, 8, 2, 0, 0, 0))
    data = SIGNATURE + header + parts + chunk(b"IEND", b"")
    assert decoded(data).pixels[:, 0, 0].tolist() == list(range(200))


def test_declarations_that_cannot_be_read_are_named() -> None:
    png = encode(draw("RGB", (4, 3)), "PNG")
    damaged = with_chunks(png, iCCP=b"name\0\0not packed")
    assert decoded(damaged).conversions == ("icc_ignored",)
    assert decoded(with_chunks(png, cICP=b"\x01\x0d")).conversions == ("cicp_ignored",)

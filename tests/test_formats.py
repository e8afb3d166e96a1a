"""Files that cannot be read: told by name, with the way out, or told to be cut or damaged."""

import base64
import io
import struct
import sys
from contextlib import suppress

import numpy as np
import pytest
from image_files import encode
from PIL import Image
from test_decode import LIMITS, draw

from ldm_batch.read import decoders
from ldm_batch.read.decode import DecodedImage, decode_image
from ldm_batch.read.formats import is_cut, name_damaged, name_unidentified
from ldm_batch.records import Fault, Reason

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")

PLAIN = draw("RGB", (64, 48))
PNG = encode(PLAIN, "PNG")
KNOWN = decoders.FORMATS
NAMED = {
    "ICNS": encode(Image.new("RGBA", (16, 16)), "ICNS"),
    "TGA": encode(PLAIN, "TGA"),
    "PPM": encode(PLAIN, "PPM"),
    "PCX": encode(PLAIN, "PCX"),
    "SGI": encode(PLAIN, "SGI"),
    "ICO": encode(PLAIN, "ICO"),
    "CUR": b"\0\0\2\0\1\0" + bytes(40),
    "JPEG 2000": encode(PLAIN, "JPEG2000"),
    "XCF": b"gimp xcf file\0" + bytes(40),
    "Canon CR3": b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(40),
    "a ZIP archive": b"PK\3\4" + bytes(40),
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
    "a video": b"\0\0\0\x18ftypisom\0\0\0\1isommp42" + bytes(40),
}
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4"/>'
SVGS = [
    SVG,
    b"\xef\xbb\xbf" + SVG,
    b"\n  " + SVG,
    b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- made by hand -->\n' + SVG,
    "\ufeff".encode("utf-16-le") + SVG.decode().encode("utf-16-le"),
    b'<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "x">' + SVG,
]
PAGES = [
    b"<!DOCTYPE html><html><body>404</body></html>",
    b"\n<html><head>",
    b"\xef\xbb\xbf <!-- 1 --><HTML>",
    b"<h1>Not found</h1>",
]


def fault(data: bytes) -> Fault:
    result = decode_image(data, LIMITS)
    assert isinstance(result, Fault), result
    assert len(result.message) < 400
    return result


@pytest.mark.parametrize("name", NAMED)
def test_foreign_formats_are_named_with_the_way_out(name: str) -> None:
    result = fault(NAMED[name])
    assert result.reason == Reason.UNSUPPORTED_IMAGE
    assert result.message.startswith(name)
    assert ": " in result.message


@pytest.mark.parametrize(("name", "texts"), [("SVG", SVGS), ("HTML", PAGES)])
def test_texts_are_told_behind_a_mark_or_space(name: str, texts: list[bytes]) -> None:
    for text in texts:
        assert fault(text).message.startswith(name), text
        assert fault(text).reason == Reason.UNSUPPORTED_IMAGE


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "AVIF"])
def test_base64_text_says_of_what(file_format: str) -> None:
    text = base64.b64encode(encode(PLAIN, file_format))
    lines = base64.encodebytes(encode(PLAIN, file_format))
    uri = b"data:image/x;base64," + text
    for data in (
        text,
        uri,
        lines,
        b'"' + text,
        base64.urlsafe_b64encode(encode(PLAIN, file_format)),
    ):
        result = fault(data)
        assert result.reason == Reason.UNSUPPORTED_IMAGE
        assert result.message.startswith(f"base64 text of {file_format}")
        assert "decode" in result.message


def test_noise_and_words_are_no_format() -> None:
    random = np.random.default_rng(1)
    for data in (b"no image", b"Tm8gaW1hZ2UgYXQgYWxsLCBqdXN0IHdvcmRz", b"\x80" + random.bytes(200)):
        assert fault(data).reason == Reason.UNDECODABLE_IMAGE
        assert "no header" in fault(data).message


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate", "jpeg", "packbits"])
def test_a_cut_tiff_is_cut(compression: str) -> None:
    data = encode(PLAIN, "TIFF", compression=compression)
    for end in (9, len(data) // 3, len(data) // 2, len(data) - 200):
        result = fault(data[:end])
        assert result.reason == Reason.UNDECODABLE_IMAGE
        assert "cut" in result.message, result


def test_a_cut_avif_is_cut() -> None:
    data = encode(PLAIN, "AVIF")
    for end in (50, len(data) // 2, len(data) - 5):
        result = fault(data[:end])
        assert result.reason == Reason.UNDECODABLE_IMAGE
        assert result.message.startswith("AVIF, cut:")
    assert is_cut(data[:-1])
    assert not is_cut(data)


def test_damage_is_told_of_the_format_it_is_in() -> None:
    for file_format in ("TIFF", "WEBP", "GIF", "BMP", "JPEG"):
        data = bytearray(encode(PLAIN, file_format))
        data[16:] = bytes(len(data) - 16)
        result = fault(bytes(data))
        assert result.reason in (Reason.UNDECODABLE_IMAGE, Reason.UNSUPPORTED_IMAGE)
        assert "no header" not in result.message


def test_a_codec_that_is_missing_is_told() -> None:
    avif = encode(PLAIN, "AVIF")
    result = name_unidentified(avif, tuple(name for name in KNOWN if name != "AVIF"), "")
    assert result.reason == Reason.UNSUPPORTED_IMAGE
    assert "Pillow has no decoder" in result.message
    missing = name_damaged(b"II*\0", "OSError: decoder libtiff not available")
    assert missing.reason == Reason.UNSUPPORTED_IMAGE
    assert "codec" in missing.message


@pytest.mark.parametrize("number", [50002, 34712])
def test_a_compression_that_pillow_does_not_know_is_told(number: int) -> None:
    """JPEG XL and JPEG 2000 inside of a TIFF: it is not damaged, and nobody should think so."""
    result = fault(_with_tag(encode(PLAIN, "TIFF"), 259, number))
    assert result.reason == Reason.UNSUPPORTED_IMAGE
    assert f"TIFF compression {number} is not available" in result.message


def test_a_compression_that_libtiff_was_built_without_is_told() -> None:
    with suppress(OSError):
        encode(PLAIN, "TIFF", compression="webp")
        pytest.skip("this libtiff has WebP")
    result = fault(_with_tag(encode(PLAIN, "TIFF", compression="tiff_lzw"), 259, 50001))
    if "compression 50001" not in result.message:
        pytest.skip("nobody hears this Pillow's libtiff")
    assert result.reason == Reason.UNSUPPORTED_IMAGE
    assert "TIFF compression 50001 is not available" in result.message


def test_samples_that_pillow_has_no_mode_for_are_no_damage() -> None:
    data = _with_tag(encode(PLAIN, "TIFF"), 262, 32845)  # LogLuv
    assert fault(data).reason == Reason.UNSUPPORTED_IMAGE


def test_a_reason_is_one_line() -> None:
    cut = name_damaged(b"II*\0", "Unexpected end of file:\nat 377\n")
    assert cut.message.endswith("Unexpected end of file: at 377")


def _with_tag(data: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF with another short value of a tag."""
    changed, place = bytearray(data), int.from_bytes(data[4:8], "little")
    for entry in range(place + 2, place + 2 + 12 * data[place], 12):
        if int.from_bytes(data[entry : entry + 2], "little") == tag:
            changed[entry + 8 : entry + 10] = value.to_bytes(2, "little")
    assert changed != data
    return bytes(changed)


HEIC = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(40)


def test_heic_without_its_decoder_is_told_with_the_way_out() -> None:
    result = name_unidentified(HEIC, KNOWN, "")
    assert result.reason == Reason.UNSUPPORTED_IMAGE
    assert "pip install 'ldm-batch[heif]'" in result.message


def test_heic_without_its_decoder_is_no_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    decoders.known_formats.cache_clear()
    try:
        assert "HEIF" not in decoders.known_formats()
        assert fault(HEIC).reason == Reason.UNSUPPORTED_IMAGE
    finally:
        monkeypatch.undo()
        decoders.known_formats.cache_clear()


def test_comments_of_a_page_take_no_time() -> None:
    """Each one doubled the time where they could be told apart in several ways."""
    assert "no header" in fault(b"<!-- -->" * 400 + b"hello").message
    assert "HTML" in fault(b"<!--[if IE]> <![endif]-->\n" * 100 + b"<div>").message


def test_strips_that_are_not_listed_are_missed() -> None:
    picture = np.zeros((96, 64, 3), np.uint8)
    for options in ({}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}):
        data = bytearray(encode(Image.fromarray(picture), "TIFF", **options))
        assert isinstance(decode_image(bytes(data), LIMITS), DecodedImage)
    tall = encode(Image.fromarray(picture), "TIFF", tiffinfo={278: 16}, compression="tiff_lzw")
    with Image.open(io.BytesIO(tall)) as image:
        assert len(image.tag_v2[273]) == 6
    short = bytearray(tall)
    entry = short.index(struct.pack("<HHI", 273, 4, 6))
    short[entry + 4 : entry + 8] = struct.pack("<I", 3)
    assert "it lists 3 of 6 strips" in fault(bytes(short)).message

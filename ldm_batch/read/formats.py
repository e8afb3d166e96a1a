"""What a file that no decoder takes is, by its first bytes, and the way out for who sent it.

Must not know how any of them is decoded.
"""

from __future__ import annotations

import base64
import binascii
import re

from ldm_batch.records import Fault, Reason

OURS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
FOREIGN = {
    b"8BPS": "PSD",
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"\x00\x00\x01\x00": "ICO",
    b"\x00\x00\x02\x00": "CUR",
    b"icns": "ICNS",
    b"\x01\xda": "SGI",
    b"\x00\x00\x00\x0cjP": "JPEG 2000",
    b"\xffO\xffQ": "JPEG 2000",
    b"\xff\x0a": "JPEG XL",
    b"\x00\x00\x00\x0cJXL": "JPEG XL",
    b"II\xbc": "JPEG XR",
    b"v/1\x01": "OpenEXR",
    b"DDS ": "DDS",
    b"qoif": "QOI",
    b"SIMPLE": "FITS",
    b"gimp xcf": "XCF",
    b"\xd7\xcd\xc6\x9a": "WMF",
}
"""First bytes of formats that people do send, to name them in the message."""
CONTAINERS = {
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "gzip",
    b"version https://git-lfs": "a Git LFS pointer",
}
BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys(
        (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIF"
    ),
    b"crx ": "Canon CR3",
}
"""Brand of an ISO media file -> its format."""
PROLOGUE = rb"(<\?xml[^>]*>\s*)?(<!--(?:(?!-->).)*+-->\s*+)*+"
"""Each comment ends at its first end: a pattern with a choice would try 2^n of them."""
TEXTS = (
    (PROLOGUE + rb"(<!doctype svg[^>]*>\s*)?<svg\b", "SVG"),
    (
        PROLOGUE + rb"<(!doctype html|html|head|body|meta|title|script|div|p|pre|center|h1)\b",
        "HTML",
    ),
    (rb"<\?xml", "XML or SVG"),
    (rb'\{\s*"', "JSON"),
)
WAY_OUT = "convert it to PNG first"
WAYS_OUT = {
    "HTML": "the server sent a page in place of the image: fetch it again",
    "JSON": "the server sent an answer in place of the image: fetch it again",
    "a Git LFS pointer": "fetch the file itself: git lfs pull",
    "a ZIP archive": "unpack it first",
    "gzip": "unpack it first",
    "ICO": "save its largest picture as PNG first",
    "CUR": "save its largest picture as PNG first",
    "ICNS": "save its largest picture as PNG first",
}
BASE64 = re.compile(rb"(data:[\w/+.-]*;base64,)?([A-Za-z0-9+/_-]{16,64})")
NO_CODEC = re.compile(
    r"not available|not configured|unsupported (bmp compression|codec|feature)|unknown pixel mode",
    re.IGNORECASE,
)
"""How decoders say that a file may be whole and is not for them."""
NUM_START = 4096
"""Bytes in which a text has to tell what it is."""


def name_unidentified(data: bytes, known: tuple[str, ...], reason: str) -> Fault:
    """Say what a file is, if not one that can be read here.

    Args:
        data: of a file that no decoder took.
        known: the formats that have a decoder here.
        reason: what the decoder of its own format said, or nothing.
    """
    ours = our_format(data)
    if ours in known:
        return name_damaged(data, reason or "not readable")
    if ours == "HEIF":
        way = "pip install 'ldm-batch[heif]' where images are read, or convert it to JPEG or PNG"
        return Fault(Reason.UNSUPPORTED_IMAGE, f"HEIC/HEIF, which needs pillow-heif: {way}")
    if ours:
        way = "install Pillow's own wheel, or convert it to PNG"
        return Fault(
            Reason.UNSUPPORTED_IMAGE, f"{ours}, which this Pillow has no decoder for: {way}"
        )
    if inner := _encoded_format(data):
        way = "decode it to bytes first"
        return Fault(Reason.UNSUPPORTED_IMAGE, f"base64 text of {inner}, not an image: {way}")
    if name := _foreign_format(data):
        way = WAYS_OUT.get(name, WAY_OUT)
        return Fault(Reason.UNSUPPORTED_IMAGE, f"{name} is none of {', '.join(known)}: {way}")
    return Fault(
        Reason.UNDECODABLE_IMAGE, f"no header of {', '.join(known)} in its {len(data)} bytes"
    )


def name_damaged(data: bytes, reason: str) -> Fault:
    """Say that a file of one of our formats is cut, where it shows, or cut or damaged; or that
    nothing here decodes what is in it."""
    told = " ".join(reason.split())[:200]
    if NO_CODEC.search(told):
        what = f"{our_format(data)} of a kind that this Pillow has no codec for ({told})"
        return Fault(Reason.UNSUPPORTED_IMAGE, f"{what}: {WAY_OUT}")
    is_short = "truncated" in told.lower() or is_cut(data)
    what = "cut" if is_short else "cut or damaged"
    return Fault(Reason.UNDECODABLE_IMAGE, f"{our_format(data)}, {what}: {told}")


def our_format(data: bytes) -> str | None:
    """Name one of our formats by a file's first bytes, whether it can be read here or not."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    brand = BRANDS.get(data[8:12]) if data[4:8] == b"ftyp" else None
    if brand == "HEIF" and b"avif" in data[16:64]:
        brand = "AVIF"
    if brand in ("AVIF", "HEIF"):
        return brand
    return next((name for start, name in OURS.items() if data.startswith(start)), None)


def is_cut(data: bytes) -> bool:
    """Tell whether a TIFF or ISO media file says of itself that it goes on past its end."""
    if data[4:8] == b"ftyp":
        return _ends_in_a_box(data)
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return False
    order = "little" if data[:2] == b"II" else "big"
    place = int.from_bytes(data[4:8], order)  # type: ignore[arg-type]
    num = int.from_bytes(data[place : place + 2], order)  # type: ignore[arg-type]
    return place + 2 + 12 * num > len(data)


def _ends_in_a_box(data: bytes) -> bool:
    place = 0
    while place + 8 <= len(data):
        size = int.from_bytes(data[place : place + 4])
        if size == 1:
            size = int.from_bytes(data[place + 8 : place + 16])
        if size < 8:  # 0: up to the end
            return False
        place += size
    return place != len(data)


def _foreign_format(data: bytes) -> str | None:
    if data[4:8] == b"ftyp":
        return BRANDS.get(data[8:12], "a video or other ISO media file")
    if data[-18:-2] == b"TRUEVISION-XFILE" or _looks_like_tga(data):
        return "TGA"  # its header may begin like a CUR's
    for starts in (FOREIGN, CONTAINERS):
        for start, name in starts.items():
            if data.startswith(start):
                return name
    if re.match(rb"P[1-7][\s#]", data):
        return "PPM"
    if re.match(rb"\x0a[\x00\x02-\x05][\x00\x01][\x01\x02\x04\x08]", data):
        return "PCX"
    return _text_format(data)


def _looks_like_tga(data: bytes) -> bool:
    """Old TGAs have no signature: a colour map or none, a known type, a known depth."""
    if len(data) < 19 or data[1:2] not in (b"\0", b"\1"):
        return False
    has_map, kind, depth = data[1], data[2], data[16]
    if has_map:
        return kind in (1, 9) and data[7] in (15, 16, 24, 32) and depth in (8, 16)
    is_sized = any(data[12:14]) and any(data[14:16])
    return kind in (2, 3, 10, 11) and not any(data[3:8]) and depth in (8, 16, 24, 32) and is_sized


def _text_format(data: bytes) -> str | None:
    start = data[:NUM_START]
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        start = start.decode("utf-16", "ignore").encode()
    start = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    found = (name for text, name in TEXTS if re.match(text, start, re.IGNORECASE | re.DOTALL))
    return next(found, None)


def _encoded_format(data: bytes) -> str | None:
    """The format of an image that is written as base64 text."""
    start = data[:256].removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n\"'")
    if not (text := BASE64.match(start)):
        return None
    letters = text[2].translate(bytes.maketrans(b"-_", b"+/"))
    try:
        inner = base64.b64decode(letters[: len(letters) // 4 * 4])
    except binascii.Error:
        return None
    if len(inner) < 12:
        return None
    return our_format(inner) or ("an image" if text[1] else None)

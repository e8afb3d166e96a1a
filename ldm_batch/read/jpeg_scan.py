"""Whether the scans of a JPEG hold all pixels that its header declares.

libjpeg fills what is missing with grey and warns; Pillow does not pass the warning on. Must not
know what becomes of the pixels.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from typing import Any

import simplejpeg

from ldm_batch.records import Fault, Reason

MAX_JPEG_SCANS = 200
"""A progressive JPEG has about ten; each costs time by its pixels, not by its bytes."""
MAY_BE_INCOMPLETE = "jpeg_may_be_incomplete"
END = b"\xff\xd9"
SCAN, NUM_COEFFICIENTS = 0xDA, 64
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
CUT = ("Premature end", "Corrupt JPEG data: premature end", "Corrupt JPEG data: found marker 0xd9")
PADDED = re.compile(r"extraneous bytes before marker 0x(?!d[0-7])")
"""Some cameras pad the end of a scan; before a restart marker it is damage."""
COMPRESSION, JPEG_IN_TIFF, TABLES = 259, 7, 347
PARTS = ((273, 324), (279, 325))
"""Tags of where strips, or tiles, stand, and of their sizes."""
MAX_TABLES_BYTES = 1 << 16
MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
ARITHMETIC = (0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
"""Frames whose decoder feeds itself zeros past the end of a scan, without a word."""
BAD_PROFILE, APP2, PROFILE_NAME = "Corrupt JPEG data: bad ICC marker", 0xE2, b"ICC_PROFILE\0"


def check_number_of_scans(data: bytes) -> Fault | None:
    """Refuse a JPEG that would take long by its scans, before anything is decoded."""
    if data.count(b"\xff\xda") <= MAX_JPEG_SCANS:
        return None
    what = "a JPEG of more scans than any camera writes"
    return Fault(Reason.IMAGE_TOO_LARGE, f"{what}; at most {MAX_JPEG_SCANS} scans")


def check_scans(data: bytes, max_pixels: int) -> Fault | tuple[str, ...]:
    """Decode at an eighth of the size, asking libjpeg for its warnings.

    Args:
        data: a JPEG.
        max_pixels: that it may declare, as libjpeg reads its header.

    Returns:
        why the image is damaged, or the names of what is to be noted.
    """
    if fault := check_number_of_scans(data):
        return fault
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        if height * width > max_pixels:
            what = f"a JPEG of {width}x{height} pixels"
            return Fault(Reason.IMAGE_TOO_LARGE, f"{what}; at most {max_pixels}")
        # the end marker: a file that lacks only that, and Pillow takes it, holds all its pixels
        simplejpeg.decode_jpeg(data + END, "RGB", min_height=1, min_width=1, min_factor=8)
    except (ValueError, KeyError) as error:  # KeyError: a chroma sampling that it does not know
        warning = str(error)
        if warning.startswith(BAD_PROFILE) and (plain := _without_profile(data)) != data:
            found = check_scans(plain, max_pixels)
            return found if isinstance(found, Fault) else ("icc_ignored", *found)
        if warning.startswith(CUT):
            return Fault(Reason.UNDECODABLE_IMAGE, f"a JPEG, cut or damaged: {warning[:200]}")
        if warning.startswith("Corrupt JPEG data") and not PADDED.search(warning):
            return Fault(Reason.UNDECODABLE_IMAGE, f"a JPEG, damaged: {warning[:200]}")
        return (MAY_BE_INCOMPLETE,)  # warned of what is harmless, or not decoded by this library
    return () if has_all_scans(data) else (MAY_BE_INCOMPLETE,)


def check_tiff_scans(
    tags: Mapping[int, Any], data: bytes, max_pixels: int
) -> Fault | tuple[str, ...]:
    """The same of a TIFF's strips or tiles, where they are JPEGs, with the tables that they share.

    Args:
        tags: of its first image.
        data: the file.
        max_pixels: that a part may declare.
    """
    if tags.get(COMPRESSION) != JPEG_IN_TIFF:
        return ()
    tables = bytes(tags.get(TABLES) or b"").removesuffix(END)
    places = zip(*((tags.get(a) or tags.get(b) or ()) for a, b in PARTS), strict=False)
    parts = [(int(offset), int(size)) for offset, size in places]
    if len(tables) > MAX_TABLES_BYTES or sum(size for _, size in parts) > len(data):
        return (MAY_BE_INCOMPLETE,)  # parts that overlap would cost more than the file has bytes
    noted: tuple[str, ...] = ()
    left = MAX_JPEG_SCANS * max_pixels
    for offset, size in parts:
        part = data[offset : offset + size]
        part = tables + part[2:] if tables else part
        if (left := left - _cost(part)) < 0:
            what = "a TIFF whose JPEGs declare more pixels and scans than it has"
            return Fault(Reason.IMAGE_TOO_LARGE, f"{what}; at most {max_pixels} pixels")
        found = check_scans(part, max_pixels)
        if isinstance(found, Fault):
            return found
        noted = noted or found
    return noted


def _cost(data: bytes) -> int:
    """Pixels that decoding a JPEG touches, over all its scans; 0 where its header is unreadable."""
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError):
        return 0
    return int(height * width * max(1, data.count(b"\xff\xda")))


def _without_profile(data: bytes) -> bytes:
    """A JPEG without the segments of its ICC profile that stand before its first scan."""
    kept, place = [data[:2]], 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != SCAN:
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4])
        is_profile = data[place + 1] == APP2 and data.startswith(PROFILE_NAME, place + 4)
        kept.append(b"" if is_profile else data[place:end])
        place = end
    return b"".join([*kept, data[place:]])


def has_all_scans(data: bytes) -> bool:
    """Tell whether every component has all bits of all coefficients in some scan.

    A progressive file may end early by intent or by a cut between two scans: nothing tells which.
    Nothing tells of a cut in an arithmetic-coded one either.
    """
    missing: dict[int, set[int]] = {}
    is_progressive = False
    place = 2
    while found := MARKER.search(data, place):
        place, code = found.end(), data[found.end() - 1]
        if code == END[1] or place + 2 > len(data):
            break
        if code == 0x01 or code == 0xD8:
            continue
        length = struct.unpack_from(">H", data, place)[0]
        body, place = data[place + 2 : place + length], place + length
        if code in FRAMES and len(body) > 5:
            if code in ARITHMETIC:
                return False
            is_progressive = code in PROGRESSIVE
            missing = {number: {*range(NUM_COEFFICIENTS)} for number in body[6::3]}
        elif code == SCAN and len(body) > 3:
            _take_scan(body, missing, is_progressive)
    return not any(missing.values())


def _take_scan(body: bytes, missing: dict[int, set[int]], is_progressive: bool) -> None:
    num = body[0]
    first, last, bits = body[-3:] if is_progressive else (0, NUM_COEFFICIENTS - 1, 0)
    for number in body[1 : 1 + 2 * num : 2]:
        if bits & 15 == 0 and number in missing:
            missing[number] -= {*range(first, last + 1)}

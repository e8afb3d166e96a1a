"""JPEGs: all pixels that they declare, or rejected, or a note that nothing can tell."""

import io

import numpy as np
import pytest
from image_files import encode, srgb_profile
from PIL import Image
from test_decode import LIMITS, decoded

from ldm_batch.read.decode import DecodedImage, decode_image
from ldm_batch.read.jpeg_scan import (
    END,
    MARKER,
    MAY_BE_INCOMPLETE,
    check_scans,
    check_tiff_scans,
    has_all_scans,
)
from ldm_batch.records import Fault, Reason

PICTURE = Image.fromarray(
    np.kron(
        np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8),
        np.ones((8, 8, 1), np.uint8),
    )
)
KINDS = {
    "baseline": encode(PICTURE, "JPEG"),
    "full_chroma": encode(PICTURE, "JPEG", subsampling=0, optimize=True),
    "progressive": encode(PICTURE, "JPEG", progressive=True),
    "grey": encode(PICTURE.convert("L"), "JPEG"),
    "cmyk": encode(PICTURE.convert("CMYK"), "JPEG"),
    "restarts": encode(PICTURE, "JPEG", restart_marker_rows=1),
    "low": encode(PICTURE, "JPEG", quality=1),
    "odd": encode(PICTURE.crop((0, 0, 37, 23)), "JPEG"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_whole_ones_are_as_pillow_reads_them(kind: str) -> None:
    data = KINDS[kind]
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    for whole in (data, data + b"trailing"):
        result = decoded(whole)
        assert np.array_equal(result.pixels, expected)
        assert MAY_BE_INCOMPLETE not in result.conversions


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", [b"", END])
def test_cut_ones_are_rejected_or_noted(kind: str, end: bytes) -> None:
    data = KINDS[kind]
    whole = decoded(data).pixels
    first = data.index(b"\xff\xda")
    reasons = []
    for cut in np.linspace(first + 20, len(data) - 4, 25).astype(int):
        result = decode_image(data[:cut] + end, LIMITS)
        if isinstance(result, DecodedImage):
            is_same = np.array_equal(result.pixels, whole)
            assert is_same or MAY_BE_INCOMPLETE in result.conversions
        else:
            assert result.reason == Reason.UNDECODABLE_IMAGE
            assert "cut" in result.message or "broken" in result.message
            reasons.append(result)
    assert len(reasons) >= 23


def test_a_jpeg_cut_in_half_says_so() -> None:
    data = KINDS["baseline"]
    result = decode_image(data[: len(data) // 2] + END, LIMITS)
    assert isinstance(result, Fault)
    assert result.message.startswith("a JPEG, cut or damaged")


def test_a_progressive_one_cut_between_two_scans_is_noted() -> None:
    data = KINDS["progressive"]
    starts = [found.start() for found in MARKER.finditer(data) if found[0] == b"\xff\xda"]
    tables = [data.rindex(b"\xff\xc4", 0, start) for start in starts]
    for start, table in zip(starts[2:], tables[2:], strict=True):
        end = max(table, max(other for other in starts if other < start) + 1)
        result = decoded(data[: min(start, end)] + END)
        assert MAY_BE_INCOMPLETE in result.conversions
    assert has_all_scans(data)
    assert not has_all_scans(data[: tables[2]] + END)


def test_a_scan_that_is_missing_is_noted() -> None:
    """Three scans, one for each component: without the last, its colour is grey."""
    data = KINDS["full_chroma"]
    assert has_all_scans(data)
    place = data.index(b"\xff\xda")
    one = data[:place] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + data[place + 14 :]
    assert not has_all_scans(one)


def test_padding_that_cameras_write_is_noted_and_damage_is_not_accepted() -> None:
    data = KINDS["full_chroma"]
    padded = data.removesuffix(END) + bytes(4) + END
    assert check_scans(padded, 10**6) == (MAY_BE_INCOMPLETE,)
    assert np.array_equal(decoded(padded).pixels, decoded(data).pixels)
    broken = bytearray(KINDS["restarts"])
    place = broken.index(b"\xff\xd0")
    broken[place:place] = bytes(6)
    result = decode_image(bytes(broken), LIMITS)
    assert isinstance(result, Fault)
    assert "damaged" in result.message


def test_flips_give_an_image_or_a_reason() -> None:
    data = KINDS["odd"]
    rejected = 0
    for bit in range(0, 8 * len(data), 7):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        rejected += isinstance(decode_image(bytes(flipped), LIMITS), Fault)
    assert rejected > 0


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_in_a_tiff_is_asked_too(mode: str) -> None:
    data = encode(PICTURE.convert(mode), "TIFF", compression="jpeg", strip_size=2000)
    assert decoded(data).conversions == (() if mode == "RGB" else ("grey_to_rgb",))
    start = data.index(b"\xff\xda") + 12
    middle = (start + data.index(END, start)) // 2
    closed = data[:middle] + END + data[middle + 2 :]
    result = decode_image(closed, LIMITS)
    assert isinstance(result, Fault)
    assert result.message.startswith("a JPEG, cut or damaged")


def test_parts_of_a_tiff_that_overlap_are_not_asked_one_by_one() -> None:
    tags = {259: 7, 273: (0,) * 1000, 279: (10_000,) * 1000}
    assert check_tiff_scans(tags, bytes(10_000), 99) == (MAY_BE_INCOMPLETE,)
    assert check_tiff_scans({259: 7, 347: bytes(100_000)}, b"II*", 99) == (MAY_BE_INCOMPLETE,)
    assert check_tiff_scans({259: 1}, b"II*", 99) == ()


def test_a_jpeg_in_a_tiff_is_held_to_the_limits() -> None:
    data = encode(PICTURE, "TIFF", compression="jpeg")
    place = data.index(b"\xff\xc0") + 5
    huge = data[:place] + (60_000).to_bytes(2) * 2 + data[place + 4 :]
    result = decode_image(huge, LIMITS)
    assert isinstance(result, Fault)
    assert result.reason == Reason.IMAGE_TOO_LARGE
    end = data.index(END, place)
    scans = data[:end] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" * 300 + data[end:]
    tags = {259: 7, 273: (data.index(b"\xff\xd8", 8),), 279: (len(scans) - 800,)}
    found = check_tiff_scans(tags, scans, 10**6)
    assert isinstance(found, Fault)
    assert found.reason == Reason.IMAGE_TOO_LARGE


def segment(body: bytes) -> bytes:
    """An APP2 segment."""
    return b"\xff\xe2" + (len(body) + 2).to_bytes(2) + body


@pytest.mark.parametrize("numbers", [b"\x01\x02", b"\x00\x00"])
def test_a_profile_that_is_damaged_spoils_no_pixels(numbers: bytes) -> None:
    data = KINDS["baseline"]
    odd = data[:2] + segment(b"ICC_PROFILE\0" + numbers + srgb_profile()) + data[2:]
    result = decoded(odd)
    assert result.conversions == ("icc_ignored",)
    assert np.array_equal(result.pixels, decoded(data).pixels)
    half = decode_image(odd[: len(odd) * 3 // 4] + END, LIMITS)
    assert isinstance(half, Fault)
    assert half.reason == Reason.UNDECODABLE_IMAGE


def test_a_sampling_that_is_not_known_is_noted() -> None:
    data = bytearray(KINDS["full_chroma"])
    frame = data.index(b"\xff\xc0")
    data[frame + 11] = 0x14  # 4:4:1, whose scans then hold other blocks
    assert not isinstance(check_scans(bytes(data), 10**6), Fault)


def test_an_arithmetic_one_cannot_tell_of_a_cut() -> None:
    data = bytearray(KINDS["grey"])
    data[data.index(b"\xff\xc0") + 1] = 0xC9
    assert not has_all_scans(bytes(data))


def test_fill_bytes_take_no_time() -> None:
    """Half a million of them; every search of theirs that began anew took hours."""
    data = KINDS["baseline"]
    place = data.index(b"\xff\x00", data.index(b"\xff\xda"))
    assert has_all_scans(data[:place] + b"\xff" * 500_000 + data[place + 1 :])


def test_parts_of_a_tiff_are_held_to_a_limit_together() -> None:
    part = KINDS["progressive"]
    tags = {259: 7, 273: [0] * 40, 279: [len(part)] * 40}
    found = check_tiff_scans(tags, part * 40, max_pixels=128 * 96)
    assert isinstance(found, Fault)
    assert found.reason == Reason.IMAGE_TOO_LARGE

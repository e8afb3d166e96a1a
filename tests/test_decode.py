"""Decoding images of unknown origin: every rule by name, and nothing that a file does gets out."""

import io
import struct
import subprocess
import sys
import zlib
from itertools import product

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from ldm_batch.read.decode import DecodedImage, ImageLimits, decode_image, flatten
from ldm_batch.read.decoders import FORMATS
from ldm_batch.records import Fault, Reason

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")

LIMITS = ImageLimits(max_bytes=1_000_000, max_pixels=512 * 512, max_side=1024)
MODES = (
    *("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB"),
    *("HSV", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"),
)
SIZES = ((1, 1), (1, 7), (9, 1), (2, 2), (17, 5), (64, 48))
NUM_BANDS = {"LA": 2, "La": 2, "PA": 2, "RGB": 3, "YCbCr": 3, "LAB": 3, "HSV": 3, "P": 1, "L": 1}


def draw(mode: str, size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Random pixels in any of Pillow's modes."""
    width, height = size
    random = np.random.default_rng(seed)
    if mode == "1":
        return Image.fromarray(random.integers(0, 2, (height, width)) > 0)
    bytes_per_pixel = {"I": 4, "F": 4}.get(mode, 2 if ";" in mode else NUM_BANDS.get(mode, 4))
    raw = random.integers(0, 256, width * height * bytes_per_pixel, dtype=np.uint8).tobytes()
    image = Image.frombytes(mode, size, raw)
    if mode in ("P", "PA"):
        image.putpalette(random.integers(0, 256, 768, dtype=np.uint8).tobytes())
    return image


def encode(image: Image.Image, file_format: str, **options: object) -> bytes | None:
    """The file, or None where the format cannot hold the mode, or Pillow before 13 writes it such
    that nothing can read it."""
    if (image.mode, file_format) == ("YCbCr", "TIFF") and int(PIL.__version__.split(".")[0]) < 13:
        return None
    buffer = io.BytesIO()
    try:
        image.save(buffer, file_format, **options)
    except (OSError, ValueError, KeyError):
        return None
    return buffer.getvalue()


def png(image: Image.Image, **options: object) -> bytes:
    data = encode(image, "PNG", **options)
    assert data is not None
    return data


ODD_FILES = [
    data
    for number, (mode, file_format, size) in enumerate(product(MODES, FORMATS, SIZES))
    if (data := encode(draw(mode, size, number), file_format)) is not None
]


def check(decoded: DecodedImage | Fault) -> bool:
    """Assert that a result is one of ours; tell whether it is an image."""
    if isinstance(decoded, Fault):
        assert decoded.reason in list(Reason)
        assert decoded.message
        assert len(decoded.message) < 400
        return False
    height, width, channels = decoded.pixels.shape
    assert (decoded.pixels.dtype, channels) == (np.uint8, 3)
    assert decoded.alpha is None or decoded.alpha.shape == (height, width)
    assert decoded.alpha is None or (decoded.alpha < 255).any()
    assert width * height <= LIMITS.max_pixels
    return True


def decoded(data: bytes, limits: ImageLimits = LIMITS) -> DecodedImage:
    result = decode_image(data, limits)
    assert isinstance(result, DecodedImage), result
    return result


def fault(data: bytes | None, limits: ImageLimits = LIMITS) -> Reason:
    result = decode_image(data, limits)
    assert isinstance(result, Fault), result
    return result.reason


def test_every_mode_in_every_format_and_size() -> None:
    assert len(ODD_FILES) > 300
    results = [decode_image(data, LIMITS) for data in ODD_FILES]
    faults = [result for result in results if not check(result)]
    assert {fault.reason for fault in faults} == {Reason.UNSUPPORTED_IMAGE}
    assert all("mode I:" in f.message or "mode F:" in f.message for f in faults)


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "WEBP"])
def test_rgb_comes_back_as_it_was(file_format: str) -> None:
    image = draw("RGB", (31, 17))
    data = encode(image, file_format, lossless=True)
    assert data is not None
    result = decoded(data)
    assert np.array_equal(result.pixels, np.asarray(image))
    assert (result.format, result.mode, result.alpha) == (file_format, "RGB", None)
    assert result.conversions == ()


@pytest.mark.parametrize("file_format", FORMATS)
def test_truncated_files_are_rejected_or_whole(file_format: str) -> None:
    data = encode(draw("RGB", (64, 48)), file_format)
    assert data is not None
    whole = decoded(data).pixels
    cuts = np.random.default_rng(0).integers(0, len(data), 60)
    for cut in [*cuts.tolist(), len(data) - 1, len(data) // 2]:
        result = decode_image(data[:cut], LIMITS)
        if check(result):
            assert np.array_equal(result.pixels, whole)
            assert cut > 0.9 * len(data)


@settings(max_examples=300, deadline=None)
@given(
    number=st.integers(0, len(ODD_FILES) - 1),
    edits=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=8),
    cut=st.floats(0, 1),
)
def test_fuzzed_headers_give_an_image_or_a_reason(
    number: int, edits: list[tuple[int, int]], cut: float
) -> None:
    data = bytearray(ODD_FILES[number])
    for place, value in edits:
        data[place % len(data)] = value
    check(decode_image(bytes(data[: max(1, int(cut * 4 * len(data)))]), LIMITS))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"", *(data[:16] for data in ODD_FILES[::9])]))
def test_noise_is_never_an_exception(noise: bytes, start: bytes) -> None:
    check(decode_image(start + noise, LIMITS))


def test_nothing_is_a_null_image() -> None:
    assert fault(None) == Reason.NULL_IMAGE
    assert fault(b"") == Reason.NULL_IMAGE


@pytest.mark.parametrize("start", [b"%PDF-1.7", b"8BPS\0\1", b"<svg xmlns=", b"\xff\x0a"])
def test_other_formats_are_named(start: bytes) -> None:
    assert fault(start + bytes(100)) == Reason.UNSUPPORTED_IMAGE


def test_formats_of_pillow_outside_the_list_stay_shut() -> None:
    data = encode(draw("RGB", (8, 8)), "PPM")
    assert data is not None
    assert fault(data) == Reason.UNSUPPORTED_IMAGE
    assert fault(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1") == Reason.UNSUPPORTED_IMAGE


def test_limits() -> None:
    data = png(draw("RGB", (100, 50)))
    assert fault(data, ImageLimits(max_bytes=len(data) - 1)) == Reason.IMAGE_TOO_LARGE
    assert fault(data, ImageLimits(max_pixels=4999)) == Reason.IMAGE_TOO_LARGE
    assert fault(data, ImageLimits(max_side=99)) == Reason.IMAGE_TOO_LARGE
    decoded(data, ImageLimits(len(data), 5000, 100))


def make_bomb(width: int, height: int) -> bytes:
    """A PNG that declares many pixels and holds few bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        framed = kind + body
        return struct.pack(">I", len(body)) + framed + struct.pack(">I", zlib.crc32(framed))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1_000_000), 9))
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


BOMBS = {
    "png": make_bomb(13_000, 13_000),
    "png_past_pillows_own_limit": make_bomb(60_000, 60_000),
    "jpeg_scans": (encode(draw("RGB", (400, 400)), "JPEG", progressive=True) or b"")[:-2]
    + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" * 10_000,
    "webp": b"RIFF\x30\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0"
    + (13_000).to_bytes(3, "little") * 2
    + b"VP8L\x12\0\0\0\x2f"
    + bytes(20),
    "gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0xF0, 0, 0) + bytes(800),
    "bmp": b"BM"
    + struct.pack("<IHHI", 200, 0, 0, 54)
    + struct.pack("<IiiHHIIiiII", 40, 30_000, 30_000, 1, 8, 1, 100, 1, 1, 256, 0)
    + bytes(2000),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused(name: str) -> None:
    result = decode_image(BOMBS[name], LIMITS)
    assert isinstance(result, Fault)
    assert result.reason in (Reason.IMAGE_TOO_LARGE, Reason.UNDECODABLE_IMAGE)
    if name in ("png", "jpeg_scans", "bmp", "png_past_pillows_own_limit"):
        assert result.reason == Reason.IMAGE_TOO_LARGE


def test_bombs_do_not_fill_memory() -> None:
    code = (
        "import resource, test_decode as t\n"
        "from ldm_batch.read.decode import decode_image\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "[decode_image(b, t.LIMITS) for b in (*t.BOMBS.values(), t.tiff_with_huge_tiles())]\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=__file__.rpartition("/")[0],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 100_000  # kB


def tiff_with_huge_tiles() -> bytes:
    """A TIFF of 4x4 pixels whose one tile would have 60,000x60,000."""
    entries = [
        *((256, 3, 4), (257, 3, 4), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1)),
        *((322, 4, 60_000), (323, 4, 60_000), (324, 4, 8), (325, 4, 100)),
    ]
    packed = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    directory = struct.pack("<H", len(entries)) + packed + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + directory + zlib.compress(bytes(5000))


def test_tiles_of_a_tiff_count_as_pixels() -> None:
    assert fault(tiff_with_huge_tiles()) == Reason.IMAGE_TOO_LARGE


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation_is_applied(file_format: str, orientation: int) -> None:
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = (250, 0, 0)
    turned = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    image = Image.fromarray(upright)
    image = image if turned is None else image.transpose(Image.Transpose(turned))
    exif = Image.Exif()
    exif[274] = orientation
    data = encode(image, file_format, exif=exif, quality=95)
    assert data is not None
    result = decoded(data)
    assert result.pixels.shape == (16, 32, 3)
    assert np.abs(result.pixels.astype(int) - upright)[2:6, 2:14].max() < 40
    assert ("exif_orientation" in result.conversions) == (orientation > 1)


def test_damaged_exif_does_not_spoil_an_image() -> None:
    data = png(draw("RGB", (8, 8)), exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(20))
    assert decoded(data).conversions == ()


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    for file_format in ("PNG", "TIFF"):
        data = encode(Image.fromarray(values), file_format)
        assert data is not None
        result = decoded(data)
        assert np.array_equal(result.pixels[..., 0].ravel(), np.arange(256))
        assert result.conversions == ("16_bit_grey_scaled", "grey_to_rgb")


def test_16_bit_rgb_is_noted() -> None:
    rows = b"".join(b"\0" + bytes([200, 17, 100, 3, 50, 9]) for _ in range(4))
    bomb = make_bomb(1, 4)
    plain = decoded(bomb)
    assert plain.conversions == ()
    header = struct.pack(">IIBBBBB", 1, 4, 16, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )
    result = decoded(data)
    assert result.pixels[0, 0].tolist() == [200, 100, 50]
    assert result.conversions == ("16_bit_to_8",)


def test_alpha_is_split_from_every_form_of_transparency() -> None:
    alpha = np.tile(np.array([0, 128, 255, 255], np.uint8), (4, 1))
    rgba = draw("RGB", (4, 4))
    rgba.putalpha(Image.fromarray(alpha))
    grey = Image.merge("LA", (draw("L", (4, 4)), Image.fromarray(alpha)))
    for image in (rgba, grey):
        result = decoded(png(image))
        assert result.alpha is not None
        assert np.array_equal(result.alpha, alpha)
        assert "alpha_split" in result.conversions
    assert np.array_equal(decoded(png(rgba)).pixels, np.asarray(rgba)[..., :3])
    palette = draw("P", (4, 4))
    index = palette.getpixel((0, 0))
    for data in (png(palette, transparency=index), encode(palette, "GIF", transparency=index)):
        assert data is not None
        result = decoded(data)
        assert result.alpha is not None
        assert result.alpha[0, 0] == 0
        assert result.conversions == ("palette_to_rgb", "alpha_split")
    keyed = decoded(png(Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3)))
    assert keyed.alpha is not None
    assert not keyed.alpha.any()


def test_opaque_alpha_is_no_alpha() -> None:
    image = draw("RGB", (4, 4))
    image.putalpha(255)
    result = decoded(png(image))
    assert result.alpha is None
    assert (result.mode, result.conversions) == ("RGBA", ())


def test_first_frame_of_an_animation() -> None:
    frames = [draw("RGB", (8, 8), seed) for seed in range(3)]
    for file_format in ("PNG", "WEBP", "TIFF", "GIF", "AVIF"):
        options = {"save_all": True, "append_images": frames[1:], "lossless": True}
        data = encode(frames[0], file_format, **options)
        assert data is not None
        result = decoded(data)
        assert result.conversions[0] == "first_frame"
        if file_format in ("PNG", "WEBP", "TIFF"):
            assert np.array_equal(result.pixels, np.asarray(frames[0]))


def test_icc_profiles_are_followed_or_ignored_by_name() -> None:
    image = Image.new("RGB", (4, 4), (200, 60, 60))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert decoded(png(image, icc_profile=srgb)).conversions == ()
    assert decoded(png(image, icc_profile=b"no profile")).conversions == ("icc_ignored",)
    grey = Image.new("L", (4, 4), 100)
    assert decoded(png(grey, icc_profile=srgb)).conversions == ("icc_ignored", "grey_to_rgb")
    swapped = make_swapped_profile(srgb)
    result = decoded(png(image, icc_profile=swapped))
    assert result.conversions == ("icc_to_srgb",)
    red, green, _ = result.pixels[0, 0].tolist()
    assert green > red


def make_swapped_profile(srgb: bytes) -> bytes:
    """The profile of a display on which red and green changed places."""
    data = bytearray(srgb)
    places = {bytes(data[i : i + 4]): i for i in range(132, 132 + 12 * data[131], 12)}
    red, green = places[b"rXYZ"], places[b"gXYZ"]
    data[red : red + 4], data[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(data).replace("sRGB".encode("utf-16-be"), "Swap".encode("utf-16-be"))


def test_cmyk_and_lab_become_rgb() -> None:
    cyan = encode(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "TIFF")
    assert cyan is not None
    assert decoded(cyan).pixels[0, 0].tolist() == [0, 255, 255]
    white = encode(Image.new("LAB", (8, 8), (255, 128, 128)), "TIFF")
    assert white is not None
    result = decoded(white)
    assert result.pixels.min() > 250
    assert result.conversions == ("lab_to_srgb",)


def test_text_bombs_in_a_png_do_not_unpack() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 50_000_000, zip=True)
    check(decode_image(png(draw("RGB", (8, 8)), pnginfo=info), LIMITS))


def test_flatten() -> None:
    pixels = np.full((1, 3, 3), 200, np.uint8)
    alpha = np.array([[0, 128, 255]], np.uint8)
    flat = flatten(pixels, alpha, (255, 0, 100))
    assert flat[0].tolist() == [[255, 0, 100], [227, 100, 150], [200, 200, 200]]

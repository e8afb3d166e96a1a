"""Decoders: HEIC where its library is there, and not a line in a log from any of them."""

import io
import subprocess
import sys
import threading

import numpy as np
import pytest
from image_files import encode, swapped_profile
from PIL import Image
from test_decode import LIMITS, decoded, draw

from ldm_batch.read.decode import DecodedImage, ImageLimits, decode_image
from ldm_batch.read.decoders import hear_libtiff, known_formats
from ldm_batch.records import Fault, Reason

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")

NOISY = """
import io, logging, random, sys
import numpy as np
from PIL import Image
from ldm_batch.read.decode import ImageLimits, decode_image

logging.basicConfig(level=logging.INFO)
random.seed(1)
image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))
exif = Image.Exif()
exif[274] = 1
count = 0
for compression in ("raw", "tiff_lzw", "jpeg", "tiff_deflate", "packbits", "group4", None):
    file = io.BytesIO()
    if compression:
        mode = "1" if compression == "group4" else "RGB"
        image.convert(mode).save(file, "TIFF", compression=compression)
    else:
        image.save(file, "JPEG", exif=exif)
    for _ in range(60):
        data = bytearray(file.getvalue())
        for _ in range(3):
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        decode_image(bytes(data), ImageLimits(max_pixels=100_000))
        count += 1
print(count)
"""


def test_nothing_is_said_of_single_files() -> None:
    done = subprocess.run([sys.executable, "-c", NOISY], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["420"]
    assert done.stderr == ""


def test_lines_of_a_fax_that_libtiff_left_out_are_damage() -> None:
    data = bytearray(encode(draw("1", (64, 64)), "TIFF", compression="group4"))
    place = data.index(b"II*\0") + 200
    data[place : place + 8] = b"\xff" * 8
    result = decode_image(bytes(data), LIMITS)
    assert isinstance(result, Fault)
    assert result.message.startswith("a TIFF, damaged: Fax")


def test_what_libtiff_says_is_heard_in_its_own_thread() -> None:
    good = encode(draw("1", (64, 64)), "TIFF", compression="group4")
    bad = bytearray(good)
    bad[200:208] = b"\xff" * 8
    results: list[DecodedImage | Fault] = []

    def decode_many(data: bytes) -> None:
        results.extend(decode_image(data, LIMITS) for _ in range(50))

    threads = [threading.Thread(target=decode_many, args=(bytes(d),)) for d in (good, bad)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(result, Fault) for result in results) == 50
    with hear_libtiff() as errors:
        assert errors == []


def test_out_of_memory_is_not_the_files_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(draw("RGB", (8, 8)), "PNG", icc_profile=swapped_profile())

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    for place in ("PIL.ImageFile.ImageFile.load", "PIL.ImageCms.profileToProfile"):
        with monkeypatch.context() as patch:
            patch.setattr(place, fail)
            with pytest.raises(MemoryError):
                decode_image(data, LIMITS)
    with monkeypatch.context() as patch:
        patch.setattr("PIL.Image.Image.getexif", fail)
        with pytest.raises(MemoryError):
            decode_image(data, LIMITS)


# HEIC

HEIF = pytest.mark.skipif("HEIF" not in known_formats(), reason="needs pillow-heif")


def quadrants(mode: str = "RGB") -> Image.Image:
    image = Image.new("RGB", (64, 32), (40, 50, 210))
    image.paste((200, 40, 30), (0, 0, 32, 16))
    return image.convert(mode)


@HEIF
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_heic_is_read_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    turned = {1: None, 3: 3, 6: 4, 8: 2}[orientation]
    result = decoded(encode(quadrants(), "HEIF", exif=exif.tobytes(), quality=90))
    expected = quadrants() if turned is None else quadrants().transpose(Image.Transpose(turned))
    assert result.format == "HEIF"
    assert result.pixels.shape == (*expected.size[::-1], 3)
    distance = np.abs(result.pixels.astype(int) - np.asarray(expected))
    assert np.median(distance) <= 3
    assert result.conversions == (("exif_orientation",) if orientation > 1 else ())


@HEIF
def test_heic_that_only_exif_says_to_turn_is_left_as_the_standard_wants() -> None:
    exif = Image.Exif()
    exif[274] = 6
    result = decoded(encode(quadrants(), "HEIF", exif=exif))
    assert result.pixels.shape == (32, 64, 3)
    assert result.conversions == ("exif_orientation_ignored",)


@HEIF
def test_heic_profile_alpha_depth_and_primary_image() -> None:
    image = Image.new("RGB", (32, 32), (200, 60, 60))
    followed = decoded(encode(image, "HEIF", icc_profile=swapped_profile(), quality=95))
    assert followed.conversions == ("icc_to_srgb",)
    assert followed.pixels[5, 5, 1] > followed.pixels[5, 5, 0]
    image.putalpha(Image.linear_gradient("L").resize((32, 32)))
    assert decoded(encode(image, "HEIF")).alpha is not None
    others = [Image.new("RGB", (32, 32), colour) for colour in ("blue", "lime")]
    several = encode(
        Image.new("RGB", (32, 32), "red"),
        "HEIF",
        save_all=True,
        append_images=others,
        primary_index=2,
    )
    result = decoded(several)
    assert result.conversions == ("primary_image",)
    assert result.pixels[5, 5].argmax() == 1


@HEIF
def test_heic_is_held_to_the_limits_and_to_its_end() -> None:
    data = encode(draw("RGB", (64, 64)), "HEIF")
    for limits in (
        ImageLimits(max_pixels=4000),
        ImageLimits(max_side=60),
        ImageLimits(max_bytes=99),
    ):
        result = decode_image(data, limits)
        assert isinstance(result, Fault)
        assert result.reason == Reason.IMAGE_TOO_LARGE
    for end in (40, len(data) // 2, len(data) - 1):
        result = decode_image(data[:end], LIMITS)
        assert isinstance(result, Fault)
        assert result.reason == Reason.UNDECODABLE_IMAGE
        assert result.message.startswith("HEIF, cut")


@HEIF
def test_heic_that_holds_more_than_it_declares() -> None:
    data = bytearray(encode(Image.new("RGB", (2000, 2000)), "HEIF"))
    place = data.index(b"ispe") + 8
    data[place : place + 8] = (64).to_bytes(4) * 2
    result = decode_image(bytes(data), LIMITS)
    assert isinstance(result, Fault)


@HEIF
def test_fuzzed_heic_gives_an_image_or_a_reason() -> None:
    data = encode(draw("RGB", (32, 32)), "HEIF")
    random = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(data)
        for place in random.integers(0, len(data), 3):
            damaged[place] = random.integers(256)
        decode_image(bytes(damaged), LIMITS)
    assert isinstance(decode_image(io.BytesIO(data).getvalue(), LIMITS), DecodedImage)

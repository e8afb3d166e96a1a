"""Declared colours: each declaration is followed as the colour engine follows an equal profile."""

import io

import numpy as np
import pytest
from image_files import (
    P3_COLUMNS,
    SRGB_COLUMNS,
    encode,
    make_png,
    make_profile,
    srgb_profile,
    swapped_profile,
    with_chunks,
)
from PIL import Image, ImageCms
from test_decode import decoded

from ldm_batch.read.decode import ImageLimits

COLOURS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
PLAIN = encode(Image.fromarray(COLOURS), "PNG")
SRGB_XY = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
LARGE = ImageLimits(max_bytes=20_000_000)
P3_XY = (31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)


def by_colour_engine(profile: bytes) -> np.ndarray:
    converted = ImageCms.profileToProfile(
        Image.fromarray(COLOURS),
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
    )
    assert converted is not None
    return np.asarray(converted)


def furthest(pixels: np.ndarray, expected: np.ndarray) -> int:
    return int(np.abs(pixels.astype(int) - expected).max())


@pytest.mark.parametrize(
    ("chunks", "profile", "conversion"),
    [
        ({"gAMA": (100_000,)}, ("a", 1.0, SRGB_COLUMNS), "gama_chrm_to_srgb"),
        ({"gAMA": (55_556,)}, ("a", 1.8, SRGB_COLUMNS), "gama_chrm_to_srgb"),
        ({"gAMA": (55_556,), "cHRM": P3_XY}, ("a", 1.8, P3_COLUMNS), "gama_chrm_to_srgb"),
        ({"cICP": bytes([12, 4, 0, 1])}, ("a", 2.2, P3_COLUMNS), "cicp_to_srgb"),
        ({"cICP": bytes([12, 8, 0, 1])}, ("a", 1.0, P3_COLUMNS), "cicp_to_srgb"),
    ],
)
def test_png_chunks_are_followed_like_a_profile(
    chunks: dict, profile: tuple, conversion: str
) -> None:
    result = decoded(with_chunks(PLAIN, **chunks))
    assert result.conversions == (conversion,)
    assert furthest(result.pixels, by_colour_engine(make_profile(*profile))) <= 2
    assert furthest(result.pixels, COLOURS) > 10


@pytest.mark.parametrize(
    "chunks",
    [
        {"gAMA": (45_455,)},
        {"gAMA": (45_455,), "cHRM": SRGB_XY},
        {"cHRM": (31_269, 32_899, 63_999, 33_001, 30_000, 60_000, 15_000, 5_999)},
        {"sRGB": b"\0", "gAMA": (100_000,), "cHRM": P3_XY},
        {"cICP": bytes([1, 13, 0, 1]), "gAMA": (100_000,)},
        {"cICP": bytes([2, 2, 0, 1])},
        {"cICP": bytes([1, 2, 0, 1])},
    ],
)
def test_what_says_srgb_in_other_words_is_left_alone(chunks: dict) -> None:
    result = decoded(with_chunks(PLAIN, **chunks))
    assert result.conversions == ()
    assert np.array_equal(result.pixels, COLOURS)


@pytest.mark.parametrize(
    ("chunks", "conversion"),
    [
        ({"cICP": bytes([9, 16, 0, 1])}, "cicp_ignored"),
        ({"cICP": bytes([9, 18, 0, 1])}, "cicp_ignored"),
        ({"cICP": bytes([1, 1, 0, 1])}, "cicp_ignored"),
        ({"cICP": bytes([12, 13, 0, 0])}, "cicp_ignored"),
        ({"gAMA": (0,)}, "gama_chrm_ignored"),
        ({"gAMA": (4_000_000_000,)}, "gama_chrm_ignored"),
        ({"cHRM": (0,) * 8}, "gama_chrm_ignored"),
        ({"cHRM": (31_270, 32_900) * 4}, "gama_chrm_ignored"),
    ],
)
def test_what_cannot_be_followed_is_named(chunks: dict, conversion: str) -> None:
    result = decoded(with_chunks(PLAIN, **chunks))
    assert result.conversions == (conversion,)
    assert np.array_equal(result.pixels, COLOURS)


def test_the_first_declaration_that_holds_is_followed() -> None:
    swapped = encode(Image.fromarray(COLOURS), "PNG", icc_profile=swapped_profile())
    assert decoded(with_chunks(swapped, gAMA=(100_000,))).conversions == ("icc_to_srgb",)
    hdr = with_chunks(swapped, cICP=bytes([9, 16, 0, 1]))
    assert decoded(hdr).conversions == ("cicp_ignored", "icc_to_srgb")
    broken = encode(Image.fromarray(COLOURS), "PNG", icc_profile=b"none")
    both = decoded(with_chunks(broken, gAMA=(100_000,)))
    assert both.conversions == ("icc_ignored", "gama_chrm_to_srgb")


def test_a_linear_profile_named_like_srgb_is_followed() -> None:
    for name in ("sRGB-elle-V2-g10.icc", "sRGB-elle-V2-g22.icc", "sRGB-elle-V2-g18.icc"):
        profile = make_profile(name, {"10": 1.0, "18": 1.8, "22": 2.2}[name[-6:-4]], SRGB_COLUMNS)
        result = decoded(encode(Image.fromarray(COLOURS), "PNG", icc_profile=profile))
        assert result.conversions == ("icc_to_srgb",)
        assert np.array_equal(result.pixels, by_colour_engine(profile))
    same = decoded(encode(Image.fromarray(COLOURS), "PNG", icc_profile=srgb_profile()))
    assert (same.conversions, furthest(same.pixels, COLOURS)) == ((), 0)


@pytest.mark.parametrize("file_format", ["PNG", "GIF", "TIFF"])
@pytest.mark.parametrize("is_transparent", [False, True])
def test_the_profile_of_a_palette_is_followed(file_format: str, is_transparent: bool) -> None:
    image = Image.new("RGB", (8, 8), (208, 89, 56))
    profile = swapped_profile()
    twin = decoded(encode(image, "PNG", icc_profile=profile)).pixels
    palette = image.quantize(4)
    options = {"transparency": 3} if is_transparent and file_format != "TIFF" else {}
    data = encode(palette, file_format, icc_profile=profile, **options)
    if file_format == "GIF":
        data = with_gif_profile(data, profile)
    result = decoded(data)
    assert result.mode == "P"
    assert result.conversions == ("palette_to_rgb", "icc_to_srgb")
    assert np.array_equal(result.pixels, twin)
    assert abs(int(twin[0, 0, 0]) - 208) > 30


def with_gif_profile(data: bytes, profile: bytes) -> bytes:
    """A GIF with an ICC profile as its first extension."""
    place = 13 + 3 * 2 ** ((data[10] & 7) + 1)
    parts = [profile[i : i + 255] for i in range(0, len(profile), 255)]
    blocks = b"".join(bytes([len(part)]) + part for part in parts) + b"\0"
    return data[:place] + b"\x21\xff\x0bICCRGBG1012" + blocks + data[place:]


def test_grey_and_bilevel_profiles() -> None:
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    linear = make_profile("linear grey", 1.0, None)
    grey = decoded(encode(ramp, "TIFF", icc_profile=linear))
    assert grey.conversions == ("icc_to_srgb",)
    assert 185 <= grey.pixels[8, 0, 0] <= 190  # half the light is level 188
    named = make_profile("sRGB grey", 1.0, None)
    assert decoded(encode(ramp, "TIFF", icc_profile=named)).conversions == ("icc_to_srgb",)
    bilevel = decoded(encode(ramp.convert("1"), "TIFF", icc_profile=linear))
    assert bilevel.conversions == ("bilevel_to_rgb", "icc_to_srgb")
    assert {*bilevel.pixels.ravel().tolist()} == {0, 255}


def test_a_profile_that_is_a_bomb_is_ignored() -> None:
    image = Image.fromarray(COLOURS)
    huge = srgb_profile()[:128] + bytes(9_000_000)
    data = encode(image, "TIFF", icc_profile=huge)
    result = decoded(data, limits=LARGE)
    assert result.conversions == ("icc_ignored",)
    many_tags = srgb_profile()[:128] + b"\xff" * 4 + bytes(500_000)
    assert decoded(encode(image, "TIFF", icc_profile=many_tags)).conversions == ("icc_ignored",)


def test_an_avif_says_its_primaries_in_its_properties() -> None:
    data = encode(Image.fromarray(COLOURS), "AVIF", quality=100, subsampling="4:4:4")
    assert data.count(b"colrnclx") == 1
    place = data.index(b"colrnclx") + 8
    plain = decoded(data)
    assert plain.conversions == ()
    said = {}
    for points in ((12, 13), (9, 16), (2, 2)):
        other = b"".join(point.to_bytes(2) for point in points)
        said[points] = decoded(data[:place] + other + data[place + 4 :])
    assert said[12, 13].conversions == ("cicp_to_srgb",)
    assert said[9, 16].conversions == ("cicp_ignored",)
    assert said[2, 2].conversions == ()
    assert np.array_equal(said[9, 16].pixels, plain.pixels)
    assert furthest(said[12, 13].pixels, plain.pixels) > 10


def test_linear_grey_of_a_png() -> None:
    data = make_png(np.full((4, 4, 1), 128), 8, 0, gAMA=(100_000,))
    assert decoded(data).pixels[0, 0].tolist() == [188, 188, 188]
    assert decoded(data).conversions == ("gama_chrm_to_srgb",)

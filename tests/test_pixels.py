"""What files of every kind look like: a table of files with the colours of their four corners.

Mode by format by profile by orientation by transparency. The colours that are expected come from
the files' own numbers by the formula that stands beside them, never from what is tested.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

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
from PIL import Image
from test_decode import decoded

from ldm_batch.read.decode import flatten
from ldm_batch.read.decoders import FORMATS

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")

Colours = tuple[tuple[int, ...], ...]
RED, GREEN, BLUE, YELLOW = (200, 40, 30), (30, 180, 60), (40, 50, 210), (230, 220, 40)
CORNERS = (RED, GREEN, BLUE, YELLOW)
"""Upper left, upper right, lower left, lower right of the picture, which is 32 high and 48 wide."""
HEIGHT, WIDTH = 32, 48
TURNED = {1: "abcd", 2: "badc", 3: "dcba", 4: "cdab", 5: "acbd", 6: "cadb", 7: "dbca", 8: "bdac"}
"""EXIF orientation -> where the corners a b / c d of the stored pixels stand upright."""
HALVES = (255, 128, 0, 255)
"""The alpha of the corners."""
BACKGROUND = (255, 255, 255)


@dataclass(frozen=True)
class Case:
    """A file, and what its corners are, flattened on white."""

    name: str
    data: bytes
    corners: Colours
    conversions: tuple[str, ...]
    tolerance: int = 0
    is_wide: bool = True


def paint(corners: Colours, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    grid = np.array(corners).reshape(2, 2, -1)
    return grid.repeat(height // 2, axis=0).repeat(width // 2, axis=1)


def picture(mode: str = "RGB", corners: Colours = CORNERS) -> Image.Image:
    return Image.fromarray(paint(corners).astype(np.uint8)).convert(mode)


def map_corners(rule: object) -> Colours:
    return tuple(rule(*corner) for corner in CORNERS)  # type: ignore[operator]


def luma(red: int, green: int, blue: int) -> tuple[int, ...]:
    """ITU-R 601-2, as Pillow says it converts."""
    return (round((299 * red + 587 * green + 114 * blue) / 1000),) * 3


def encode_light(light: np.ndarray) -> tuple[int, ...]:
    """The levels of linear light, by sRGB's curve."""
    light = np.clip(light, 0, 1)
    levels = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return tuple(int(level) for level in np.rint(255 * levels))


def linear(*colour: int) -> tuple[int, ...]:
    return encode_light(np.array(colour) / 255)


def p3_of_gamma_22(*colour: int) -> tuple[int, ...]:
    to_d50 = np.array([P3_COLUMNS[c] for c in "rgb"]).T
    from_d50 = np.linalg.inv(np.array([SRGB_COLUMNS[c] for c in "rgb"]).T)
    return encode_light(from_d50 @ to_d50 @ (np.array(colour) / 255) ** 2.2)


def over_white(corners: Colours, alphas: tuple[int, ...] = HALVES) -> Colours:
    return tuple(
        tuple((part * alpha + 255 * (255 - alpha) + 127) // 255 for part in corner)
        for corner, alpha in zip(corners, alphas, strict=True)
    )


GREYS = map_corners(luma)


def with_alpha(mode: str) -> Image.Image:
    image = picture("L" if mode == "LA" else "RGB")
    image.putalpha(Image.fromarray(paint(tuple((a,) for a in HALVES))[..., 0].astype(np.uint8)))
    return image


def plain_cases() -> Iterator[Case]:
    """Modes by formats."""
    losses = {"JPEG": 12, "AVIF": 12}
    for name in FORMATS:
        options = {"lossless": True} if name == "WEBP" else {"quality": 95}
        options |= {"subsampling": 0} if name == "JPEG" else {}
        converted = ("palette_to_rgb",) if name == "GIF" else ()
        data = encode(picture(), name, **options)
        yield Case(f"RGB {name}", data, CORNERS, converted, losses.get(name, 0))
        if name not in ("WEBP", "AVIF"):
            data = encode(picture("L"), name, **options)
            converted = converted or ("grey_to_rgb",)
            yield Case(f"L {name}", data, GREYS, converted, 3 if name == "JPEG" else 1)
    for name in ("PNG", "GIF", "TIFF", "BMP"):
        data = encode(picture().quantize(4), name)
        yield Case(f"P {name}", data, CORNERS, ("palette_to_rgb",))
    black, white = (0, 0, 0), (255, 255, 255)
    for name in ("PNG", "TIFF", "BMP"):
        one = picture("L", (black, white, white, black)).convert("1")
        data = encode(one, name)
        yield Case(f"1 {name}", data, (black, white, white, black), ("bilevel_to_rgb",))
    for name in ("tiff_lzw", "tiff_deflate", "packbits"):
        yield Case(f"RGB {name}", encode(picture(), "TIFF", compression=name), CORNERS, ())
    inks = map_corners(lambda r, g, b: (255 - r, 255 - g, 255 - b, 0))
    cmyk = Image.frombytes("CMYK", (WIDTH, HEIGHT), paint(inks).astype(np.uint8).tobytes())
    yield Case("CMYK TIFF", encode(cmyk, "TIFF"), CORNERS, ("cmyk_to_rgb",), 1)
    yield Case("CMYK JPEG", encode(cmyk, "JPEG", quality=98), CORNERS, ("cmyk_to_rgb",), 6)
    lab = Image.frombytes("LAB", (WIDTH, HEIGHT), bytes([138, 81, 70]) * WIDTH * HEIGHT)
    # L* 54.3, a* 81, b* 70, of white D50, is sRGB's red
    yield Case("LAB TIFF", encode(lab, "TIFF"), ((255, 0, 0),) * 4, ("lab_to_srgb",), 6)


def deep_cases() -> Iterator[Case]:
    """16 bits: grey is scaled, other samples are cut; 1, 2 and 4 bits of grey."""
    values = tuple((g[0] * 257 + 100,) for g in GREYS)
    shown = tuple(((v[0] * 255 + 32767) // 65535,) * 3 for v in values)
    grey = paint(values)
    done = ("16_bit_grey_scaled", "grey_to_rgb")
    yield Case("I;16 PNG", make_png(grey, 16, 0), shown, done)
    data = encode(Image.fromarray(grey[..., 0].astype(np.uint16)), "TIFF")
    yield Case("I;16 TIFF", data, shown, done)
    deep = paint(CORNERS) * 256 + 200
    yield Case("RGB16 PNG", make_png(deep, 16, 2), CORNERS, ("16_bit_to_8",))
    alpha = paint(tuple((a * 257,) for a in HALVES))
    both = np.concatenate([deep, alpha], axis=-1)
    done = ("16_bit_to_8", "alpha_split")
    yield Case("RGBA16 PNG", make_png(both, 16, 6), over_white(CORNERS), done)
    key = b"".join((part * 256 + 200).to_bytes(2) for part in GREEN)
    keyed = make_png(deep, 16, 2, tRNS=key)
    yield Case("RGB16 PNG keyed", keyed, (RED, BACKGROUND, BLUE, YELLOW), done)
    for bits in (1, 2, 4, 8):
        largest = 2**bits - 1
        levels = (0, largest, largest, 0) if bits == 1 else (0, 1, largest - 1, largest)
        shown = tuple((level * 255 // largest,) * 3 for level in levels)
        samples = paint(tuple((level,) for level in levels))
        kind = "bilevel" if bits == 1 else "grey"
        yield Case(f"L{bits} PNG", make_png(samples, bits, 0), shown, (f"{kind}_to_rgb",))
        data = make_png(samples, bits, 0, tRNS=levels[1].to_bytes(2))
        flat = tuple(
            BACKGROUND if v == levels[1] else s for v, s in zip(levels, shown, strict=True)
        )
        yield Case(f"L{bits} PNG keyed", data, flat, ("alpha_split", "grey_to_rgb"))


def transparent_cases() -> Iterator[Case]:
    """Transparency by mode and format, flattened on white."""
    for name in ("PNG", "TIFF", "WEBP"):
        options = {"lossless": True, "exact": True} if name == "WEBP" else {}
        data = encode(with_alpha("RGBA"), name, **options)
        yield Case(f"RGBA {name}", data, over_white(CORNERS), ("alpha_split",))
    avif = encode(with_alpha("RGBA"), "AVIF", quality=100)
    yield Case("RGBA AVIF", avif, over_white(CORNERS), ("alpha_split",), 6)
    for name in ("PNG", "TIFF"):
        data = encode(with_alpha("LA"), name)
        yield Case(f"LA {name}", data, over_white(GREYS), ("alpha_split", "grey_to_rgb"), 1)
    palette = picture().quantize(4)
    index = palette.getpixel((WIDTH - 1, 0))
    keyed = (RED, BACKGROUND, BLUE, YELLOW)
    for name in ("PNG", "GIF"):
        data = encode(palette, name, transparency=index)
        yield Case(f"P {name} keyed", data, keyed, ("palette_to_rgb", "alpha_split"))
    alphas = bytes(128 if i == index else 255 for i in range(4))
    half = over_white(CORNERS, (255, 128, 255, 255))
    data = encode(palette, "PNG", transparency=alphas)
    yield Case("P PNG alphas", data, half, ("palette_to_rgb", "alpha_split"))
    data = encode(picture(), "PNG", transparency=GREEN)
    yield Case("RGB PNG keyed", data, keyed, ("alpha_split",))
    clear = with_alpha("RGBA")
    clear.putalpha(0)
    yield Case("RGBA PNG clear", encode(clear, "PNG"), (BACKGROUND,) * 4, ("alpha_split",))
    yield Case("BMP clear", bmp_with_masks(clear), CORNERS, ("empty_alpha_ignored",))
    half = over_white(CORNERS)
    yield Case("BMP alpha", bmp_with_masks(with_alpha("RGBA")), half, ("alpha_split",))


def bmp_with_masks(image: Image.Image) -> bytes:
    """A BMP of 32 bits whose header gives alpha a mask (version 4)."""
    pixels = np.asarray(image)[::-1, :, [2, 1, 0, 3]].tobytes()
    width, height = image.size
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    info = struct.pack("<IiiHHIIiiII", 108, width, height, 1, 32, 3, len(pixels), 0, 0, 0, 0)
    info = (info + masks + b"BGRs").ljust(108, b"\0")
    return b"BM" + struct.pack("<IHHI", 14 + 108 + len(pixels), 0, 0, 122) + info + pixels


def profile_cases() -> Iterator[Case]:
    """Profiles by mode and format; red and green change places in the swapped one."""
    swapped = map_corners(lambda r, g, b: (g, r, b))
    for name in ("PNG", "TIFF", "WEBP", "JPEG", "AVIF"):
        options = {"lossless": True} if name == "WEBP" else {"quality": 97}
        options |= {"subsampling": 0} if name == "JPEG" else {}
        tolerance = 12 if name in ("JPEG", "AVIF") else 3
        data = encode(picture(), name, icc_profile=swapped_profile(), **options)
        yield Case(f"RGB {name} swapped", data, swapped, ("icc_to_srgb",), tolerance)
        data = encode(picture(), name, icc_profile=srgb_profile(), **options)
        loss = tolerance if name in ("JPEG", "AVIF") else 0
        yield Case(f"RGB {name} sRGB", data, CORNERS, (), loss)
    done = ("palette_to_rgb", "icc_to_srgb")
    for name in ("PNG", "TIFF"):
        data = encode(picture().quantize(4), name, icc_profile=swapped_profile())
        yield Case(f"P {name} swapped", data, swapped, done, 3)
    false_name = make_profile("sRGB-elle-V2-g10.icc", 1.0, SRGB_COLUMNS)
    data = encode(picture(), "PNG", icc_profile=false_name)
    yield Case("RGB PNG linear sRGB", data, map_corners(linear), ("icc_to_srgb",), 2)
    p3 = make_profile("P3", 2.2, P3_COLUMNS)
    expected = map_corners(p3_of_gamma_22)
    data = encode(picture(), "TIFF", icc_profile=p3)
    yield Case("RGB TIFF P3", data, expected, ("icc_to_srgb",), 3)
    plain = encode(picture(), "PNG")
    data = with_chunks(plain, cICP=bytes([12, 4, 0, 1]))
    yield Case("RGB PNG cICP P3", data, expected, ("cicp_to_srgb",), 2)
    data = with_chunks(plain, gAMA=(100_000,))
    yield Case("RGB PNG gAMA 1", data, map_corners(linear), ("gama_chrm_to_srgb",))
    data = with_chunks(plain, gAMA=(45_455,))
    yield Case("RGB PNG gAMA 1/2.2", data, CORNERS, ())
    data = with_chunks(plain, cICP=bytes([9, 16, 0, 1]))
    yield Case("RGB PNG cICP PQ", data, CORNERS, ("cicp_ignored",))
    grey = make_profile("grey", 1.0, None)
    data = encode(picture("L"), "TIFF", icc_profile=grey)
    shown = tuple(linear(*corner) for corner in GREYS)
    yield Case("L TIFF linear", data, shown, ("icc_to_srgb",), 3)
    both = with_alpha("RGBA")
    data = encode(both, "PNG", icc_profile=swapped_profile())
    flat = over_white(swapped)
    yield Case("RGBA PNG swapped", data, flat, ("alpha_split", "icc_to_srgb"), 3)


def turned_cases() -> Iterator[Case]:
    """Orientations by format, with and without alpha and profile."""
    names = dict(zip("abcd", CORNERS, strict=True))
    swapped = {letter: (g, r, b) for letter, (r, g, b) in names.items()}
    for orientation, letters in TURNED.items():
        exif = Image.Exif()
        exif[274] = orientation
        done = ("exif_orientation",) if orientation > 1 else ()
        upright = tuple(names[letter] for letter in letters)
        is_wide = orientation < 5
        for name in ("PNG", "JPEG", "TIFF", "WEBP"):
            options = {"lossless": True} if name == "WEBP" else {}
            options |= {"quality": 97, "subsampling": 0} if name == "JPEG" else {}
            data = encode(picture(), name, exif=exif, **options)
            loss = 12 if name == "JPEG" else 0
            yield Case(f"RGB {name} {orientation}", data, upright, done, loss, is_wide)
        flat = dict(zip("abcd", over_white(CORNERS), strict=True))
        data = encode(with_alpha("RGBA"), "PNG", exif=exif)
        upright = tuple(flat[letter] for letter in letters)
        yield Case(f"RGBA PNG {orientation}", data, upright, (*done, "alpha_split"), 0, is_wide)
        data = encode(picture().quantize(4), "PNG", exif=exif, icc_profile=swapped_profile())
        upright = tuple(swapped[letter] for letter in letters)
        both = (*done, "palette_to_rgb", "icc_to_srgb")
        yield Case(f"P PNG swapped {orientation}", data, upright, both, 3, is_wide)


CASES = [
    *plain_cases(),
    *deep_cases(),
    *transparent_cases(),
    *profile_cases(),
    *turned_cases(),
]


def test_the_table_is_large() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 60


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_file_shows_what_it_says(case: Case) -> None:
    result = decoded(case.data)
    pixels = result.pixels
    if result.alpha is not None:
        pixels = flatten(pixels, result.alpha, BACKGROUND)
    shape = (HEIGHT, WIDTH, 3) if case.is_wide else (WIDTH, HEIGHT, 3)
    assert pixels.shape == shape
    expected = paint(case.corners, *shape[:2])
    for row, column in ((2, 2), (2, -3), (-3, 2), (-3, -3)):
        distance = np.abs(pixels[row, column].astype(int) - expected[row, column])
        assert distance.max() <= case.tolerance, (pixels[row, column], expected[row, column])
    distance = pixels.mean(axis=(0, 1)) - expected.mean(axis=(0, 1))
    assert np.abs(distance).max() <= case.tolerance
    assert result.conversions == case.conversions

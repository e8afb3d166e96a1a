"""What an image declares its colours to be -> sRGB: ICC profiles, gamma, primaries, code points.

Must not know file formats; what cannot be followed is told by name.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

PROFILE_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}
"""Mode -> the colour space that an ICC profile for it describes."""
MAX_PROFILE_BYTES = 8 * 1024 * 1024
"""The largest press profiles have 3 MB."""
MAX_SRGB_DISTANCE = 3
"""Levels by which a profile called sRGB may differ from sRGB: rounding. Gamma 2.2 differs by 7."""
SRGB = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290)
"""x and y of red, green, blue and white."""
PRIMARIES = {
    1: SRGB,
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, 0.3127, 0.3290),
    11: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.314, 0.351),
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.3127, 0.3290),
}
"""ITU-T H.273, table 2: BT.709, BT.2020, DCI-P3, Display P3."""
GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0, 13: None}
"""ITU-T H.273, table 3, what is a power or sRGB's curve (None); others are for video and HDR."""
UNSPECIFIED = 2
"""sRGB is what one of the two then means."""
CHROMATICITY_TOLERANCE, GAMMA_TOLERANCE = 0.003, 0.05
"""What libpng takes for sRGB's gamma; the rounding of sRGB's chromaticities by old software."""
PIXELS_AT_ONCE = 1 << 18
BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)


@dataclass(frozen=True, slots=True)
class Declared:
    """What a file says of its samples and colours, beside what its decoder tells."""

    sample_bits: int = 8
    alpha: NDArray[np.uint8] | None = None
    """`[height, width]`, where a transparent colour was looked up in deeper samples."""
    ignores_empty_alpha: bool = False
    """Alpha that is 0 everywhere says nothing in this format."""
    profile: bytes | None = None
    """An ICC profile that the decoder does not tell of."""
    code_points: tuple[int, int, int, bool] | None = None
    """Primaries, transfer, matrix and full range, of ITU-T H.273; before any profile."""
    is_srgb: bool = False
    """Said in so many words; before gamma and chromaticities."""
    gamma: float | None = None
    """Samples are light to the power of it."""
    chromaticities: tuple[float, ...] | None = None
    """x and y of red, green, blue and white."""


def follow_declared(
    image: Image.Image, profile: bytes | None, declared: Declared, done: list[str]
) -> Image.Image:
    """Convert an image without alpha to sRGB by the first declaration that holds.

    The order is that of the PNG specification: code points, ICC profile, sRGB, gamma and
    chromaticities.

    Args:
        image: of mode RGB, L, CMYK or LAB; comes back as it is where it is sRGB already.
        done: names of what was followed or ignored are added to it.
    """
    if declared.code_points is not None and image.mode in ("RGB", "L"):
        followed = _follow_code_points(image, declared.code_points, done)
        if followed is not None:
            return followed
    if profile and image.mode != "LAB":  # which says itself what its colours are
        image, is_followed = _follow_profile(image, profile, done)
        if is_followed:
            return image
    if declared.is_srgb or image.mode not in ("RGB", "L"):
        return image
    return _follow_gamma(image, declared, done)


def _follow_profile(
    image: Image.Image, profile: bytes, done: list[str]
) -> tuple[Image.Image, bool]:
    try:
        if len(profile) > MAX_PROFILE_BYTES:
            raise ValueError("too large")
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != PROFILE_SPACES.get(image.mode):
            raise ValueError(source.profile.xcolor_space)
        if image.mode in ("RGB", "L") and _is_srgb(source, image.mode):
            return image, True
        converted = ImageCms.profileToProfile(
            image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except MemoryError:
        raise
    except Exception:  # the colour engine raises many kinds; a bad profile spoils no pixels
        done.append("icc_ignored")
        return image, False
    assert converted is not None
    done.append("icc_to_srgb")
    return converted, True


def _is_srgb(source: ImageCms.ImageCmsProfile, mode: str) -> bool:
    """Tell whether a profile that is called sRGB is: linear ones have that name too."""
    if not ImageCms.getProfileDescription(source).lower().startswith("srgb"):
        return False
    probe = _probe(mode)
    converted = ImageCms.profileToProfile(
        probe,
        source,
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
    )
    distance = np.abs(np.asarray(converted).astype(int) - np.asarray(probe.convert("RGB")))
    return int(distance.max()) <= MAX_SRGB_DISTANCE


def _probe(mode: str) -> Image.Image:
    """Every grey, and of RGB a cube of colours."""
    grey = np.arange(256, dtype=np.uint8).reshape(8, 32)
    if mode == "L":
        return Image.fromarray(grey)
    steps = np.linspace(0, 255, 8).astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(16, 32, 3)
    return Image.fromarray(np.concatenate([cube, grey[..., None].repeat(3, axis=2)]))


def _follow_code_points(
    image: Image.Image, points: tuple[int, int, int, bool], done: list[str]
) -> Image.Image | None:
    primaries, transfer, matrix, is_full = points
    if (primaries, transfer) == (UNSPECIFIED, UNSPECIFIED):
        return None
    primaries = 1 if primaries == UNSPECIFIED else primaries
    transfer = 13 if transfer == UNSPECIFIED else transfer
    if primaries not in PRIMARIES or transfer not in GAMMAS or matrix != 0 or not is_full:
        done.append("cicp_ignored")
        return None
    if (primaries, transfer) == (1, 13):
        return image
    done.append("cicp_to_srgb")
    gamma = GAMMAS[transfer]
    return _to_srgb(image, _linear(gamma), _matrix(PRIMARIES[primaries]))


def _follow_gamma(image: Image.Image, declared: Declared, done: list[str]) -> Image.Image:
    gamma, xy = declared.gamma, declared.chromaticities
    is_plain_curve = gamma is None or abs(gamma * 2.2 - 1) <= GAMMA_TOLERANCE
    is_plain_space = xy is None or np.allclose(xy, SRGB, rtol=0, atol=CHROMATICITY_TOLERANCE)
    if is_plain_curve and is_plain_space:
        return image
    try:
        if gamma is not None and not 0.05 <= gamma <= 20:
            raise ValueError(gamma)
        curve = _linear(None if is_plain_curve or gamma is None else 1 / gamma)
        matrix = np.eye(3) if is_plain_space or xy is None else _matrix(xy)
    except (ValueError, ArithmeticError, np.linalg.LinAlgError):
        done.append("gama_chrm_ignored")
        return image
    done.append("gama_chrm_to_srgb")
    return _to_srgb(image, curve, matrix)


def _linear(exponent: float | None) -> NDArray[np.float32]:
    """Light of each of 256 levels, 0 to 1; by sRGB's own curve where there is no exponent."""
    levels = np.arange(256) / 255
    if exponent is not None:
        return (levels**exponent).astype(np.float32)
    curve = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    return curve.astype(np.float32)


def _matrix(xy: tuple[float, ...]) -> NDArray[np.float64]:
    """Linear RGB of other primaries -> linear sRGB, white to white (Bradford).

    Raises:
        ValueError: these are no primaries.
    """
    matrix = np.linalg.inv(_to_xyz(SRGB)) @ _adapt(xy[6:], SRGB[6:]) @ _to_xyz(xy)
    if not np.isfinite(matrix).all() or np.abs(matrix).max() > 100:
        raise ValueError(xy)
    return np.asarray(matrix)


def _to_xyz(xy: tuple[float, ...]) -> NDArray[np.float64]:
    primaries = np.stack([_xyz(*xy[i : i + 2]) for i in (0, 2, 4)], axis=1)
    return np.asarray(primaries * np.linalg.solve(primaries, _xyz(*xy[6:8])))


def _xyz(x: float, y: float) -> NDArray[np.float64]:
    """The colour of a chromaticity, Y 1."""
    if y <= 0:
        raise ValueError(y)
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _adapt(white: tuple[float, ...], to: tuple[float, ...]) -> NDArray[np.float64]:
    gain = (BRADFORD @ _xyz(*to)) / (BRADFORD @ _xyz(*white))
    return np.asarray(np.linalg.inv(BRADFORD) @ np.diag(gain) @ BRADFORD)


def _to_srgb(
    image: Image.Image, curve: NDArray[np.float32], matrix: NDArray[np.float64]
) -> Image.Image:
    pixels = np.array(image.convert("RGB"), np.uint8)
    flat = pixels.reshape(-1, 3)
    for start in range(0, len(flat), PIXELS_AT_ONCE):
        part = flat[start : start + PIXELS_AT_ONCE]
        light = np.clip(curve[part] @ matrix.T.astype(np.float32), 0, 1)
        bent = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
        part[:] = np.rint(255 * bent).astype(np.uint8)
    return Image.fromarray(pixels)

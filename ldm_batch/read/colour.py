"""Any pixel format -> 8-bit sRGB and alpha, by one stated rule for each.

Must not know where an image came from or what it is for.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from ldm_batch.read.profiles import Declared, follow_declared

PLAIN_MODES = ("RGB", "RGBX")
CONVERTED_MODES = ("1", "L", "LA", "La", "P", "PA", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB", "HSV")
DEEP_GREY_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
DIRECT_MODES = {"1": "L", "P": "RGB", "YCbCr": "RGB", "HSV": "RGB", "RGBX": "RGB"}
"""Mode -> that of the same colours, of which a profile can speak."""
TIFF_BITS, TIFF_PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0
NOTHING = Declared()


def is_convertible(image: Image.Image) -> bool:
    """Tell whether there is a rule for an image's mode.

    32-bit whole numbers and floating point have none: nothing says which value is white.
    """
    return image.mode in (*PLAIN_MODES, *CONVERTED_MODES, *DEEP_GREY_MODES)


def to_rgb(
    image: Image.Image, declared: Declared = NOTHING, *, is_colour: bool = True
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None, list[str]]:
    """Convert a loaded image.

    16-bit grey is scaled by its full range (a bare conversion would clip it), other deep samples
    were cut to their high byte by the decoder; palettes are looked up; premultiplied colours are
    divided by alpha; what the image declares its colours to be is followed, see `follow_declared`;
    CMYK and LAB become sRGB.

    Args:
        image: of a convertible mode, see `is_convertible`.
        declared: what its file says beside what the image tells, where there is a file.
        is_colour: false of a mask, whose values are taken as they are, whatever is declared.

    Returns:
        uint8 `[height, width, 3]`, alpha uint8 `[height, width]` or None where every pixel is
        opaque, and the names of the conversions.
    """
    done: list[str] = []
    profile = image.info.get("icc_profile") or declared.profile
    if image.mode in DEEP_GREY_MODES:
        image = _scale_deep_grey(image)
        done.append("16_bit_grey_scaled")
    elif declared.sample_bits > 8:
        done.append("16_bit_to_8")
    image, alpha = _split_alpha(image, declared, done)
    image = _make_direct(image, done)
    if is_colour:
        image = follow_declared(image, profile, declared, done)
    if image.mode == "LAB":
        image = _from_lab(image)
        done.append("lab_to_srgb")
    elif image.mode != "RGB":
        if "bilevel_to_rgb" not in done:
            done.append(f"{_word(image.mode)}_to_rgb")
        image = image.convert("RGB")
    return np.array(image, np.uint8), alpha, done


def _scale_deep_grey(image: Image.Image) -> Image.Image:
    tags = getattr(image, "tag_v2", {})
    bits = int((tags.get(TIFF_BITS) or (16,))[0])
    values = np.array(image).astype(np.uint32)
    largest = 2 ** min(bits, 16) - 1
    grey = ((np.minimum(values, largest) * 255 + largest // 2) // largest).astype(np.uint8)
    if tags.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO:
        grey = 255 - grey
    if not isinstance(transparent := image.info.get("transparency"), int):
        return Image.fromarray(grey)
    alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
    return Image.merge("LA", (Image.fromarray(grey), Image.fromarray(alpha)))


def _split_alpha(
    image: Image.Image, declared: Declared, done: list[str]
) -> tuple[Image.Image, NDArray[np.uint8] | None]:
    """The image without its transparency, whatever form that had, and its alpha."""
    if declared.alpha is not None and not (declared.alpha == 255).all():
        done.append("alpha_split")
        return image.convert("L") if image.mode == "1" else image, declared.alpha
    if not image.has_transparency_data:
        return image, None
    if image.mode in ("RGBa", "La"):
        done.append("premultiplied_alpha_divided")
    if image.mode in ("P", "PA"):
        done.append("palette_to_rgb")
    is_grey = image.mode in ("LA", "La", "L", "1")
    bands = image.convert("RGBA") if image.mode != "La" else image.convert("LA").convert("RGBA")
    alpha = np.array(bands.getchannel("A"), np.uint8)
    plain = bands.getchannel("R") if is_grey else bands.convert("RGB")
    if (alpha == 255).all():
        return plain, None
    if declared.ignores_empty_alpha and not alpha.any():
        done.append("empty_alpha_ignored")
        return plain, None
    done.append("alpha_split")
    return plain, alpha


def _make_direct(image: Image.Image, done: list[str]) -> Image.Image:
    """The image in a mode of which a profile can speak: no palette, no other form of RGB."""
    if image.mode not in DIRECT_MODES:
        return image
    if image.mode != "RGBX":
        done.append(f"{_word(image.mode)}_to_rgb")
    return image.convert(DIRECT_MODES[image.mode])


def _from_lab(image: Image.Image) -> Image.Image:
    converted = ImageCms.profileToProfile(
        image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert converted is not None
    return converted


def _word(mode: str) -> str:
    return {"1": "bilevel", "L": "grey", "P": "palette"}.get(mode, mode.lower())


def enlarge_alpha(alpha: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """Enlarge an alpha channel `[h, w]` to `[scale * h, scale * w]`, bicubic."""
    height, width = alpha.shape
    size = (width * scale, height * scale)
    return np.array(Image.fromarray(alpha).resize(size, Image.Resampling.BICUBIC), np.uint8)

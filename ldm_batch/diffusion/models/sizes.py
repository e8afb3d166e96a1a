"""What a model's configuration tells of sizes: of images, and of latents beside them.

Imports no torch. Must not know weights, nor how anything is drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldm_batch.diffusion.family.family import Family
from ldm_batch.diffusion.family.table import FAMILIES
from ldm_batch.diffusion.models.files import read_json, read_kind
from ldm_batch.errors import JobError

MAX_LEVELS = 16
"""Levels of a VAE, which halves sides between two of them; the deepest of today has 6."""


def native_size(folder: Path) -> tuple[int, int]:
    """Height and width in pixels that the model was trained for, read from its configuration.

    Raises:
        JobError: the configuration does not say.
    """
    family = FAMILIES.get(read_kind(folder))
    try:
        if family is not None and family.native_latent is not None:
            latent: Any = family.native_latent
        else:
            denoiser = "unet" if family is None else family.denoiser
            latent = read_json(folder / denoiser / "config.json")["sample_size"]
        factor = vae_factor(folder, family)
        height, width = latent if isinstance(latent, list) else (latent, latent)
        return int(height) * factor, int(width) * factor
    except (KeyError, TypeError, ValueError) as error:
        raise JobError(
            f"{folder}: its configuration does not tell the image size ({error}); "
            "set call.height and call.width"
        ) from error


def vae_factor(folder: Path, family: Family | None) -> int:
    """Return how many pixels a latent pixel stands for; KeyError or TypeError where the
    configuration does not say."""
    if family is None:
        path, name, halvings = folder / "vqvae" / "config.json", "block_out_channels", -1
    else:
        path, name, halvings = (
            folder / "vae" / "config.json",
            family.vae_levels,
            family.vae_halvings,
        )
    levels = read_json(path)[name]
    if not isinstance(levels, list) or not 1 <= len(levels) <= MAX_LEVELS:
        raise JobError(f"{path}: {name} is no list of 1 to {MAX_LEVELS} levels")
    return int(2 ** (len(levels) + halvings))

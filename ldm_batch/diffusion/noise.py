"""One generator per image, from a 64-bit seed.

Must not know what the noise is for. torch's CPU generator (mt19937) takes only the low 32 bits of
a seed, so among a million 64-bit seeds about a hundred pairs would share their noise; larger seeds
therefore fill the whole Mersenne state from a hash.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from ldm_batch.diffusion.call_values import whole
from ldm_batch.identity import MAX_SEED

_STATE_WORDS = 624
_STATE_OFFSET = 24
"""Where `get_state()` holds the state: after seed (8 bytes), left, seeded (4 each), next (8).
A private layout, for want of a public call: `manual_seed` keeps 32 bits."""


def make_generator(seed: int) -> torch.Generator:
    """Return a CPU generator for `seed`, 0 to 2**64 - 1; different seeds give different noise.

    Below 2**32 this is `torch.Generator().manual_seed(seed)`, so that an image can be made again
    with diffusers alone. From 2**32 on the 624 words of mt19937's state are SHAKE-256 of
    `ldm_batch noise <seed>`, little-endian.

    Raises:
        ValueError: the seed is out of range, or no whole number.
    """
    seed = whole("seed", seed)
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed={seed}: must be 0 to 2**64 - 1")
    generator = torch.Generator().manual_seed(seed % 2**32)
    if seed < 2**32:
        return generator
    digest = hashlib.shake_256(f"ldm_batch noise {seed}".encode()).digest(4 * _STATE_WORDS)
    state = generator.get_state()
    words = state.numpy()[_STATE_OFFSET : _STATE_OFFSET + 8 * _STATE_WORDS].view(np.uint64)
    words[:] = np.frombuffer(digest, dtype="<u4")
    generator.set_state(state)
    return generator


def make_noise(generators: list[torch.Generator], shape: tuple[int, ...]) -> torch.Tensor:
    """Draw standard normal noise, float32 `[len(generators), *shape]`, each row from its own.

    A row's draw is exactly `torch.randn((1, *shape), generator=...)`, as diffusers draws it.
    """
    rows = [torch.randn((1, *shape), generator=generator) for generator in generators]
    return torch.cat(rows)

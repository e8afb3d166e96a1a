"""`tradeoff` with an eye for the demo world: pictures of its captions are judged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ldm_batch.commands.tradeoff import command
from ldm_batch.demo.checker import check
from ldm_batch.demo.world import spec_of_caption


def share_right(images: Sequence[NDArray[np.uint8]], prompts: Sequence[str]) -> float | None:
    """The share of pictures, 0 to 1, that show what their caption says; None for other prompts."""
    specs = [spec_of_caption(prompt) for prompt in prompts]
    known = [(image, spec) for image, spec in zip(images, specs, strict=True) if spec is not None]
    if not known or any(image.shape != (64, 64, 3) for image, _ in known):
        return None
    return sum(check(image, spec).is_right for image, spec in known) / len(known)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command with the demo world's checker."""
    command.main(arguments, share_right=share_right)

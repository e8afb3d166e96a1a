"""The guard of torch's global generators: noise that is not an image's own makes it unrepeatable.

Must not know what is drawn, or by whom.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ldm_batch.errors import JobError


@contextmanager
def untouched_generators(device: torch.device, who: str) -> Iterator[None]:
    """Hold that a block draws nothing from torch's CPU generator, nor from that of a CUDA device.

    Args:
        device: where the block computes.
        who: the pipeline and the scheduler, for the message.

    Raises:
        JobError: the block drew from one of them.
    """
    before = _states(device)
    yield
    if any(not torch.equal(old, new) for old, new in zip(before, _states(device), strict=True)):
        raise JobError(
            f"scheduler: {who} drew noise from torch's global generator and not from the images' "
            "own, so that no image could be made again; choose another scheduler, or eta 0"
        )


def _states(device: torch.device) -> list[torch.Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states

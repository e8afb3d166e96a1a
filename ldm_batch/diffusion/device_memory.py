"""Memory of the device: whether it ran out, how it is given back, how much of it one worker takes.

Must not know what is computed.
"""

from __future__ import annotations

import gc

import torch

CONTEXT_BYTES = 2**30
"""Of a device's memory, what a process takes beside what torch counts: CUDA's context, kernels and
workspaces."""
RAN_OUT = ("out of memory", "can't allocate memory", "ALLOC_FAILED", "ALLOCATION_FAILED")
"""What torch says of it in errors of kinds that say nothing; the last two cuBLAS and cuDNN, whose
workspaces are beside what torch allocates."""
LEAST_USABLE = 0.5
"""Of a worker's share, what is left to torch at least, on however small a device."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception means that memory, of the device or the host, ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return any(words in text for words in RAN_OUT)


def give_back_memory() -> None:
    """Free what nobody refers to any more, and return what torch keeps for later to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def limit_memory(share: float | None) -> None:
    """Keep this process within its share of the current CUDA device, so that one beside it never
    finds the memory taken; nothing where there is no such device.

    Args:
        share: of one device; None, or 1 and more: all of it.
    """
    if share is None or not 0 < share < 1 or not torch.cuda.is_available():
        return
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    torch.cuda.set_per_process_memory_fraction(usable_share(share, total))


def usable_share(share: float, total_bytes: int) -> float:
    """The part of a device's memory that torch may take of a worker's share, 0 to 1."""
    return max(share - CONTEXT_BYTES / total_bytes, share * LEAST_USABLE)

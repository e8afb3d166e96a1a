"""Named combinations of scheduler, steps, guidance interval and step cache: `speed=...`.

Each is a point of the trade-off between time and distance to the reference; `conf/speed/` holds the
same values for jobs, and tests/bench/sampler_presets.py measures them. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ldm_batch.config import SchedulerConfig


@dataclass(frozen=True, slots=True)
class Preset:
    """One speed: what to sample with, in how many steps."""

    scheduler: SchedulerConfig
    num_inference_steps: int


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "reference": Preset(SchedulerConfig(name="ddim"), 50),
        "balanced": Preset(SchedulerConfig(name="dpmpp_2m"), 20),
        "fast": Preset(SchedulerConfig(name="dpmpp_2m"), 10),
    }
)
"""`reference`: the paper's DDIM; `balanced`: not told apart from it; `fast`: near it."""

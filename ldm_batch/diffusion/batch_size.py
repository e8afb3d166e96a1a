"""The batch size that suits a model and a machine, found by trying.

On CUDA the largest shape that fits, on a CPU the smallest one that is about as quick as any. Images
depend on the batch size in their last bits, so a job finds it once, when it is planned.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ldm_batch.config import ModelConfig, SchedulerConfig
from ldm_batch.config.job import MAX_BATCH_SIZE
from ldm_batch.diffusion.load import pick_device
from ldm_batch.diffusion.models.cache import write_whole
from ldm_batch.diffusion.models.files import lock_model
from ldm_batch.diffusion.models.find import find_model
from ldm_batch.diffusion.text_to_image import TextToImage
from ldm_batch.errors import ShardError
from ldm_batch.records import Call, Request

if TYPE_CHECKING:
    import torch

CANDIDATES = (1, 2, 4, 8, 16, 32, 64, 128)
"""Doubled each time: more images in a call gain less and less. Measured on a CPU core, from 1 to 8
images each takes 0.61 of the time, from 8 to 16 another 0.98."""
NUM_STEPS = 2
"""Only times per image are compared, and every step takes the same."""
CLOSE_ENOUGH = 1.05
"""A smaller batch wins if its time per image is within this factor of the best."""


class Measurable(Protocol):
    """A pipeline whose shape can be chosen."""

    batch_size: int

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def with_batch_size(self, batch_size: int) -> Measurable:
        """The same weights at another shape."""

    def generate(self, requests: Sequence[Request]) -> Sequence[Any]:
        """One image per request."""

    def pop_notes(self) -> list[str]:
        """What happened since the last call."""


def find_batch_size(
    model: ModelConfig,
    scheduler: SchedulerConfig,
    call: Call,
    *,
    candidates: Iterable[int] = CANDIDATES,
    memory: Path | None = None,
    load: Callable[[], Measurable] | None = None,
    share: float | None = None,
) -> int:
    """Return the batch size for a job's calls.

    Args:
        call: the job's usual call; its size and whether it is guided matter.
        candidates: batch sizes to try, in rising order.
        memory: JSON file that remembers answers per model, call, dtype and device.
        load: loads the model, its batch size 1; None: as a pipeline of the paper's.
        share: of a GPU, where several workers have one: its memory is limited by then.

    Raises:
        JobError: the model does not load.
        ShardError: not even the smallest candidate fits into memory.
    """
    key = _key(model, call, share)
    known = _known(memory) if memory is not None else {}
    if key in known:
        return known[key]
    first: Measurable = load() if load else TextToImage.from_config(model, scheduler, batch_size=1)

    def measure(batch_size: int) -> float:
        return _measure(first.with_batch_size(batch_size), call)

    if first.device.type == "cuda":
        size = find_largest(measure, candidates)
    else:
        size = find_quickest(measure, candidates)
    if memory is not None:
        with suppress(OSError):  # no room, no rights: it is measured again the next time
            write_whole(memory, {**_known(memory), key: size})
    return size


def find_largest(measure: Callable[[int], float], candidates: Iterable[int]) -> int:
    """Return the largest candidate for which `measure` does not run out of memory."""
    best = 0
    for size in candidates:
        try:
            measure(size)
        except ShardError:
            if not best:
                raise
            break
        best = size
    return best


def find_quickest(measure: Callable[[int], float], candidates: Iterable[int]) -> int:
    """Return the smallest candidate whose seconds per image are close to the best.

    Stops after two candidates in a row that are no better than the best before them.
    """
    seconds: dict[int, float] = {}
    num_worse = 0
    for size in candidates:
        best_before = min(seconds.values(), default=float("inf"))
        try:
            seconds[size] = measure(size)
        except ShardError:
            if not seconds:
                raise
            break
        num_worse = 0 if seconds[size] < best_before else num_worse + 1
        if num_worse == 2:
            break
    limit = CLOSE_ENOUGH * min(seconds.values())
    return min(size for size, value in seconds.items() if value <= limit)


def _measure(pipeline: Measurable, call: Call) -> float:
    """Seconds per image of a short call; ShardError where its shape does not fit into memory."""
    short = Call(
        num_inference_steps=NUM_STEPS,
        guidance_scale=call.guidance_scale,
        eta=call.eta,
        height=call.height,
        width=call.width,
    )
    requests = [
        Request(inputs={"prompt": f"text {i}", "negative_prompt": ""}, seed=i, call=short)
        for i in range(pipeline.batch_size)
    ]
    clock = time.perf_counter if pipeline.device.type == "cuda" else time.process_time
    times = []
    for _ in range(3):  # the first one warms up
        start = clock()
        pipeline.generate(requests)
        times.append(clock() - start)
        if any("out of memory" in note for note in pipeline.pop_notes()):
            raise ShardError(f"out of memory at {pipeline.batch_size} images per model call")
    return min(times[1:]) / pipeline.batch_size


def _key(model: ModelConfig, call: Call, share: float | None = None) -> str:
    """Name what the answer depends on."""
    import torch

    device = pick_device(model.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    content = json.dumps(lock_model(find_model(model)), sort_keys=True)
    parts = [
        hashlib.sha256(content.encode()).hexdigest()[:16],
        f"{call.height}x{call.width}",
        "guided" if call.guidance_scale not in (0, 1) else "plain",
        model.dtype,
        name,
        _room(device),
        *([] if model.offload == "none" else [f"offload={model.offload}"]),
        *([f"share={share:g}"] if share is not None and 0 < share < 1 else []),
    ]
    return " ".join(parts)


def _room(device: torch.device) -> str:
    """What a device has beside its name: memory, of which a card may show a part; threads."""
    import torch

    if device.type == "cuda":
        return f"{torch.cuda.get_device_properties(device).total_memory / 2**30:.1f} GiB"
    return f"{torch.get_num_threads()} threads"


def _known(memory: Path) -> dict[str, int]:
    """What is remembered; nothing of a file that is damaged, or cannot be read."""
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {k: v for k, v in known.items() if type(v) is int and 1 <= v <= MAX_BATCH_SIZE}

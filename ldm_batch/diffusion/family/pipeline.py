"""Images by diffusers' own pipelines, each a function of its own request alone.

Batches have one fixed shape and rows of one call; noise comes from one generator per image, and a
pipeline that draws any other is refused, at the latest by a short probe when it is loaded. Must not
know rows, shards or files of the dataset.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from threading import Lock
from typing import Any

import numpy as np
import torch

from ldm_batch.columns import IMAGE, MASK
from ldm_batch.config import ModelConfig, SchedulerConfig
from ldm_batch.diffusion.device_memory import is_out_of_memory
from ldm_batch.diffusion.family.call import FamilyCall
from ldm_batch.diffusion.family.load import load_family
from ldm_batch.diffusion.family.probe import probe
from ldm_batch.diffusion.paste import paste
from ldm_batch.diffusion.pixels import to_uint8, to_unit_range
from ldm_batch.diffusion.quality import judge
from ldm_batch.diffusion.schedulers import effective_settings, find_step_trouble
from ldm_batch.diffusion.second_try import SecondTries
from ldm_batch.diffusion.threads import limit_threads
from ldm_batch.errors import LdmBatchError, one_line
from ldm_batch.made_as import MadeAs
from ldm_batch.records import Call, Fault, Made, PromptCount, Reason, Request

Result = np.ndarray | Made | Fault


class FamilyPipeline(SecondTries):
    """One loaded pipeline of diffusers; every batch runs at the same fixed shape."""

    def __init__(
        self,
        call: FamilyCall,
        model: ModelConfig,
        scheduler: SchedulerConfig,
        *,
        batch_size: int,
        num_threads: int | None = None,
        turn: Lock | None = None,
        lock: Mapping[str, str] | None = None,
    ) -> None:
        """Draw by a pipeline that is loaded.

        Args:
            model: as it was loaded.
            scheduler: likewise.
            batch_size: images per model call; part of what last bits depend on.
            num_threads: of torch, while it computes; None: as many as the process has.
            turn: taken while the pipeline computes, where others draw by it, too.
            lock: what its files were when it was loaded.
        """
        super().__init__(batch_size)
        self.batch_size, self.num_threads = batch_size, num_threads
        self._call, self._model, self._sampling = call, model, scheduler
        self._turn, self._lock = turn or Lock(), lock
        self._known_steps: set[int] = set()

    @classmethod
    def from_config(
        cls,
        model: ModelConfig,
        scheduler: SchedulerConfig,
        *,
        task: str = "text_to_image",
        batch_size: int,
        num_threads: int | None = None,
        lock: Mapping[str, str] | None = None,
    ) -> FamilyPipeline:
        """Load the model that a job names, and probe it.

        Args:
            task: name of what it is to draw.
            lock: `{path: sha256}` of `lock_model`; the files must be these.

        Raises:
            JobError: anything is wrong with the model, or its noise is not the images' own.
        """
        with limit_threads(num_threads):
            loaded = load_family(model, scheduler, task=task, lock=lock)
            call = FamilyCall(loaded, guidance_rescale=scheduler.guidance_rescale)
            probe(call)
        return cls(
            call, model, scheduler, batch_size=batch_size, num_threads=num_threads, lock=lock
        )

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self._call.device

    @property
    def is_float32(self) -> bool:
        """Whether every part computes in float32."""
        return self._call.is_float32

    def count_tokens(self, prompts: Sequence[str]) -> list[PromptCount]:
        """Count the tokens of prompts, special ones included; safe from any thread."""
        return self._call.count(prompts)

    def batch_key(self, call: Call) -> tuple[Call, int]:
        """Images of one batch have all of the call in common: it is one number a call of theirs."""
        return call, self.batch_size

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """Make one image per request, uint8 `[height, width, 3]`, or say why there is none.

        The batch is padded to `batch_size`, so an image's bytes depend on its request alone. An
        image that is not finite or of one colour is tried again once in float32. Where memory ran
        out, or float32 was needed, an image's `made_as` says so. What a row asks that the pipeline
        cannot do is the row's fault.

        Args:
            requests: 1 to `batch_size` of them, all of one `batch_key`.

        Raises:
            ValueError: no or too many requests, or requests of different keys.
            JobError: the pipeline drew noise that is not the images' own.
            ShardError: memory runs out with one image per model call.
        """
        if not 1 <= len(requests) <= self.batch_size:
            raise ValueError(f"{len(requests)} requests: must be 1 to {self.batch_size}")
        if len({self.batch_key(request.call) for request in requests}) > 1:
            raise ValueError("requests of one batch must have the same call")
        results: dict[int, Result] = {}
        groups: dict[Hashable, list[int]] = {}
        with self._turn, limit_threads(self.num_threads):
            for number, request in enumerate(requests):
                if trouble := next(self._call.troubles(request), None):
                    results[number] = Fault(Reason.OUT_OF_RANGE, trouble)
                    continue
                groups.setdefault(self._call.group(request), []).append(number)
            for numbers in groups.values():
                self._note_steps(requests[numbers[0]].call.num_inference_steps)
                drawn = self._draw([requests[number] for number in numbers])
                results |= zip(numbers, drawn, strict=True)
        return [results[number] for number in range(len(requests))]

    def with_batch_size(self, batch_size: int) -> FamilyPipeline:
        """Return another pipeline on the same weights, with its own fixed shape."""
        return FamilyPipeline(
            self._call,
            self._model,
            self._sampling,
            batch_size=batch_size,
            num_threads=self.num_threads,
            turn=self._turn,
            lock=self._lock,
        )

    def as_made(self, how: MadeAs) -> FamilyPipeline:
        """Return the pipeline whose images are those that this one made so."""
        one = self._in_float32() if how.is_float32 and not self.is_float32 else self
        return one if how.batch_size is None else one.with_batch_size(how.batch_size)

    def describe(self) -> dict[str, Any]:
        """Return what the images depend on besides their requests, JSON-able."""
        import diffusers
        import transformers

        loaded = self._call.loaded
        pipe, family = loaded.pipe, loaded.family
        parts = {name: part for name in sorted(family.parts) if (part := getattr(pipe, name))}
        is_cuda = self.device.type == "cuda"
        loras = [
            {"file": one.path.name, "sha256": one.sha256, "scale": one.scale}
            for one in loaded.loras
        ]
        return {
            "pipeline": loaded.kind,
            "components": {name: type(part).__name__ for name, part in parts.items()},
            "not_loaded": list(loaded.not_loaded),
            **({"loras": loras} if loras else {}),
            **({} if loaded.offload == "none" else {"offload": loaded.offload}),
            "scheduler": type(pipe.scheduler).__name__,
            "scheduler_settings": effective_settings(pipe.scheduler),
            "guidance_rescale": self._sampling.guidance_rescale,
            "arguments": dict(family.fixed),
            "max_tokens": loaded.max_tokens,
            "dtypes": {
                name: str(part.dtype).removeprefix("torch.")
                for name, part in parts.items()
                if hasattr(part, "dtype")
            },
            "device": self.device.type,
            "device_name": torch.cuda.get_device_name(self.device) if is_cuda else "cpu",
            "batch_size": self.batch_size,
            "num_threads": self.num_threads or torch.get_num_threads(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
        }

    def _make_once(self, requests: Sequence[Request]) -> list[Result]:
        return self._make_rows(self._shape.fill(requests))[: len(requests)]

    def _make_rows(self, requests: Sequence[Request]) -> list[Result]:
        """One image per row; where the pipeline refuses all together, each by itself, so that what
        one row asks is no other's trouble."""
        try:
            decoded = self._call.draw(requests)
        except Exception as error:
            if not _is_of_a_row(error):
                raise
            if len({id(request) for request in requests}) > 1:
                return [self._make_rows([one] * len(requests))[0] for one in requests]
            told = f"{type(error).__name__}: {one_line(error)}"
            fault = Fault(Reason.OUT_OF_RANGE, f"{self._call.who} does not draw it: {told}")
            return [fault] * len(requests)
        pixels = to_uint8(to_unit_range(decoded).nan_to_num())
        judged = [judge(*one) for one in zip(decoded, pixels, requests, strict=True)]
        return [_pasted(one, request) for one, request in zip(judged, requests, strict=True)]

    def _in_float32(self) -> FamilyPipeline:
        """Return this pipeline in float32, loaded again from its files; whoever asks for it keeps
        it no longer than it draws."""
        return FamilyPipeline.from_config(
            replace(self._model, dtype="float32", decode_dtype=None, text_encoder_dtype=None),
            self._sampling,
            task=self._call.loaded.task,
            batch_size=self.batch_size,
            num_threads=self.num_threads,
            lock=self._lock,
        )

    def _note_steps(self, num_inference_steps: int) -> None:
        """Note, once per number of steps, what the scheduler makes of them."""
        if num_inference_steps in self._known_steps or self._call.loaded.family.is_flow:
            return
        self._known_steps.add(num_inference_steps)
        scheduler = self._call.loaded.pipe.scheduler
        if trouble := find_step_trouble(scheduler, num_inference_steps):
            self._notes.append(trouble)


def _pasted(made: Result, request: Request) -> Result:
    """What was painted, over the image that it belongs to where the request has a mask."""
    if MASK not in request.inputs or isinstance(made, Fault):
        return made
    image, mask = request.inputs[IMAGE], request.inputs[MASK]
    if isinstance(made, Made):
        return replace(made, pixels=paste(made.pixels, image, mask))
    return paste(made, image, mask)


def _is_of_a_row(error: Exception) -> bool:
    """Whether an exception may come of what a request asks, not of the machine or the job."""
    told = str(error)
    is_device = isinstance(error, torch.AcceleratorError) or "CUDA error" in told
    is_device |= "does not have a deterministic implementation" in told
    return not (is_device or isinstance(error, LdmBatchError | OSError) or is_out_of_memory(error))

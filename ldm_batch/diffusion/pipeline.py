"""What both pipelines are: loaded components, one scheduler, one fixed batch shape, one lock.

Must not know what goes in or comes out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, Self

import torch

from ldm_batch.config import ModelConfig, SchedulerConfig
from ldm_batch.config.bounds import refuse
from ldm_batch.config.model import Device, Dtype, check_scheduler
from ldm_batch.diffusion.fixed_shape import FixedShape
from ldm_batch.diffusion.from_model import load_model, model_of
from ldm_batch.diffusion.load import Component, Components
from ldm_batch.diffusion.schedulers import find_step_trouble, make_scheduler
from ldm_batch.errors import JobError
from ldm_batch.made_as import how_made, with_made_as


class LoadedPipeline:
    """A loaded pipeline; used by one thread at a time, whoever calls."""

    def __init__(
        self, components: Components, scheduler: SchedulerConfig, *, batch_size: int
    ) -> None:
        """Put loaded components and a scheduler together.

        Raises:
            JobError: the settings are wrong.
        """
        if batch_size < 1:
            raise JobError(f"batch_size={batch_size}: must be at least 1")
        refuse(check_scheduler("scheduler", scheduler))
        self.batch_size = batch_size
        self._components = components
        self._sampling = scheduler
        self._scheduler = make_scheduler(
            components.scheduler_settings, scheduler.name, scheduler.settings
        )
        self._unet, self._vqvae = components["unet"], components["vqvae"]
        self._shape = FixedShape(batch_size)
        self._lock = Lock()
        self._notes: list[str] = []
        self._known_steps: set[int] = set()

    @classmethod
    def from_config(
        cls,
        model: ModelConfig,
        scheduler: SchedulerConfig,
        *,
        batch_size: int,
        lock: Mapping[str, str] | None = None,
    ) -> Self:
        """Load the model that a job names.

        Args:
            batch_size: images per model call; part of what an image's last bits depend on.
            lock: `{path: sha256}` of `lock_model`; the files must be these.

        Raises:
            JobError: anything is wrong with the model.
        """
        components = load_model(model, scheduler, lock=lock)
        return cls(components, scheduler, batch_size=batch_size)

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo_id: str | Path,
        *,
        revision: str | None = None,
        scheduler: str | SchedulerConfig = "from_model",
        dtype: Dtype = "float32",
        device: Device = "cpu",
        batch_size: int = 8,
    ) -> Self:
        """Load a pipeline for use from Python.

        Args:
            path_or_repo_id: a local folder, `demo:<name>`, or a hub repository with `revision`.
            revision: full commit sha of the hub repository; without it the path must be local.

        Raises:
            JobError: there is no such model, or it does not fit.
        """
        model = model_of(path_or_repo_id, revision=revision, dtype=dtype, device=device)
        if isinstance(scheduler, str):
            scheduler = SchedulerConfig(name=scheduler)
        return cls.from_config(model, scheduler, batch_size=batch_size)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self._unet.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of UNet and text encoder; latents and scheduler stay in float32."""
        return self._unet.dtype  # type: ignore[no-any-return]

    @property
    def is_float32(self) -> bool:
        """Whether every part computes in float32."""
        return bool(self.dtype == torch.float32 == self._vqvae.dtype)

    def modules(self, names: Sequence[str]) -> dict[str, Component]:
        """Return loaded components by name, for a second pipeline to share."""
        return {name: self._components[name] for name in names}

    def pop_notes(self) -> list[str]:
        """Return what happened since the last call that a receipt should tell."""
        notes, self._notes = self._notes, []
        return [*notes, *self._shape.pop_notes()]

    def _with_shape(self, pictures: Sequence[Any]) -> list[Any]:
        """Pictures of one run, each with the rows of its model calls where these were fewer than
        `batch_size`."""
        rows = self._shape.num_rows
        if rows == self.batch_size:
            return list(pictures)
        return [with_made_as(p, replace(how_made(p), batch_size=rows)) for p in pictures]

    def _note_steps(self, num_inference_steps: int) -> None:
        """Note, once per number of steps, what the scheduler makes of them."""
        if num_inference_steps in self._known_steps:
            return
        self._known_steps.add(num_inference_steps)
        if trouble := find_step_trouble(self._scheduler, num_inference_steps):
            self._notes.append(trouble)

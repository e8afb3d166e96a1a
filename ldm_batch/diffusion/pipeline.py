"""What both pipelines are: loaded components, one scheduler, one fixed batch shape, one lock.

Must not know what goes in or comes out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from os import PathLike
from threading import Lock
from typing import Any, Self

import torch

from ldm_batch.config import JobConfig, ModelConfig, SchedulerConfig
from ldm_batch.config.bounds import refuse
from ldm_batch.config.job import MAX_BATCH_SIZE, MAX_THREADS
from ldm_batch.config.model import Device, Dtype, check_scheduler
from ldm_batch.diffusion.call_values import whole
from ldm_batch.diffusion.from_model import (
    as_scheduler,
    in_words_of_a_call,
    load_in_float32,
    load_model,
    model_of,
)
from ldm_batch.diffusion.load import Component, Components
from ldm_batch.diffusion.progress_bar import check_bar, showing_steps
from ldm_batch.diffusion.schedulers import (
    PAPER_SETTINGS,
    find_beta_trouble,
    find_step_trouble,
    make_scheduler,
)
from ldm_batch.diffusion.second_try import SecondTries
from ldm_batch.diffusion.switches import compiling_every_shape
from ldm_batch.diffusion.threads import limit_threads
from ldm_batch.errors import JobError
from ldm_batch.made_as import MadeAs

SHA_DIGITS_SHOWN = 12
"""Of a hub repository's commit, in a pipeline's `repr`."""

logger = logging.getLogger(__name__)


class LoadedPipeline(SecondTries):
    """A loaded pipeline; used by one thread at a time, whoever calls."""

    def __init__(
        self,
        components: Components,
        scheduler: SchedulerConfig,
        *,
        batch_size: int,
        num_threads: int | None = None,
        **options: Any,
    ) -> None:
        """Put loaded components and a scheduler together.

        Args:
            num_threads: of torch, while it computes; None: as many as the process has.
            options: what the subclass takes besides.

        Raises:
            JobError: the settings are wrong.
        """
        self.batch_size = _count("batch_size", batch_size, MAX_BATCH_SIZE)
        super().__init__(self.batch_size)
        self.num_threads = _num_threads(num_threads)
        refuse(check_scheduler("scheduler", scheduler))
        self._components = components
        self._sampling = scheduler
        self._options = options
        self._scheduler = make_scheduler(
            components.scheduler_settings, scheduler.name, scheduler.settings
        )
        self._unet, self._vqvae = components["unet"], components["vqvae"]
        self._lock = Lock()
        self._known_steps: set[int] = set()
        self._name = str(components.folder)
        self._bar: dict[str, Any] = {}

    @classmethod
    def from_config(
        cls,
        model: ModelConfig,
        scheduler: SchedulerConfig,
        *,
        batch_size: int,
        num_threads: int | None = None,
        lock: Mapping[str, str] | None = None,
        shared: Mapping[str, Component] | None = None,
        **options: Any,
    ) -> Self:
        """Load the model that a job names.

        Args:
            batch_size: images, or tiles, per model call; part of what last bits depend on.
            num_threads: of torch, while it loads and computes; None: as many as the process has.
            lock: `{path: sha256}` of `lock_model`; the files must be these.
            shared: components that are loaded already, by name.
            options: what the class takes besides.

        Raises:
            JobError: anything is wrong with the model.
        """
        with limit_threads(_num_threads(num_threads)):
            components = load_model(model, scheduler, lock=lock, shared=shared)
            settings = {"batch_size": batch_size, "num_threads": num_threads, **options}
            loaded = cls(components, scheduler, **settings)
        pinned = f"@{model.revision[:SHA_DIGITS_SHOWN]}" if model.revision else ""
        loaded._name = f"{model.repo_id}{pinned}" if model.path is None else model.path
        return loaded

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo_id: str | PathLike[str],
        *,
        revision: str | None = None,
        variant: str | None = None,
        scheduler_config: Mapping[str, Any] | None = None,
        scheduler: str | SchedulerConfig = "from_model",
        dtype: Dtype = "float32",
        device: Device = "auto",
        batch_size: int = 1,
        num_threads: int | None = JobConfig.num_threads,
    ) -> Self:
        """Load a pipeline for use from Python.

        Args:
            path_or_repo_id: a local folder, `demo:<name>`, or a hub repository.
            revision: full commit sha of the hub repository; None: what its `main` is now, told by
                the logger, so that it can be named the next time.
            variant: which weights of several, e.g. `fp16`.
            scheduler_config: laid over the model's own scheduler_config.json, which says how it
                was trained, before a scheduler is made of it.
            scheduler: a name such as `ddim` or `dpmpp_2m`, or a `SchedulerConfig`; `from_model`:
                the model's own.
            dtype: `float32`, `bfloat16` or `float16`; half precision is very slow on CPUs.
            device: `auto` (CUDA where there is one, else CPU), `cpu` or `cuda`.
            batch_size: images of every model call, 1 to 4096; fewer are padded to it, so that one
                costs as much as all. An image's last bits depend on it: a dataset's own
                `batch_size` gives that dataset's bytes. More is faster where there are many images
                to a call.
            num_threads: torch threads of a call, 1 to 1024, which last bits depend on, too: a job's
                default. With more than one, or None, they may depend on an image's place among the
                `batch_size` as well. torch has its own number again when the call ends. None: as
                many as torch has.

        Raises:
            JobError: there is no such model, it does not fit, or a setting is wrong.
        """
        with in_words_of_a_call():
            model = model_of(
                path_or_repo_id,
                revision=revision,
                variant=variant,
                scheduler_config=scheduler_config,
                dtype=dtype,
                device=device,
            )
            loaded = cls.from_config(
                model, as_scheduler(scheduler), batch_size=batch_size, num_threads=num_threads
            )
        if trouble := find_beta_trouble(loaded._components.scheduler_settings):
            remedy = f"give scheduler_config={PAPER_SETTINGS}"
            logger.warning("%s: %s; %s", path_or_repo_id, trouble, remedy)
        return loaded

    def with_batch_size(self, batch_size: int) -> Self:
        """Return another pipeline on the same weights, with its own fixed shape and lock."""
        return self._alike(self._components, self._sampling, batch_size)

    def with_scheduler(self, scheduler: str | SchedulerConfig) -> Self:
        """Return another pipeline on the same weights that samples by another scheduler.

        Args:
            scheduler: a name such as `dpmpp_2m`, with the model's own settings and nothing else;
                or a `SchedulerConfig`.

        Raises:
            JobError: there is no such scheduler, or it does not suit the model.
        """
        return self._alike(self._components, as_scheduler(scheduler), self.batch_size)

    def as_made(self, how: MadeAs) -> Self:
        """Return the pipeline whose images are those that this one made so."""
        one = self._in_float32() if how.is_float32 and not self.is_float32 else self
        return one if how.batch_size is None else one.with_batch_size(how.batch_size)

    def _in_float32(self) -> Self:
        """Return this pipeline in float32, loaded again from its files; whoever asks for it keeps
        it no longer than it draws."""
        with limit_threads(self.num_threads):
            components = load_in_float32(self._components, self._sampling)
        return self._alike(components, self._sampling, self.batch_size)

    def _alike(self, components: Components, scheduler: SchedulerConfig, batch_size: int) -> Self:
        """A pipeline that does the same by other weights, another scheduler, in another shape."""
        settings = {"batch_size": batch_size, "num_threads": self.num_threads, **self._options}
        other = type(self)(components, scheduler, **settings)
        other._name, other._bar = self._name, dict(self._bar)
        return other

    def __repr__(self) -> str:
        parts = {
            "scheduler": type(self._scheduler).__name__,
            "device": self.device,
            "dtype": str(self.dtype).removeprefix("torch."),
            "batch_size": self.batch_size,
        }
        told = ", ".join(f"{name}={value}" for name, value in parts.items())
        return f"{type(self).__name__}({self._name}, {told})"

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

    def set_progress_bar_config(self, **config: Any) -> None:
        """Say how a call shows its steps, in the words of `tqdm`; as diffusers' pipelines take it.

        Args:
            config: arguments of `tqdm`, in place of those of an earlier call: `disable=True` shows
                nothing. Jobs, which call `generate`, never show a bar.

        Raises:
            ValueError: tqdm has no such argument, or does not take its value.
        """
        check_bar(config)
        self._bar = config

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """One thread at a time computes with this pipeline, in torch threads of its own number."""
        compiling = compiling_every_shape(self._unet, self.device)
        with self._lock, limit_threads(self.num_threads), compiling:
            yield

    def _showing_steps(self, num_steps: int) -> AbstractContextManager[Callable[[], object]]:
        """Show a bar of so many steps; gives what to call after each."""
        return showing_steps(num_steps, self._bar)

    def _note_steps(self, num_inference_steps: int) -> None:
        """Note, once per number of steps, what the scheduler makes of them."""
        if num_inference_steps in self._known_steps:
            return
        self._known_steps.add(num_inference_steps)
        if trouble := find_step_trouble(self._scheduler, num_inference_steps):
            self._notes.append(trouble)


def _count(name: str, value: object, largest: int) -> int:
    try:
        number = whole(name, value)
    except ValueError as error:
        raise JobError(str(error)) from error
    if not 1 <= number <= largest:
        raise JobError(f"{name}={number}: must be 1 to {largest}")
    return number


def _num_threads(value: object) -> int | None:
    return None if value is None else _count("num_threads", value, MAX_THREADS)

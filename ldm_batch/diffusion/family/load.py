"""Turn a model's folder into one of diffusers' own pipelines: parts of the closed table, whole.

No class that a folder names is looked up beyond that table, no code of a repository is run, and
weights come from safetensors alone. Must not know how the pipeline is used.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ldm_batch.config import ModelConfig, SchedulerConfig
from ldm_batch.diffusion.family.components import find_class, load_part
from ldm_batch.diffusion.family.extras import check_extras
from ldm_batch.diffusion.family.family import Drawing, Family
from ldm_batch.diffusion.family.files import (
    max_noise_level,
    read_drawing,
    read_family,
    read_not_loaded,
    size_multiple,
)
from ldm_batch.diffusion.family.limits import SizeLimit, size_limit
from ldm_batch.diffusion.family.lora import fuse_loras, read_loras
from ldm_batch.diffusion.family.offload import offload, offload_on
from ldm_batch.diffusion.family.parts import check_parts
from ldm_batch.diffusion.family.scheduler import make_family_scheduler
from ldm_batch.diffusion.load import pick_device, quiet_libraries
from ldm_batch.diffusion.models.files import MODEL_INDEX, read_index, read_json, verify_lock
from ldm_batch.diffusion.models.find import find_model
from ldm_batch.diffusion.models.loras import LoraFile, find_loras, split_loras, verify_loras
from ldm_batch.diffusion.switches import set_switches
from ldm_batch.errors import JobError


@dataclass(frozen=True)
class LoadedFamily:
    """One of diffusers' pipelines, ready to be called, and what is known of its class."""

    kind: str
    """Its class."""
    family: Family
    task: str
    """Name of what it was loaded to draw."""
    drawing: Drawing
    """How it does."""
    pipe: Any = field(repr=False)
    max_tokens: int
    """Of a prompt; more are cut."""
    counted_by: str
    """Name of the tokenizer that counts them."""
    size_multiple: int
    """Of height and width in pixels."""
    size_limit: SizeLimit
    """The most that they may be."""
    max_noise_level: int | None
    """Of an image that is enlarged."""
    not_loaded: tuple[str, ...]
    """What the model has beside that."""
    device: torch.device
    """Where it computes, wherever its parts are kept."""
    offload: str = "none"
    """How parts are kept off that device."""
    loras: tuple[LoraFile, ...] = ()
    """What was fused into its weights, in that order."""

    @property
    def denoiser(self) -> Any:
        """Its UNet or transformer."""
        return getattr(self.pipe, self.family.denoiser)


def load_family(
    model: ModelConfig,
    scheduler: SchedulerConfig,
    *,
    task: str = "text_to_image",
    lock: Mapping[str, str] | None = None,
) -> LoadedFamily:
    """Load the pipeline that a job names, on its device.

    Args:
        task: name of what it is to draw, which chooses among the classes of its family.
        lock: `{path: sha256}` of `lock_model`; the files must be these.

    Raises:
        JobError: a file differs from the lock, a class is not of the closed table, weights are
            missing, of the wrong shape or not finite, a setting is wrong, or the model does not
            draw the task.
    """
    folder = find_model(model)
    drawing = read_drawing(folder, task)
    check_extras(model)
    loras = find_loras(model)
    if lock is not None:
        own, of_loras = split_loras(lock)
        verify_lock(folder, own, model.variant)
        verify_loras(loras, of_loras)
    check_parts(folder, model.variant)
    device = pick_device(model.device)
    how = offload_on(model, device)
    kept = device if how == "none" else torch.device("cpu")
    pipe = _load_pipeline(folder, drawing.pipeline, model, scheduler, loras, kept)
    _set_up(pipe, read_family(folder), model, device)
    offload(pipe, how, device)
    return _describe(folder, task, pipe, device=device, offload=how, loras=tuple(loras))


def _load_pipeline(
    folder: Path,
    kind: str,
    model: ModelConfig,
    scheduler: SchedulerConfig,
    loras: Sequence[LoraFile],
    kept: torch.device,
) -> Any:
    """All parts, LoRAs fused on the CPU, as a pipeline on the device where it is kept."""
    family, weights = read_family(folder), read_loras(loras)
    first = torch.device("cpu") if loras else kept
    modules = {name: load_part(folder, name, model, first) for name in sorted(_present(folder))}
    own_settings = read_json(folder / "scheduler" / "scheduler_config.json")
    made = make_family_scheduler(kind, family, own_settings | model.scheduler_config, scheduler)
    absent = dict.fromkeys(set(family.parts) - set(modules))
    pipe = _assemble(folder, kind, {**modules, **absent, "scheduler": made})
    _refuse_overruled(kind, pipe.scheduler, scheduler)
    fuse_loras(pipe, family, loras, weights)
    if first != kept:
        pipe.to(kept)
    return pipe


def _set_up(pipe: Any, family: Family, model: ModelConfig, device: torch.device) -> None:
    """Switches of its denoiser and its VAE."""
    set_switches(getattr(pipe, family.denoiser), pipe.vae, model, device)
    if model.vae_slicing:
        pipe.vae.enable_slicing()
    if model.vae_tiling:
        pipe.vae.enable_tiling()


def _describe(folder: Path, task: str, pipe: Any, **of_device: Any) -> LoadedFamily:
    """A pipeline that is ready, with what its folder tells of it."""
    family, drawing = read_family(folder), read_drawing(folder, task)
    has_counter = getattr(pipe, family.counted_by) is not None
    return LoadedFamily(
        kind=drawing.pipeline,
        family=family,
        task=task,
        drawing=drawing,
        pipe=pipe,
        max_tokens=_max_tokens(family, getattr(pipe, family.denoiser)),
        counted_by=family.counted_by if has_counter else "tokenizer",
        size_multiple=size_multiple(folder, family),
        size_limit=size_limit(folder, family),
        max_noise_level=max_noise_level(folder, family),
        not_loaded=tuple(read_not_loaded(folder)),
        **of_device,
    )


def _present(folder: Path) -> list[str]:
    return [name for name in read_index(folder) if name != "scheduler"]


def _max_tokens(family: Family, denoiser: Any) -> int:
    if family.max_tokens_undistilled is not None and not denoiser.config.guidance_embeds:
        return family.max_tokens_undistilled
    return family.max_tokens


def _refuse_overruled(kind: str, made: Any, scheduler: SchedulerConfig) -> None:
    """Refuse settings that a pipeline puts right by itself, and a plan would tell otherwise."""
    for name, value in scheduler.settings.items():
        if made.config[name] != value:
            raise JobError(
                f"scheduler.settings.{name}={value!r}: {kind} takes {made.config[name]!r} in any "
                "case; leave it out"
            )


def _assemble(folder: Path, kind: str, parts: Mapping[str, Any]) -> Any:
    """Build the pipeline of its parts; what it warns of is decided here already."""
    family, index = read_family(folder), read_json(folder / MODEL_INDEX)
    said = {name: index.get(name, usual) for name, usual in family.settings.items()}
    with quiet_libraries(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        pipe = find_class(kind)(**{**parts, **said, **family.always})
    pipe.set_progress_bar_config(disable=True)
    return pipe

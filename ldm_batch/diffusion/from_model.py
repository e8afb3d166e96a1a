"""From what a job, or a caller, says of a model to loaded components, and whether these fit.

Must not know how they are used.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldm_batch.config import ModelConfig, SchedulerConfig
from ldm_batch.config.bounds import refuse
from ldm_batch.config.model import Device, Dtype, check_model
from ldm_batch.diffusion.load import TORCH_DTYPES, Component, Components, load, pick_device
from ldm_batch.diffusion.models.conversion import read_conversion
from ldm_batch.diffusion.models.files import LDM_SUPER_RESOLUTION, LDM_TEXT_TO_IMAGE
from ldm_batch.diffusion.models.find import DEMO_PREFIX, find_model, is_hub_id, todays_main
from ldm_batch.diffusion.schedulers import find_config_trouble
from ldm_batch.diffusion.switches import apply_switches, decode_dtype
from ldm_batch.errors import JobError

logger = logging.getLogger(__name__)

ARGUMENTS = {
    "path": "path_or_repo_id",
    "repo_id": "path_or_repo_id",
    **{name: name for name in ("revision", "variant", "scheduler_config", "dtype", "device")},
}
"""Of a job's fields of a model, what `from_pretrained` calls them."""
FIELD = re.compile(rf"(?<![\w./])model\.({'|'.join(ARGUMENTS)})\b")


def load_model(
    model: ModelConfig,
    scheduler: SchedulerConfig,
    *,
    lock: Mapping[str, str] | None = None,
    shared: Mapping[str, Component] | None = None,
) -> Components:
    """Load the model that a job names, ready for its device.

    Args:
        lock: `{path: sha256}` of `lock_model`; the files must be these.
        shared: components that are loaded already, by name.

    Raises:
        JobError: anything is wrong with it.
    """
    if model.dtype not in TORCH_DTYPES:
        raise JobError(f"model.dtype={model.dtype}: must be one of {', '.join(TORCH_DTYPES)}")
    if model.compile and scheduler.cache_interval > 1:
        raise JobError("model.compile: cannot be combined with scheduler.cache_interval > 1")
    folder = find_model(model)
    named = model.path or f"{model.repo_id}@{model.revision}"
    components = _load_named(
        named,
        folder,
        variant=model.variant,
        dtype=TORCH_DTYPES[model.dtype],
        decode_dtype=decode_dtype(model),
        device=pick_device(model.device),
        lock=lock,
        shared=shared,
    )
    apply_switches(components, model)
    settings = {**components.scheduler_settings, **model.scheduler_config}
    return replace(components, scheduler_settings=settings, model=model)


def load_in_float32(components: Components, scheduler: SchedulerConfig) -> Components:
    """The same model once more, from the same files and with the same switches, in float32.

    Raises:
        JobError: the files are others by now, or do not load any more.
    """
    model, lock = components.model, components.lock
    if model is not None:
        return load_model(replace(model, dtype="float32", decode_dtype=None), scheduler, lock=lock)
    device = components["unet"].device
    again = load(components.folder, device=device, lock=lock, variant=components.variant)
    return replace(again, scheduler_settings=components.scheduler_settings)


def _load_named(named: str, folder: Path, **options: Any) -> Components:
    """Load a folder; what is wrong with it is said of what the user named, not of our copy."""
    try:
        return load(folder, **options)
    except JobError as error:
        if read_conversion(folder) is None:
            raise
        raise JobError(str(error).replace(str(folder), named)) from error


def model_of(
    path_or_repo_id: str | os.PathLike[str],
    *,
    revision: str | None,
    variant: str | None,
    scheduler_config: Mapping[str, Any] | None,
    dtype: Dtype,
    device: Device,
) -> ModelConfig:
    """Return what a call from Python says of a model as a job would say it; a hub id without a
    revision is resolved, and told to the logger.

    Raises:
        JobError: the hub does not say, or what is laid over the model's scheduler is wrong.
    """
    if not isinstance(scheduler_config, Mapping | None):
        raise JobError(f"scheduler_config={scheduler_config!r}: must be settings by name")
    given = dict(scheduler_config or {})
    if trouble := find_config_trouble(given):
        raise JobError(f"scheduler_config.{trouble}")
    name = _check_names(path_or_repo_id, revision=revision, variant=variant)
    model = ModelConfig(
        path=name, variant=variant, scheduler_config=given, dtype=dtype, device=device
    )
    refuse(check_model("model", model, is_needed=True))
    if revision is None and not is_hub_id(path_or_repo_id):
        return model
    if revision is None:
        revision = todays_main(name)
        logger.warning("%s: its main is %s; revision=... stays with it", name, revision)
    return replace(model, path=None, repo_id=name, revision=revision)


def as_scheduler(scheduler: str | SchedulerConfig) -> SchedulerConfig:
    """A scheduler's name as its configuration.

    Raises:
        JobError: it is neither a name nor a configuration.
    """
    if isinstance(scheduler, str):
        return SchedulerConfig(name=scheduler)
    if not isinstance(scheduler, SchedulerConfig):
        what = type(scheduler).__name__
        raise JobError(f"scheduler: {what}; must be a name, e.g. dpmpp_2m, or a SchedulerConfig")
    return scheduler


@contextmanager
def in_words_of_a_call() -> Iterator[None]:
    """Let what is wrong with a model be said of the arguments of `from_pretrained`, not of a job's
    fields."""
    try:
        yield
    except JobError as error:
        text = str(error).replace("model.revision=null", "revision=None")
        raise type(error)(FIELD.sub(lambda found: ARGUMENTS[found[1]], text)) from error


def _check_names(path_or_repo_id: object, *, revision: object, variant: object) -> str:
    """What names a model and its files, as a text."""
    name = path_or_repo_id
    if isinstance(name, os.PathLike):
        name = os.fspath(name)
    if not isinstance(name, str):
        what = type(path_or_repo_id).__name__
        raise JobError(f"path_or_repo_id: {what}; must be a folder, demo:NAME or a hub id")
    if not isinstance(revision, str | None):
        raise JobError(f"revision: {type(revision).__name__}; must be a full commit sha, or None")
    if not isinstance(variant, str | None):
        raise JobError(f"variant: {type(variant).__name__}; must be a name such as fp16, or None")
    is_hubs = revision is not None or (isinstance(path_or_repo_id, str) and is_hub_id(name))
    is_named = is_hubs or name.startswith(DEMO_PREFIX) or os.path.isdir(os.path.expanduser(name))
    if not name or not is_named:
        raise JobError(
            f"path_or_repo_id={name!r}: no folder here; must be one in diffusers' layout, "
            "demo:NAME, or a hub id such as OWNER/NAME"
        )
    return name


def check_text_to_image(components: Components) -> None:
    """Refuse components that would fail, or fail silently, in the middle of a job.

    Raises:
        JobError: another pipeline, or channels that do not match.
    """
    folder = components.folder
    _check_pipeline(components, LDM_TEXT_TO_IMAGE, "text to image")
    unet, vqvae, bert = components["unet"], components["vqvae"], components["bert"]
    if unet.config.in_channels != vqvae.config.latent_channels:
        raise JobError(
            f"{folder}: the UNet takes {unet.config.in_channels} channels, "
            f"the first stage has {vqvae.config.latent_channels}"
        )
    if unet.config.cross_attention_dim != bert.config.d_model:
        raise JobError(
            f"{folder}: the UNet's cross_attention_dim "
            f"{unet.config.cross_attention_dim} is not bert's d_model {bert.config.d_model}"
        )


def check_super_resolution(components: Components) -> None:
    """Refuse components that would fail, or fail silently, in the middle of a job.

    Raises:
        JobError: another pipeline, or channels that do not match.
    """
    folder = components.folder
    _check_pipeline(components, LDM_SUPER_RESOLUTION, "super-resolution")
    unet, latent_channels = components["unet"], components["vqvae"].config.latent_channels
    if unet.config.in_channels != latent_channels + 3:
        raise JobError(
            f"{folder}: the UNet takes {unet.config.in_channels} channels; latents and image have "
            f"{latent_channels} + 3"
        )
    if unet.config.out_channels != latent_channels:
        raise JobError(
            f"{folder}: the UNet gives {unet.config.out_channels} channels, the first stage has "
            f"{latent_channels}"
        )


def _check_pipeline(components: Components, wanted: str, task: str) -> None:
    if components.pipeline != wanted:
        raise JobError(f"{components.folder}: is a {components.pipeline}; {task} needs a {wanted}")

"""Turn a model's folder into one of diffusers' own pipelines: parts of the closed table, whole.

No class that a folder names is looked up beyond that table, no code of a repository is run, and
weights come from safetensors alone. Must not know how the pipeline is used.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ldm_batch.config import ModelConfig, SchedulerConfig
from ldm_batch.diffusion.family.extras import check_extras
from ldm_batch.diffusion.family.files import (
    max_noise_level,
    read_drawing,
    read_family,
    read_not_loaded,
    size_multiple,
)
from ldm_batch.diffusion.family.lora import fuse_loras, read_loras
from ldm_batch.diffusion.family.offload import offload, offload_on
from ldm_batch.diffusion.family.scheduler import make_family_scheduler
from ldm_batch.diffusion.family.table import (
    CLIP_TOKENIZERS,
    CLIP_TOKENS,
    LOW_RES_SCHEDULER,
    SUCCESSORS,
    TEXT_ENCODERS,
    TOKENIZERS,
    Drawing,
    Family,
)
from ldm_batch.diffusion.load import (
    TORCH_DTYPES,
    check_whole,
    pick_device,
    quiet_libraries,
    refuse_foreign_code,
)
from ldm_batch.diffusion.models.conversion import read_conversion
from ldm_batch.diffusion.models.files import (
    MODEL_INDEX,
    SAFE,
    find_weights,
    index_name,
    read_index,
    read_json,
    read_kind,
    verify_lock,
    weight_name,
)
from ldm_batch.diffusion.models.find import find_model
from ldm_batch.diffusion.models.loras import LoraFile, find_loras, split_loras, verify_loras
from ldm_batch.diffusion.switches import decode_dtype, set_switches
from ldm_batch.errors import JobError

NEVER_READ = ("adapter_config.json", "additional_chat_templates")
"""What libraries would take from a part's folder beside its own files, and no lock would hold."""


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
    family, drawing = read_family(folder), read_drawing(folder, task)
    kind = drawing.pipeline
    check_extras(model)
    loras = find_loras(model)
    if lock is not None:
        own, of_loras = split_loras(lock)
        verify_lock(folder, own, model.variant)
        verify_loras(loras, of_loras)
    check_parts(folder)
    weights = read_loras(loras)
    device = pick_device(model.device)
    how = offload_on(model, device)
    kept = device if how == "none" else torch.device("cpu")
    first = torch.device("cpu") if loras else kept
    modules = {name: _load_part(folder, name, model, first) for name in sorted(_present(folder))}
    own_settings = read_json(folder / "scheduler" / "scheduler_config.json")
    made = make_family_scheduler(kind, family, own_settings | model.scheduler_config, scheduler)
    absent = dict.fromkeys(set(family.parts) - set(modules))
    pipe = _assemble(folder, kind, {**modules, **absent, "scheduler": made})
    _refuse_overruled(kind, pipe.scheduler, scheduler)
    fuse_loras(pipe, family, loras, weights)
    if first != kept:
        pipe.to(kept)
    vae, denoiser = modules["vae"], modules[family.denoiser]
    set_switches(denoiser, vae, model, device)
    if model.vae_slicing:
        vae.enable_slicing()
    if model.vae_tiling:
        vae.enable_tiling()
    offload(pipe, how, device)
    return LoadedFamily(
        kind=kind,
        family=family,
        task=task,
        drawing=drawing,
        pipe=pipe,
        max_tokens=_max_tokens(family, denoiser),
        counted_by=family.counted_by if family.counted_by in modules else "tokenizer",
        size_multiple=size_multiple(folder, family),
        max_noise_level=max_noise_level(folder, family),
        not_loaded=tuple(read_not_loaded(folder)),
        device=device,
        offload=how,
        loras=tuple(loras),
    )


def check_parts(folder: Path) -> None:
    """Check, without weights, that a folder has the parts of its pipeline's class, each of a class
    of the closed table, and that none brings code.

    Raises:
        JobError: names the part, or the file.
    """
    kind, family, index = read_kind(folder), read_family(folder), read_index(folder)
    for name, classes in family.parts.items():
        if name not in index:
            if name not in family.optional:
                raise JobError(f"{folder}: {kind} lacks the component {name}")
            continue
        if index[name] not in classes:
            supported = ", ".join(classes)
            raise JobError(f"{folder}: {name} is a {index[name]}; supported are {supported}")
        for file in NEVER_READ:
            if (folder / name / file).exists():
                raise JobError(f"model file {folder / name / file} is never read; take it away")
        names = ("tokenizer_config.json", "config.json") if name in TOKENIZERS else ("config.json",)
        for path in [folder / name / file for file in names]:
            if path.is_file():
                refuse_foreign_code(path)
    if "scheduler" not in index:
        raise JobError(f"{folder}: {kind} lacks the component scheduler")


def _present(folder: Path) -> list[str]:
    return [name for name in read_index(folder) if name != "scheduler"]


def _max_tokens(family: Family, denoiser: Any) -> int:
    if family.max_tokens_undistilled is not None and not denoiser.config.guidance_embeds:
        return family.max_tokens_undistilled
    return family.max_tokens


def _load_part(folder: Path, name: str, model: ModelConfig, device: torch.device) -> Any:
    class_name = read_index(folder)[name]
    try:
        with quiet_libraries():
            if name in TOKENIZERS:
                return _load_tokenizer(folder, name, class_name)
            if name == LOW_RES_SCHEDULER:
                path = folder / name / "scheduler_config.json"
                return _class(class_name).from_config(read_json(path))
            dtype = _dtype(name, model)
            module = _load_module(folder, name, class_name, dtype, model.variant)
            module = module.to(device=device)
            if name not in TEXT_ENCODERS:  # which keep what they must in float32
                module = module.to(dtype=dtype)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError) as error:
        raise JobError(f"{folder}: {name} does not load: {error}") from error
    return module.eval().requires_grad_(False)


def _load_tokenizer(folder: Path, name: str, class_name: str) -> Any:
    """Load a tokenizer; the limit of CLIP's is not always told, and pipelines pad to it."""
    tokenizer = _class(class_name).from_pretrained(
        folder / name, local_files_only=True, trust_remote_code=False
    )
    if class_name in CLIP_TOKENIZERS:
        config = read_json(folder / name.replace("tokenizer", "text_encoder") / "config.json")
        limit = int(config.get("max_position_embeddings", CLIP_TOKENS))
        tokenizer.model_max_length = min(tokenizer.model_max_length, limit)
    return tokenizer


def _dtype(name: str, model: ModelConfig) -> torch.dtype:
    if name == "vae":
        return decode_dtype(model)
    of_texts = model.text_encoder_dtype if name in TEXT_ENCODERS else None
    return TORCH_DTYPES[of_texts or model.dtype]


def _load_module(
    folder: Path, name: str, class_name: str, dtype: torch.dtype, variant: str | None
) -> torch.nn.Module:
    """Load one torch module and check that its weights are whole. A language model's head, which
    makes no embedding, may be left over."""
    made = read_conversion(folder)
    weights = find_weights(folder, variant if made is None else None)[name]
    if weights.is_pickled:
        raise JobError(f"{folder}: {weights.paths[0]} is pickled; only safetensors are loaded")
    _refuse_two_forms(folder, name, weights.variant)
    options: dict[str, Any] = {
        "use_safetensors": True,
        "local_files_only": True,
        "output_loading_info": True,
        "variant": weights.variant,
    }
    is_text = name in TEXT_ENCODERS
    if is_text:
        options |= {"dtype": dtype, "trust_remote_code": False}
    else:  # the other way needs the package accelerate
        options |= {"torch_dtype": dtype, "low_cpu_mem_usage": False}
    with torch.random.fork_rng(devices=[]):
        module, info = _class(class_name).from_pretrained(folder / name, **options)
    kinds: Sequence[str] = ("missing_keys", "mismatched_keys")
    check_whole(module, info, folder / name, kinds if is_text else (*kinds, "unexpected_keys"))
    return module  # type: ignore[no-any-return]


def _refuse_overruled(kind: str, made: Any, scheduler: SchedulerConfig) -> None:
    """Refuse settings that a pipeline puts right by itself, and a plan would tell otherwise."""
    for name, value in scheduler.settings.items():
        if made.config[name] != value:
            raise JobError(
                f"scheduler.settings.{name}={value!r}: {kind} takes {made.config[name]!r} in any "
                "case; leave it out"
            )


def _refuse_two_forms(folder: Path, name: str, variant: str | None) -> None:
    """Refuse weights that are there whole and in parts: libraries differ in which they read."""
    single, index = weight_name(name, SAFE, variant), index_name(name, SAFE, variant)
    if (folder / single).is_file() and (folder / index).is_file():
        raise JobError(f"{folder}: holds {single} and {index}; keep one of the two")


def _class(name: str) -> Any:
    """A class of the closed table, from whichever library has it."""
    name = SUCCESSORS.get(name, name)
    for library in ("diffusers", "transformers"):
        with suppress(AttributeError):
            return getattr(importlib.import_module(library), name)
    raise JobError(f"model: this installation has no {name}; install a newer diffusers")


def _assemble(folder: Path, kind: str, parts: Mapping[str, Any]) -> Any:
    """Build the pipeline of its parts; what it warns of is decided here already."""
    family, index = read_family(folder), read_json(folder / MODEL_INDEX)
    said = {name: index.get(name, usual) for name, usual in family.settings.items()}
    with quiet_libraries(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        pipe = _class(kind)(**{**parts, **said, **family.always})
    pipe.set_progress_bar_config(disable=True)
    return pipe

"""Stable Diffusion in one file becomes a model's parts, by diffusers' own converters.

diffusers converts the weights; what a single file lacks, settings and tokenizer, comes from a local
folder, so that nothing is fetched. Must not know the paper's own checkpoints, which diffusers does
not read (`original/`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch

from ldm_batch.diffusion.family.table import NOT_LOADED
from ldm_batch.diffusion.models import blueprint
from ldm_batch.diffusion.models.files import MODEL_INDEX, read_json
from ldm_batch.diffusion.models.model_folder import ModelFolder, Part, describe_sources
from ldm_batch.diffusion.models.original.weights import (
    AVERAGE,
    choose_average,
    read_checkpoint,
    split,
)
from ldm_batch.diffusion.models.side_file import SideFile
from ldm_batch.errors import JobError

Tensors: TypeAlias = dict[str, torch.Tensor]
NETWORKS = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
}
PIPELINES = {
    "StableDiffusionPipeline": NETWORKS,
    "StableDiffusionXLPipeline": NETWORKS
    | {"text_encoder_2": ("transformers", "CLIPTextModelWithProjection")},
}
"""The pipelines whose single files are read, and the networks of each."""
TOKENIZER_NAMES = (
    *("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"),
    "special_tokens_map.json",
)
UNET = "model.diffusion_model."
FOREIGN_CODE = ("auto_map", "quantization_config")


def read_single_file(checkpoint: Path, settings: Path) -> ModelFolder:
    """Read a single-file checkpoint of Stable Diffusion 1, 2 or XL whole.

    Args:
        settings: a folder in diffusers' layout, of which weights are neither needed nor read.

    Raises:
        JobError: the folder is of another pipeline or lacks something, the checkpoint is damaged,
            names code, or is none that diffusers reads with these settings.
    """
    index = read_json(settings / MODEL_INDEX)
    kind = index.get("_class_name")
    if kind not in PIPELINES:
        raise JobError(
            f"{settings / MODEL_INDEX}: is of a {kind}; single files are read of "
            f"{', '.join(PIPELINES)}"
        )
    networks = PIPELINES[kind]
    _check_index(settings, index, networks)
    parts = {
        name: _tokenizer_part(settings, name)
        for name in (n.replace("text_encoder", "tokenizer") for n in networks if "text" in n)
    }
    parts["scheduler"] = _scheduler_part(settings, index)
    tensors = read_checkpoint(checkpoint)
    average = split(tensors, AVERAGE)
    if average:
        network = split(tensors, UNET)
        chosen = choose_average(network, average, checkpoint, UNET.split(".")[1])
        tensors |= {UNET + name: value for name, value in chosen.items()}
    for name, (library, class_name) in networks.items():
        parts[name] = _network_part(settings, name, library, class_name, tensors, checkpoint)
    which = "the moving average (EMA) of the weights" if average else "its only weights"
    facts = [f"UNet: {which}", "converted by diffusers' own functions for single files"]
    sources = {"checkpoint": checkpoint, "settings": settings / MODEL_INDEX}
    readme = describe_sources(kind, "one file of Stable Diffusion", sources, facts)
    return ModelFolder(kind, parts, SideFile(), {}, readme)


def _check_index(
    settings: Path, index: Mapping[str, Any], networks: Mapping[str, tuple[str, str]]
) -> None:
    """Refuse a component of another class than is converted here, or one that is not known."""
    tokenizers = {n.replace("text_encoder", "tokenizer") for n in networks if "text" in n}
    for name, value in index.items():
        if name.startswith("_") or name in NOT_LOADED or not isinstance(value, list):
            continue
        if name not in {*networks, *tokenizers, "scheduler"}:
            raise JobError(f"{settings / MODEL_INDEX}: unknown component {name!r}")
        if name in networks and value != list(networks[name]):
            raise JobError(f"{settings / MODEL_INDEX}: {name} must be {list(networks[name])}")


def _tokenizer_part(settings: Path, name: str) -> Part:
    files = tuple(p for file in TOKENIZER_NAMES if (p := settings / name / file).is_file())
    names = {path.name for path in files}
    if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= names:
        raise JobError(
            f"{settings}: {name} has neither tokenizer.json nor vocab.json and merges.txt, which "
            "no single file holds"
        )
    return Part("transformers", "CLIPTokenizer", copied=files)


def _scheduler_part(settings: Path, index: Mapping[str, Any]) -> Part:
    import diffusers

    config = read_json(settings / "scheduler" / "scheduler_config.json")
    said = index.get("scheduler")
    name = said[1] if isinstance(said, list) and len(said) == 2 else None
    kind = getattr(diffusers, str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise JobError(f"{settings / MODEL_INDEX}: scheduler {name} is none of diffusers'")
    return Part("diffusers", str(name), config)


def _network_part(
    settings: Path, name: str, library: str, class_name: str, tensors: Tensors, checkpoint: Path
) -> Part:
    """Convert one network, and prove that its weights are whole: diffusers leaves what is missing
    at random values without a word."""
    config = read_json(settings / name / "config.json")
    for key in FOREIGN_CODE:
        if key in config:
            raise JobError(f"{settings / name / 'config.json'}: {key} is not supported")
    try:
        with torch.device("meta"):
            weights = _convert(settings, name, library, class_name, dict(tensors))
    except Exception as error:  # of many kinds, on what is another model's
        lines = str(error).splitlines() or [""]
        raise JobError(
            f"{checkpoint}: diffusers does not read its {name} as a {class_name} of these settings "
            f"({type(error).__name__}: {lines[0][:200]})"
        ) from error
    whole = blueprint.complete(class_name, config, weights, f"{checkpoint}: {name}")
    if library == "transformers":
        return Part(library, class_name, whole, weights, "model.safetensors")
    return Part(library, class_name, whole, weights)


def _convert(settings: Path, name: str, library: str, class_name: str, tensors: Tensors) -> Tensors:
    """Return the weights that diffusers would load into a network, by its names."""
    import diffusers
    import transformers
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm

    found: Tensors = {}
    kind: Any = getattr({"diffusers": diffusers, "transformers": transformers}[library], class_name)

    def note(module: Any, weights: Tensors, *others: Any, **named: Any) -> tuple[list[str], ...]:
        found.update(weights)
        return [], []

    noting = type(class_name, (kind,), {"load_state_dict": note})
    where = {"config": str(settings), "subfolder": name, "local_files_only": True}
    if library == "diffusers":
        noting.from_single_file(tensors, low_cpu_mem_usage=False, **where)  # type: ignore[attr-defined]
        return found
    known = create_diffusers_clip_model_from_ldm(noting, tensors, **where).state_dict()
    if not found:  # the package accelerate is there, by which diffusers loads in another way
        found.update((key, value) for key, value in known.items() if not value.is_meta)
    return {key: value for key, value in found.items() if key in known}

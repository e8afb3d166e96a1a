"""A checkpoint and its yaml become a model's parts: networks, schedule, condition, side file.

Must not know where they are written, nor the command line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ldm_batch.diffusion.models import blueprint
from ldm_batch.diffusion.models.files import LDM_SUPER_RESOLUTION
from ldm_batch.diffusion.models.model_folder import ModelFolder, Part, describe_sources
from ldm_batch.diffusion.models.original import condition as conditions
from ldm_batch.diffusion.models.original import first_stage, schedule, text_encoder, unet
from ldm_batch.diffusion.models.original.condition import Condition
from ldm_batch.diffusion.models.original.first_stage import FirstStage
from ldm_batch.diffusion.models.original.settings import Section, read_settings
from ldm_batch.diffusion.models.original.tokenizer import check_tokenizer
from ldm_batch.diffusion.models.original.weights import (
    AVERAGE,
    Weights,
    choose_average,
    read_checkpoint,
    split,
)
from ldm_batch.diffusion.models.side_file import SideFile
from ldm_batch.errors import JobError

DIFFUSION = "ldm.models.diffusion.ddpm.LatentDiffusion"
TRAINING_SETTINGS = (
    *("num_timesteps_cond", "log_every_t", "first_stage_key", "cond_stage_key", "image_size"),
    *("channels", "monitor", "cond_stage_trainable", "scheduler_config", "loss_type", "ckpt_path"),
    *("ignore_keys", "load_only_unet", "clip_denoised", "cosine_s", "original_elbo_weight"),
    *("v_posterior", "l_simple_weight", "use_positional_encodings", "learn_logvar"),
    *("logvar_init", "cond_stage_forward"),
)
"""Settings of a diffusion model that change no image of it."""


@dataclass(frozen=True)
class _Diffusion:
    """All that the yaml says of a diffusion model."""

    unet: unet.UNet
    first_stage: FirstStage
    condition: Condition
    schedule: dict[str, Any]
    use_ema: bool
    scale_factor: float
    scale_by_std: bool


@dataclass(frozen=True)
class Sources:
    """The files of one model."""

    checkpoint: Path
    settings: Path
    tokenizer: Path | None = None
    """A folder with the vocabulary; models of text need one."""


def read_model(sources: Sources) -> ModelFolder:
    """Read an original model whole: a diffusion model, or a first stage alone.

    Raises:
        JobError: the yaml is of another kind of model, or not that of the checkpoint; the
            checkpoint is damaged or names code; a tokenizer is missing, or one too many.
    """
    section = read_settings(sources.settings)
    kind = section.text("target")
    if kind in first_stage.TARGETS:
        stage = first_stage.read_first_stage(section)
        _check_tokenizer(sources, None)
        return _first_stage_folder(stage, read_checkpoint(sources.checkpoint), sources)
    section.target(DIFFUSION, *first_stage.TARGETS)
    model = _read_diffusion(section)
    tokenizer = _check_tokenizer(sources, model.condition)
    return _diffusion_folder(model, read_checkpoint(sources.checkpoint), tokenizer, sources)


def _check_tokenizer(sources: Sources, condition: Condition | None) -> tuple[Path, ...]:
    """The tokenizer's files, where the model is one of text."""
    encoder = condition.text_encoder if condition else None
    if encoder is None or not encoder.has_tokenizer:
        if sources.tokenizer is not None:
            raise JobError(f"--tokenizer {sources.tokenizer}: this model reads no text")
        return ()
    if sources.tokenizer is None:
        raise JobError(
            f"{sources.checkpoint}: a model of text; name with --tokenizer a folder with the "
            "vocab.txt or tokenizer.json of bert-base-uncased, which the original loads by name"
        )
    return check_tokenizer(sources.tokenizer, encoder.vocabulary_size)


def _read_diffusion(section: Section) -> _Diffusion:
    params = section.section("params")
    section.ignore(["base_learning_rate"])
    section.refuse_others()
    network = unet.read_unet(params.section("unet_config"))
    stage = first_stage.read_first_stage(params.section("first_stage_config"))
    condition = conditions.read_condition(params, stage.embedding_dim)
    model = _Diffusion(
        unet=network,
        first_stage=stage,
        condition=condition,
        schedule=schedule.read_schedule(params),
        use_ema=params.flag("use_ema", True),
        scale_factor=params.number("scale_factor", 1.0),
        scale_by_std=params.flag("scale_by_std", False),
    )
    params.ignore(TRAINING_SETTINGS)
    params.refuse_others()
    conditions.check_unet(condition, network, stage.embedding_dim)
    return model


def _diffusion_folder(
    model: _Diffusion,
    tensors: dict[str, torch.Tensor],
    tokenizer: tuple[Path, ...],
    sources: Sources,
) -> ModelFolder:
    schedule.take_buffers(tensors, model.schedule)
    network = split(tensors, "model.diffusion_model.")
    average = split(tensors, AVERAGE)
    if model.use_ema:
        network = choose_average(network, average, sources.checkpoint, "diffusion_model")
    model = replace(model, scale_factor=_scale_factor(model, tensors, sources))
    first = split(tensors, "first_stage_model.")
    made = conditions.take_weights(model.condition, split(tensors, "cond_stage_model."), first)
    first = {name: first[name] for name in first if not name.startswith(first_stage.NOT_SAMPLED)}
    Weights(tensors, "").refuse_rest()
    parts = {
        "unet": _unet_part(model.unet, Weights(network, "model.diffusion_model.")),
        "vqvae": _first_stage_part(
            model.first_stage, Weights(first, "first_stage_model."), model.scale_factor
        ),
        "scheduler": _scheduler_part(model.schedule),
    }
    if (encoder := model.condition.text_encoder) is not None:
        parts["bert"] = _bert_part(encoder, made.pop("bert"))
    if tokenizer:
        parts["tokenizer"] = Part("transformers", "BertTokenizer", copied=tokenizer)
    heads = unet.untold_heads(model.unet)
    side = SideFile(
        num_heads={} if heads is None else {"unet": heads},
        class_embedder=model.condition.class_embedder,
        rescaler=model.condition.rescaler,
    )
    facts = _facts(model, has_average=bool(average))
    readme = _readme(model.condition.pipeline, sources, facts)
    return ModelFolder(model.condition.pipeline, parts, side, made, readme)


def _scale_factor(model: _Diffusion, tensors: dict[str, torch.Tensor], sources: Sources) -> float:
    """What latents are multiplied by: measured in training where it stands in the checkpoint."""
    factor = model.scale_factor
    if "scale_factor" in tensors:
        stored = tensors.pop("scale_factor")
        if stored.numel() != 1:
            raise JobError(f"{sources.checkpoint}: scale_factor is not one number")
        factor = float(stored)
    elif model.scale_by_std:
        raise JobError(
            f"{sources.checkpoint}: has no scale_factor, which scale_by_std of the yaml asks for"
        )
    if not 0 < factor < float("inf"):
        raise JobError(f"{sources.checkpoint}: scale_factor is {factor}, must be positive")
    if factor != 1 and model.condition.pipeline == LDM_SUPER_RESOLUTION:
        raise JobError(
            f"{sources.checkpoint}: scale_factor is {factor}; a {LDM_SUPER_RESOLUTION} "
            "decodes latents as they are"
        )
    return factor


def _first_stage_folder(
    stage: FirstStage, tensors: dict[str, torch.Tensor], sources: Sources
) -> ModelFolder:
    taken = {n: t for n, t in tensors.items() if not n.startswith(first_stage.NOT_SAMPLED)}
    part = _first_stage_part(stage, Weights(taken, ""), 1.0)
    facts = ["a first stage alone: no pipeline draws by it; `vqvae` loads by `from_pretrained`"]
    readme = _readme(stage.class_name, sources, facts)
    return ModelFolder(stage.class_name, {"vqvae": part}, SideFile(), {}, readme)


def _first_stage_part(stage: FirstStage, weights: Weights, scale_factor: float) -> Part:
    renamed = first_stage.rename(weights, stage)
    arguments = first_stage.make_config(stage, scale_factor)
    config = blueprint.complete(stage.class_name, arguments, renamed, "first_stage_model")
    return Part("diffusers", stage.class_name, config, renamed)


def _unet_part(network: unet.UNet, weights: Weights) -> Part:
    renamed, kind = unet.rename(weights, network), unet.class_name(network)
    config = blueprint.complete(kind, unet.make_config(network), renamed, "model.diffusion_model")
    return Part("diffusers", kind, config, renamed)


def _bert_part(encoder: text_encoder.TextEncoderShape, weights: dict[str, torch.Tensor]) -> Part:
    arguments = text_encoder.make_config(encoder)
    config = blueprint.complete("LDMBertModel", arguments, weights, "cond_stage_model")
    return Part("latent_diffusion", "LDMBertModel", config, weights, "model.safetensors")


def _scheduler_part(arguments: Mapping[str, Any]) -> Part:
    from diffusers import DDIMScheduler

    config = json.loads(DDIMScheduler(**arguments).to_json_string())
    return Part("diffusers", "DDIMScheduler", config)


def _facts(model: _Diffusion, *, has_average: bool) -> list[str]:
    averaged = "the moving average (EMA) of the weights, by which the original samples"
    plain = "its plain weights, as the yaml's `use_ema: false` has it"
    if has_average:
        plain += "; the moving average in the checkpoint was left"
    betas = f"{model.schedule['beta_start']:g} to {model.schedule['beta_end']:g}"
    return [
        f"UNet: {averaged if model.use_ema else plain}",
        f"first stage: {model.first_stage.class_name}, its latents times {model.scale_factor:g}",
        f"noise: {model.schedule['num_train_timesteps']} steps, betas {betas} "
        f"({model.schedule['beta_schedule']}), DDIM steps from 1 on",
    ]


def _readme(class_name: str, sources: Sources, facts: list[str]) -> str:
    files = {"checkpoint": sources.checkpoint, "settings": sources.settings}
    what = "a checkpoint of the original code, CompVis/latent-diffusion"
    return describe_sources(class_name, what, files, facts)

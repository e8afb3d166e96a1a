"""What an original model is conditioned on, and so which pipeline it is.

Must not know how a condition is made of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ldm_batch.diffusion.models.blueprint import check_values
from ldm_batch.diffusion.models.files import LDM_SUPER_RESOLUTION, LDM_TEXT_TO_IMAGE
from ldm_batch.diffusion.models.original import text_encoder
from ldm_batch.diffusion.models.original.settings import Section
from ldm_batch.diffusion.models.original.text_encoder import TextEncoderShape
from ldm_batch.diffusion.models.original.unet import UNet
from ldm_batch.diffusion.models.original.weights import Weights
from ldm_batch.diffusion.models.side_file import (
    CLASS_TO_IMAGE,
    INPAINT,
    LAYOUT_TO_IMAGE,
    SEMANTIC_SYNTHESIS,
    ClassEmbedder,
    Rescaler,
)
from ldm_batch.errors import JobError

UNCONDITIONAL = "LDMPipeline"
CLASS_EMBEDDER = "ldm.modules.encoders.modules.ClassEmbedder"
RESCALER = "ldm.modules.encoders.modules.SpatialRescaler"
IDENTITY = "torch.nn.Identity"
STABLE_DIFFUSION = "ldm.modules.encoders.modules.FrozenCLIPEmbedder"


@dataclass(frozen=True)
class Condition:
    """How a model is conditioned: by tokens that it attends to, or by channels beside latents."""

    pipeline: str
    token_width: int | None = None
    num_beside: int = 0
    text_encoder: TextEncoderShape | None = None
    class_embedder: ClassEmbedder | None = None
    rescaler: Rescaler | None = None


def read_condition(params: Section, latent_channels: int) -> Condition:
    """Read the condition from the diffusion model's section of the yaml.

    Raises:
        JobError: it is none that can be imported, or stands elsewhere than its kind does.
    """
    has_concat = params.flag("concat_mode", True)
    key = "concat" if has_concat else "crossattn"
    if params.has("conditioning_key"):
        key = params.text("conditioning_key")
    params.ignore(["conditioning_key"])
    condition = _read_kind(params, latent_channels)
    wanted = "crossattn" if condition.token_width is not None else "concat"
    if condition.pipeline != UNCONDITIONAL and key != wanted:
        raise JobError(
            f"{params.place}.conditioning_key: {key} cannot be imported with this "
            f"cond_stage_config, {wanted} can"
        )
    return condition


def _read_kind(params: Section, latent_channels: int) -> Condition:
    if not params.is_mapping("cond_stage_config"):
        kind = params.text("cond_stage_config")
        if kind == "__is_unconditional__":
            return Condition(UNCONDITIONAL)
        if kind == "__is_first_stage__":
            return Condition(INPAINT, num_beside=latent_channels + 1)
        raise JobError(f"{params.place}.cond_stage_config: {kind} cannot be imported")
    section = params.section("cond_stage_config")
    if section.text("target") == STABLE_DIFFUSION:
        raise JobError(
            f"{section.place}: is of Stable Diffusion; name with --config a folder with the "
            "settings and the tokenizer of its diffusers model in place of the yaml"
        )
    kind = section.target(text_encoder.TARGET, CLASS_EMBEDDER, RESCALER, IDENTITY)
    if kind == text_encoder.TARGET:
        encoder = text_encoder.read_text_encoder(section)
        pipeline = LDM_TEXT_TO_IMAGE if encoder.has_tokenizer else LAYOUT_TO_IMAGE
        return Condition(pipeline, token_width=encoder.width, text_encoder=encoder)
    if kind == CLASS_EMBEDDER:
        return _read_class_embedder(section)
    if kind == RESCALER:
        return _read_rescaler(section)
    if params.text("cond_stage_key", "image") != "LR_image":
        raise JobError(f"{params.place}.cond_stage_key: must be LR_image beside {IDENTITY}")
    return Condition(LDM_SUPER_RESOLUTION, num_beside=3)


def _read_class_embedder(section: Section) -> Condition:
    params = section.section("params")
    section.refuse_others()
    params.ignore(["key"])
    said = ClassEmbedder(params.integer("n_classes", 1000), params.integer("embed_dim"))
    params.refuse_others()
    return Condition(CLASS_TO_IMAGE, token_width=said.dim, class_embedder=said)


def _read_rescaler(section: Section) -> Condition:
    params = section.section("params")
    section.refuse_others()
    params.must_be("method", "bilinear")
    params.must_be("multiplier", 0.5)
    said = Rescaler(
        num_halvings=params.integer("n_stages", 1, most=16),
        in_channels=params.integer("in_channels", 3),
        out_channels=params.integer("out_channels"),
        has_bias=params.flag("bias", False),
    )
    params.refuse_others()
    return Condition(SEMANTIC_SYNTHESIS, num_beside=said.out_channels, rescaler=said)


def check_unet(condition: Condition, unet: UNet, latent_channels: int) -> None:
    """Check that the UNet takes what the condition gives, beside latents.

    Raises:
        JobError: names the numbers.
    """
    wanted = latent_channels + condition.num_beside
    if unet.in_channels != wanted or unet.out_channels != latent_channels:
        raise JobError(
            f"unet_config: {unet.in_channels} channels in, {unet.out_channels} out; a "
            f"{condition.pipeline} of this first stage has {wanted} and {latent_channels}"
        )
    if unet.context_dim != condition.token_width:
        raise JobError(
            f"unet_config: context_dim is {unet.context_dim}, the condition's tokens have "
            f"{condition.token_width}"
        )


def take_weights(
    condition: Condition, tensors: Mapping[str, torch.Tensor], first: Mapping[str, torch.Tensor]
) -> dict[str, dict[str, torch.Tensor]]:
    """Return the weights of a condition by the names of diffusers or of ours, by folder.

    Args:
        tensors: those under `cond_stage_model.`.
        first: those of the first stage, which a model of masked images holds twice.

    Raises:
        JobError: one is missing, has no place, or does not fit.
    """
    place = "cond_stage_model."
    if condition.pipeline == INPAINT:
        for name, value in tensors.items():
            if name not in first or not torch.equal(value, first[name]):
                raise JobError(f"{place}{name} is not that of the first stage, as the yaml has it")
        return {}
    weights = Weights(tensors, place)
    made: dict[str, dict[str, torch.Tensor]] = {}
    if condition.text_encoder is not None:
        made["bert"] = text_encoder.rename(weights, condition.text_encoder)
    if (said := condition.class_embedder) is not None:
        rows = _shaped(weights, "embedding.weight", (said.num_classes, said.dim))
        made["class_embedder"] = {"embedding.weight": rows}
    if (scaled := condition.rescaler) is not None:
        shape = (scaled.out_channels, scaled.in_channels, 1, 1)
        mapper = {"channel_mapper.weight": _shaped(weights, "channel_mapper.weight", shape)}
        if scaled.has_bias:
            mapper["channel_mapper.bias"] = _shaped(weights, "channel_mapper.bias", shape[:1])
        made["rescaler"] = mapper
    weights.refuse_rest()
    return made


def _shaped(weights: Weights, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    value = weights.take(name)
    if tuple(value.shape) != shape:
        raise JobError(
            f"cond_stage_model.{name} is {tuple(value.shape)}, the yaml makes it {shape}"
        )
    check_values(value, f"cond_stage_model.{name}")
    return value

"""The original first stages (`autoencoder.py`) as diffusers' AutoencoderKL and VQModel.

Must not know what is done with latents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ldm_batch.diffusion.models.original.settings import Section
from ldm_batch.diffusion.models.original.weights import Weights
from ldm_batch.errors import JobError

TARGETS = {
    "ldm.models.autoencoder.AutoencoderKL": "AutoencoderKL",
    "ldm.models.autoencoder.VQModel": "VQModel",
    "ldm.models.autoencoder.VQModelInterface": "VQModel",
}
NOT_SAMPLED = ("loss.", "model_ema.", "colorize")
"""What a checkpoint of a first stage alone holds for its training; the original samples without."""
NUM_GROUPS = 32
RESNET = (("norm1", "norm1"), ("conv1", "conv1"), ("norm2", "norm2"), ("conv2", "conv2"))
ATTENTION = (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0"))


@dataclass(frozen=True)
class FirstStage:
    """The numbers of a first stage; those per level from the widest resolution down."""

    class_name: str
    in_channels: int
    out_channels: int
    widths: tuple[int, ...]
    has_attention: tuple[bool, ...]
    has_middle_attention: bool
    num_resnets: int
    latent_channels: int
    embedding_dim: int
    """Channels of what the UNet sees."""
    codebook_size: int | None
    sample_size: int


def read_first_stage(section: Section) -> FirstStage:
    """Read a first stage's numbers from its section of the yaml.

    Raises:
        JobError: it is another class, or has a setting that diffusers' classes have not.
    """
    kind = TARGETS[section.target(*TARGETS)]
    params = section.section("params")
    section.ignore(["base_learning_rate"])
    section.refuse_others()
    params.must_be("remap", None)
    params.must_be("sane_index_shape", False)
    params.ignore(["lossconfig", "monitor", "ckpt_path", "ignore_keys", "image_key"])
    params.ignore(["colorize_nlabels", "batch_resize_range", "scheduler_config", "lr_g_factor"])
    params.ignore(["use_ema"])  # the diffusion model decodes with the plain weights in any case
    embedding_dim = params.integer("embed_dim")
    codebook_size = params.integer("n_embed") if kind == "VQModel" else None
    numbers = params.section("ddconfig")
    params.refuse_others()
    numbers.must_be("double_z", kind == "AutoencoderKL")
    stage = _read_networks(numbers, kind, embedding_dim, codebook_size)
    numbers.refuse_others()
    if kind == "AutoencoderKL" and stage.latent_channels != embedding_dim:
        raise JobError(
            f"{params.place}: embed_dim {embedding_dim} and z_channels {stage.latent_channels} "
            "differ; diffusers' AutoencoderKL has one number for both"
        )
    return stage


def _read_networks(
    numbers: Section, kind: str, embedding_dim: int, codebook_size: int | None
) -> FirstStage:
    numbers.must_be("attn_type", "vanilla", "none")
    has_attention = numbers.text("attn_type", "vanilla") == "vanilla"
    numbers.must_be("use_linear_attn", False)
    numbers.must_be("resamp_with_conv", True)
    numbers.must_be("give_pre_end", False)
    numbers.must_be("tanh_out", False)
    numbers.ignore(["dropout"])
    width, size = numbers.integer("ch"), numbers.integer("resolution")
    widths = tuple(width * multiple for multiple in numbers.integers("ch_mult"))
    attended = numbers.integers("attn_resolutions", can_be_empty=True)
    return FirstStage(
        class_name=kind,
        in_channels=numbers.integer("in_channels"),
        out_channels=numbers.integer("out_ch"),
        widths=widths,
        has_attention=tuple(
            has_attention and size // 2**level in attended for level in range(len(widths))
        ),
        has_middle_attention=has_attention,
        num_resnets=numbers.integer("num_res_blocks", most=16),
        latent_channels=numbers.integer("z_channels"),
        embedding_dim=embedding_dim,
        codebook_size=codebook_size,
        sample_size=size,
    )


def make_config(stage: FirstStage, scale_factor: float) -> dict[str, Any]:
    """The arguments of diffusers' class.

    Args:
        scale_factor: what latents are multiplied by for the UNet. It stands there in any case:
            VQModel's own default is that of a KL model.
    """
    kinds = ["Attn" if has else "" for has in stage.has_attention]
    config: dict[str, Any] = {
        "in_channels": stage.in_channels,
        "out_channels": stage.out_channels,
        "down_block_types": tuple(f"{kind}DownEncoderBlock2D" for kind in kinds),
        "up_block_types": tuple(f"{kind}UpDecoderBlock2D" for kind in reversed(kinds)),
        "block_out_channels": stage.widths,
        "layers_per_block": stage.num_resnets,
        "latent_channels": stage.latent_channels,
        "norm_num_groups": NUM_GROUPS,
        "sample_size": stage.sample_size,
        "mid_block_add_attention": stage.has_middle_attention,
        "scaling_factor": scale_factor,
    }
    if stage.codebook_size is None:
        return config
    return config | {
        "num_vq_embeddings": stage.codebook_size,
        "vq_embed_dim": stage.embedding_dim,
    }


def rename(weights: Weights, stage: FirstStage) -> dict[str, torch.Tensor]:
    """Return the weights by diffusers' names.

    Raises:
        JobError: one is missing, or has no place.
    """
    made: dict[str, torch.Tensor] = {}
    for name in ("quant_conv", "post_quant_conv"):
        made.update(weights.take_pair(name, name))
    if stage.codebook_size is not None:
        name = "quantize.embedding.weight"
        made[name] = weights.take(name)
    last = len(stage.widths) - 1
    for level in range(last + 1):
        old, new = f"encoder.down.{level}", f"encoder.down_blocks.{level}"
        made.update(_level(weights, old, new, stage.num_resnets, stage.has_attention[level]))
        if level < last:
            sampler = f"{new}.downsamplers.0.conv"
            made.update(weights.take_pair(f"{old}.downsample.conv", sampler))
        old, new = f"decoder.up.{level}", f"decoder.up_blocks.{last - level}"
        made.update(_level(weights, old, new, stage.num_resnets + 1, stage.has_attention[level]))
        if level > 0:
            made.update(weights.take_pair(f"{old}.upsample.conv", f"{new}.upsamplers.0.conv"))
    for side in ("encoder", "decoder"):
        made.update(_ends(weights, side, stage.has_middle_attention))
    weights.refuse_rest()
    return made


def _ends(weights: Weights, side: str, has_attention: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """The convolutions at both ends of an encoder or decoder, and its middle."""
    for old, new in (("conv_in", "conv_in"), ("norm_out", "conv_norm_out"), ("conv_out",) * 2):
        yield from weights.take_pair(f"{side}.{old}", f"{side}.{new}")
    for number in (0, 1):
        old, new = f"{side}.mid.block_{number + 1}", f"{side}.mid_block.resnets.{number}"
        yield from _resnet(weights, old, new)
    if has_attention:
        yield from _attention(weights, f"{side}.mid.attn_1", f"{side}.mid_block.attentions.0")


def _level(
    weights: Weights, old: str, new: str, num_resnets: int, has_attention: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    for number in range(num_resnets):
        yield from _resnet(weights, f"{old}.block.{number}", f"{new}.resnets.{number}")
        if has_attention:
            yield from _attention(weights, f"{old}.attn.{number}", f"{new}.attentions.{number}")


def _resnet(weights: Weights, old: str, new: str) -> Iterator[tuple[str, torch.Tensor]]:
    for before, after in RESNET:
        yield from weights.take_pair(f"{old}.{before}", f"{new}.{after}")
    if weights.has(f"{old}.nin_shortcut.weight"):
        yield from weights.take_pair(f"{old}.nin_shortcut", f"{new}.conv_shortcut")


def _attention(weights: Weights, old: str, new: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Attention over pixels: the original's 1x1 convolutions are linear layers in diffusers."""
    yield from weights.take_pair(f"{old}.norm", f"{new}.group_norm")
    for before, after in ATTENTION:
        for name, value in weights.take_pair(f"{old}.{before}", f"{new}.{after}"):
            yield name, value.flatten(1) if name.endswith("weight") else value

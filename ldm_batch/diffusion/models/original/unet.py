"""The original UNet (`openaimodel.UNetModel`) as one of diffusers': its numbers and its names.

Must not know what its outputs are for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ldm_batch.diffusion.models.original.settings import Section
from ldm_batch.diffusion.models.original.weights import Weights
from ldm_batch.errors import JobError

TARGET = "ldm.modules.diffusionmodules.openaimodel.UNetModel"
NUM_GROUPS = 32
ENDS = (
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
)
RESNET = (
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
)
SKIP = ("skip_connection", "conv_shortcut")


@dataclass(frozen=True)
class UNet:
    """The numbers of a UNet; those per level from the widest resolution down."""

    sample_size: int
    in_channels: int
    out_channels: int
    widths: tuple[int, ...]
    num_heads: tuple[int, ...]
    has_attention: tuple[bool, ...]
    """The middle block has attention in any case, with the heads of the last level."""
    num_resnets: int
    context_dim: int | None
    """Width of the tokens that it attends to; None: to itself only."""
    depth: int
    """Transformer blocks at each place."""
    has_scale_shift: bool
    resamples_in_resnets: bool


@dataclass(frozen=True)
class _Place:
    """A block by its name in both worlds."""

    kind: str
    old: str
    new: str
    num_heads: int = 0


def read_unet(section: Section) -> UNet:
    """Read the UNet's numbers from its section of the yaml.

    Raises:
        JobError: it is another network, or has a setting that diffusers' networks have not.
    """
    section.target(TARGET)
    params = section.section("params")
    section.refuse_others()
    params.must_be("conv_resample", True)
    params.must_be("dims", 2)
    params.must_be("use_fp16", False)
    params.must_be("use_new_attention_order", False)
    params.must_be("num_heads_upsample", -1)
    for name in ("num_classes", "n_embed"):
        params.must_be(name, None)
    params.ignore(["dropout", "use_checkpoint", "legacy"])
    multiples = params.integers("channel_mult")
    width = params.integer("model_channels")
    widths = tuple(width * multiple for multiple in multiples)
    down_sampling = set(params.integers("attention_resolutions", can_be_empty=True))
    is_transformer = params.flag("use_spatial_transformer", False)
    unet = UNet(
        sample_size=params.integer("image_size"),
        in_channels=params.integer("in_channels"),
        out_channels=params.integer("out_channels"),
        widths=widths,
        num_heads=_num_heads(params, widths),
        has_attention=tuple(2**level in down_sampling for level in range(len(widths))),
        num_resnets=params.integer("num_res_blocks", most=16),
        context_dim=params.integer("context_dim") if is_transformer else None,
        depth=params.integer("transformer_depth", 1, most=64),
        has_scale_shift=params.flag("use_scale_shift_norm", False),
        resamples_in_resnets=params.flag("resblock_updown", False),
    )
    params.refuse_others()
    if is_transformer and unet.resamples_in_resnets:
        raise JobError(f"{params.place}: diffusers has no UNet of tokens with resblock_updown")
    return unet


def _num_heads(params: Section, widths: tuple[int, ...]) -> tuple[int, ...]:
    """Heads per level: `num_heads` of any width, or as many as have `num_head_channels` each."""
    if params.has("num_head_channels"):
        params.ignore(["num_heads"])
        per_head = params.integer("num_head_channels")
        heads = tuple(width // per_head for width in widths)
    else:
        heads = (params.integer("num_heads"),) * len(widths)
    for width, num in zip(widths, heads, strict=True):
        if not num or width % num or width % NUM_GROUPS:
            raise JobError(f"{params.place}: {width} channels do not divide into {num} heads")
    return heads


def class_name(unet: UNet) -> str:
    """The class of diffusers that has this structure."""
    return "UNet2DModel" if unet.context_dim is None else "UNet2DConditionModel"


def make_config(unet: UNet) -> dict[str, Any]:
    """The arguments of diffusers' class."""
    num_levels = len(unet.widths)
    config: dict[str, Any] = {
        "sample_size": unet.sample_size,
        "in_channels": unet.in_channels,
        "out_channels": unet.out_channels,
        "layers_per_block": unet.num_resnets,
        "block_out_channels": unet.widths,
        "norm_num_groups": NUM_GROUPS,
        "norm_eps": 1e-5,
        "resnet_time_scale_shift": "scale_shift" if unet.has_scale_shift else "default",
    }
    if unet.context_dim is not None:
        kinds = ["CrossAttn" if has else "" for has in unet.has_attention]
        return config | {
            "down_block_types": tuple(f"{kind}DownBlock2D" for kind in kinds),
            "up_block_types": tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
            "cross_attention_dim": unet.context_dim,
            "attention_head_dim": unet.num_heads,  # diffusers' name for the number of heads
            "transformer_layers_per_block": unet.depth,
        }
    how = "resnet" if unet.resamples_in_resnets else "conv"
    down = "ResnetDownsampleBlock2D" if unet.resamples_in_resnets else "DownBlock2D"
    up = "ResnetUpsampleBlock2D" if unet.resamples_in_resnets else "UpBlock2D"
    return config | {
        "down_block_types": tuple(
            "AttnDownBlock2D" if unet.has_attention[level] else down for level in range(num_levels)
        ),
        "up_block_types": tuple(
            "AttnUpBlock2D" if unet.has_attention[level] else up
            for level in reversed(range(num_levels))
        ),
        "attention_head_dim": unet.widths[-1] // unet.num_heads[-1],
        "attn_norm_num_groups": NUM_GROUPS,
        "downsample_type": how,
        "upsample_type": how,
    }


def untold_heads(unet: UNet) -> list[int] | None:
    """Heads per level where UNet2DModel, whose heads all have one width, cannot be told them."""
    if unet.context_dim is not None:
        return None
    per_head = unet.widths[-1] // unet.num_heads[-1]
    levels = zip(unet.widths, unet.num_heads, unet.has_attention, strict=True)
    if all(width == num * per_head for width, num, has in levels if has):
        return None
    return list(unet.num_heads)


def rename(weights: Weights, unet: UNet) -> dict[str, torch.Tensor]:
    """Return the weights by diffusers' names.

    Raises:
        JobError: one is missing, or has no place.
    """
    made: dict[str, torch.Tensor] = {}
    for old, new in ENDS:
        made.update(weights.take_pair(old, new))
    for place in _places(unet):
        if place.kind == "conv":
            made.update(weights.take_pair(place.old, place.new))
        elif place.kind == "resnet":
            for old, new in RESNET:
                made.update(weights.take_pair(f"{place.old}.{old}", f"{place.new}.{new}"))
            if weights.has(f"{place.old}.{SKIP[0]}.weight"):
                made.update(weights.take_pair(f"{place.old}.{SKIP[0]}", f"{place.new}.{SKIP[1]}"))
        elif unet.context_dim is not None:
            made.update(weights.take_below(place.old, place.new))
        else:
            made.update(_attention(weights, place))
    weights.refuse_rest()
    return made


def _attention(weights: Weights, place: _Place) -> Iterator[tuple[str, torch.Tensor]]:
    """Part an AttentionBlock's `qkv`, which holds q, k and v of one head after the other's."""
    yield from weights.take_pair(f"{place.old}.norm", f"{place.new}.group_norm")
    for kind in ("weight", "bias"):
        joined = weights.take(f"{place.old}.qkv.{kind}")
        width = joined.shape[0] // 3
        if joined.shape[0] != 3 * width or width % place.num_heads:
            raise JobError(f"{place.old}.qkv.{kind}: {tuple(joined.shape)} is not of q, k and v")
        by_head = joined.reshape(place.num_heads, 3, width // place.num_heads, -1)
        for index, name in enumerate(("to_q", "to_k", "to_v")):
            part = by_head[:, index].reshape(width, -1)
            yield f"{place.new}.{name}.{kind}", part if kind == "weight" else part[:, 0]
        out = weights.take(f"{place.old}.proj_out.{kind}")
        yield f"{place.new}.to_out.0.{kind}", out.flatten(1) if kind == "weight" else out


def _places(unet: UNet) -> Iterator[_Place]:
    """The blocks, in the order of the original's lists."""
    last = len(unet.widths) - 1
    yield from _down_places(unet, last)
    yield _Place("resnet", "middle_block.0", "mid_block.resnets.0")
    yield _Place(
        "attention", "middle_block.1", "mid_block.attentions.0", num_heads=unet.num_heads[last]
    )
    yield _Place("resnet", "middle_block.2", "mid_block.resnets.1")
    yield from _up_places(unet, last)


def _down_places(unet: UNet, last: int) -> Iterator[_Place]:
    index = 1
    for level in range(last + 1):
        new = f"down_blocks.{level}"
        for number in range(unet.num_resnets):
            yield from _step(unet, level, f"input_blocks.{index}", new, number)
            index += 1
        if level < last:
            old = f"input_blocks.{index}.0"
            if unet.resamples_in_resnets:
                yield _Place("resnet", old, f"{new}.downsamplers.0")
            else:
                yield _Place("conv", f"{old}.op", f"{new}.downsamplers.0.conv")
            index += 1


def _up_places(unet: UNet, last: int) -> Iterator[_Place]:
    index = 0
    for level in reversed(range(last + 1)):
        new = f"up_blocks.{last - level}"
        for number in range(unet.num_resnets + 1):
            yield from _step(unet, level, f"output_blocks.{index}", new, number)
            if level and number == unet.num_resnets:
                old = f"output_blocks.{index}.{2 if unet.has_attention[level] else 1}"
                if unet.resamples_in_resnets:
                    yield _Place("resnet", old, f"{new}.upsamplers.0")
                else:
                    yield _Place("conv", f"{old}.conv", f"{new}.upsamplers.0.conv")
            index += 1


def _step(unet: UNet, level: int, old: str, new: str, number: int) -> Iterator[_Place]:
    yield _Place("resnet", f"{old}.0", f"{new}.resnets.{number}")
    if unet.has_attention[level]:
        attention = f"{new}.attentions.{number}"
        yield _Place("attention", f"{old}.1", attention, num_heads=unet.num_heads[level])

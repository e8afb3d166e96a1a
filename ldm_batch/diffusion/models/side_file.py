"""`ldm_batch.json`: what an imported model is that diffusers' own files cannot say.

Only the importer writes it. Its keys are a closed list: `converter`, the number of the rules by
which it was made; `num_heads`, heads per level of a UNet2DModel, whose configuration knows only
their width; `class_embedder` and `rescaler`, conditions that diffusers has no class for, each with
its weights in a folder of its own. Imports no torch.

A model that diffusers has no pipeline for has a `_class_name` of ours in `model_index.json`:

- `LDMClassToImagePipeline`: the UNet attends to one token, the class's row of `class_embedder`;
- `LDMLayoutToImagePipeline`: it attends to `bert`'s embeddings of tokens that tell boxes;
- `LDMInpaintPipeline`: beside the latents stand those of the masked image, whose hidden pixels are
  -1, and the mask at their size;
- `LDMSemanticSynthesisPipeline`: beside them stands the segmentation, one channel a class, as
  `rescaler` makes it smaller.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm_batch.errors import JobError

SIDE_FILE = "ldm_batch.json"
CONVERTER = 1
"""Number of the rules by which weights of another form become ours; part of what identifies images
of a model that came in so."""
MAX_BYTES = 64 * 1024
"""What we write has less than 1 kB; a hostile one must not fill memory."""
CONDITION_WEIGHTS = "model.safetensors"
CLASS_TO_IMAGE = "LDMClassToImagePipeline"
LAYOUT_TO_IMAGE = "LDMLayoutToImagePipeline"
INPAINT = "LDMInpaintPipeline"
SEMANTIC_SYNTHESIS = "LDMSemanticSynthesisPipeline"
HUB_PATTERNS = [SIDE_FILE, f"class_embedder/{CONDITION_WEIGHTS}", f"rescaler/{CONDITION_WEIGHTS}"]


@dataclass(frozen=True)
class ClassEmbedder:
    """A matrix of one row per class."""

    num_classes: int
    dim: int


@dataclass(frozen=True)
class Rescaler:
    """Bilinear halvings, then a 1x1 convolution."""

    num_halvings: int
    in_channels: int
    out_channels: int
    has_bias: bool = False


@dataclass(frozen=True)
class SideFile:
    """The content of a model's side file; of most models there is nothing to say."""

    num_heads: Mapping[str, list[int]] = field(default_factory=dict)
    class_embedder: ClassEmbedder | None = None
    rescaler: Rescaler | None = None


def to_json(side: SideFile) -> str:
    """The text of a side file; only what there is to say stands in it."""
    values: dict[str, Any] = {"converter": CONVERTER}
    if side.num_heads:
        values["num_heads"] = dict(side.num_heads)
    if side.class_embedder is not None:
        values["class_embedder"] = vars(side.class_embedder)
    if side.rescaler is not None:
        values["rescaler"] = vars(side.rescaler)
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def read_side_file(folder: Path) -> SideFile:
    """Read a model's side file; of a model without one, nothing is said.

    Raises:
        JobError: it is damaged, or of a newer converter.
    """
    path = folder / SIDE_FILE
    if not path.is_file():
        return SideFile()
    try:
        if path.stat().st_size > MAX_BYTES:
            raise JobError(f"model file {path} is larger than {MAX_BYTES} bytes")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise JobError(f"model file {path} cannot be read: {error}") from error
    if not isinstance(values, dict) or values.pop("converter", None) != CONVERTER:
        raise JobError(f"model file {path}: converter must be {CONVERTER}; import the model again")
    if unknown := sorted(values.keys() - {"num_heads", "class_embedder", "rescaler"}):
        raise JobError(f"model file {path}: {unknown[0]} is none of its keys")
    try:
        return SideFile(
            num_heads=_checked_heads(values.get("num_heads", {})),
            class_embedder=_checked(ClassEmbedder, values.get("class_embedder")),
            rescaler=_checked(Rescaler, values.get("rescaler")),
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise JobError(f"model file {path} is damaged: {error}") from error


def side_files(folder: Path) -> list[str]:
    """The side file and what it names, where there is one: files that loading reads."""
    if not (folder / SIDE_FILE).is_file():
        return []
    side = read_side_file(folder)
    parts = {"class_embedder": side.class_embedder, "rescaler": side.rescaler}
    return [SIDE_FILE, *(f"{name}/{CONDITION_WEIGHTS}" for name, part in parts.items() if part)]


def set_num_heads(folder: Path, name: str, module: Any) -> None:
    """Give a UNet, just built, the heads that its model's side file tells; mostly none.

    Raises:
        JobError: they do not fit the network.
    """
    heads = read_side_file(folder).num_heads.get(name)
    if heads is None:
        return
    downs, ups = list(module.down_blocks), list(module.up_blocks)
    if not len(heads) == len(downs) == len(ups):
        raise JobError(f"{folder / SIDE_FILE}: num_heads.{name} has {len(heads)} levels")
    blocks = [*zip(downs, heads, strict=True), *zip(ups, reversed(heads), strict=True)]
    for block, num in [*blocks, (module.mid_block, heads[-1])]:
        for attention in getattr(block, "attentions", None) or []:
            width = attention.to_q.out_features
            if width % num:
                raise JobError(f"{folder / SIDE_FILE}: {width} channels have no {num} heads")
            attention.heads = attention.sliceable_head_dim = num
            attention.scale = (width // num) ** -0.5


def _checked_heads(values: Any) -> dict[str, list[int]]:
    for name, heads in values.items():
        if name != "unet" or not isinstance(heads, list) or not all(map(_is_count, heads)):
            raise ValueError(f"num_heads.{name}")
    return dict(values)


def _checked(kind: Any, values: Any) -> Any:
    if values is None:
        return None
    part = kind(**values)
    for name, value in vars(part).items():
        is_right = isinstance(value, bool) if name == "has_bias" else _is_count(value)
        if not is_right:
            raise ValueError(f"{name} is {value!r}")
    return part


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 1_000_000

"""Fuse LoRAs into the weights of one of diffusers' own pipelines, so that every weight counts.

diffusers converts and places the weights of a file, and leaves out what it does not know, at most
with a warning: that each of them arrived, and nothing else, is proved here. Must not know where
files come from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from ldm_batch.diffusion.family.family import Family
from ldm_batch.diffusion.load import quiet_libraries
from ldm_batch.diffusion.models.loras import LoraFile
from ldm_batch.errors import JobError

NAME = "ldm_batch"
"""Of the adapter while it is there."""
LoraWeights = dict[str, torch.Tensor]


def read_loras(loras: Sequence[LoraFile]) -> list[LoraWeights]:
    """Read the weights of LoRAs.

    Raises:
        JobError: a file cannot be read, or a weight is not finite; names both.
    """
    return [_read(lora) for lora in loras]


def fuse_loras(
    pipe: Any, family: Family, loras: Sequence[LoraFile], weights: Sequence[LoraWeights]
) -> None:
    """Add LoRAs to the weights of a pipeline, one after another; its modules stay plain.

    On a CPU, whatever computes later, so that the same weights come of it everywhere.

    Args:
        weights: of each, see `read_loras`.

    Raises:
        JobError: one is for another model, or not every weight of it found its place; names them.
    """
    for lora, given in zip(loras, weights, strict=True):
        before = _facts(pipe, family)
        with quiet_libraries(), torch.random.fork_rng(devices=[]):
            try:
                unused = _place(pipe, family, given, lora.adapter)
                if not unused:
                    pipe.fuse_lora([*family.loras], lora_scale=lora.scale, safe_fusing=True)
                    pipe.unload_lora_weights()
            except Exception as error:  # of many kinds, from two libraries
                told = " ".join(str(error).split())[:500]
                raise JobError(
                    f"{lora.named} does not fit a {type(pipe).__name__} with this model's "
                    f"weights: {told}"
                ) from error
        if unused:
            raise JobError(
                f"{lora.named}: {len(unused)} of {len(given)} weights have no place in this "
                f"model's {' or '.join(family.loras)}: {', '.join(unused[:3])}; was it made for "
                "another model?"
            )
        if _facts(pipe, family) != before:
            raise JobError(f"{lora.named} changes the shape of the model; plain LoRA is taken only")
        for part in family.loras:
            getattr(pipe, part).eval().requires_grad_(False)


def _read(lora: LoraFile) -> LoraWeights:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        read = load_file(lora.path)
    except (SafetensorError, OSError) as error:
        raise JobError(f"{lora.named} is damaged, or no safetensors: {error}") from error
    weights = {}
    for name in sorted(read):
        one = read.pop(name)
        weights[name] = one if one.is_floating_point() else one.to(torch.float32)
        if not bool(torch.isfinite(weights[name]).all()):
            raise JobError(f"{lora.named}: weight {name} is not finite")
    return weights


def _place(
    pipe: Any, family: Family, given: LoraWeights, adapter: Mapping[str, Any] | None
) -> list[str]:
    """Let diffusers put the weights of one LoRA beside the pipeline's; names of those that found no
    place, and of places that found no weight."""
    convert, lost, converted = pipe.lora_state_dict, list[str](), LoraWeights()

    def watched(state: LoraWeights, **options: Any) -> tuple[Any, ...]:
        made, *others, _ = convert(state, **options)
        reached = _origins(made.values())
        lost.extend(_lost(given, {name for name, one in given.items() if id(one) in reached}))
        converted.update({name: one.detach() for name, one in made.items()})
        alphas = [{k: float(v) for k, v in (one or {}).items()} for one in others]
        return dict(converted), *alphas, None if adapter is None else dict(adapter)

    pipe.lora_state_dict = watched
    try:
        for one in given.values():
            one.requires_grad_()
        copies = {name: one.to(torch.float32, copy=True) for name, one in given.items()}
        pipe.load_lora_weights(copies, adapter_name=NAME)
    finally:
        del pipe.lora_state_dict
    placed = {
        f"{part}.{name}": value.detach()
        for part in family.loras
        for name, value in getattr(pipe, part).named_parameters()
        if f".{NAME}." in name
    }
    return [*lost, *_unmatched(converted, placed)]


def _origins(made: Iterable[torch.Tensor]) -> set[int]:
    """Ids of the tensors that others were computed from, as torch keeps it for gradients."""
    open_ends = [one.grad_fn for one in made if one.grad_fn is not None]
    seen, found = {*open_ends}, set[int]()
    while open_ends:
        node: Any = open_ends.pop()
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        for before, _ in node.next_functions:
            if before is not None and before not in seen:
                seen.add(before)
                open_ends.append(before)
    return found


def _lost(given: LoraWeights, reached: set[str]) -> list[str]:
    """Weights that the conversion left out. A number beside weights that it took is a factor of
    theirs and counts with them; zeros change nothing."""
    taken = {name.rsplit(".", count)[0] for name in reached for count in (1, 2, 3)}
    return [
        name
        for name, one in given.items()
        if name not in reached
        and bool(one.any())
        and not (one.numel() == 1 and name.rpartition(".")[0] in taken)
    ]


def _unmatched(converted: LoraWeights, placed: LoraWeights) -> list[str]:
    """Names of converted weights that are not among those that were placed, by shape and value,
    and of placed ones that none of the converted became."""
    unused, foreign = dict.fromkeys(converted), list[str]()
    known: dict[torch.dtype, dict[str, list[str]]] = {}
    for place, value in placed.items():
        if value.dtype not in known:
            known[value.dtype] = {}
            for name, one in converted.items():
                known[value.dtype].setdefault(_mark(one.to(value.dtype)), []).append(name)
        same = known[value.dtype].get(_mark(value), [])
        fitting = [name for name in same if name in unused]
        if fitting:
            del unused[fitting[0]]
        else:
            foreign.append(place.replace(f".{NAME}", ""))
    return [*unused, *foreign]


def _mark(value: torch.Tensor) -> str:
    """What identifies a weight: its shape and its numbers."""
    raw = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{tuple(value.shape)} {hashlib.sha256(raw).hexdigest()}"


def _facts(pipe: Any, family: Family) -> dict[str, Any]:
    """Names, shapes and dtypes of all weights that a LoRA may change."""
    return {
        f"{part}.{name}": (value.shape, value.dtype)
        for part in family.loras
        for name, value in getattr(pipe, part).state_dict().items()
    }

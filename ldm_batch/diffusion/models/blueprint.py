"""A network of diffusers without memory: which weights it has, of which shapes.

Proves that converted weights are whole before they are written. Must not know where they came from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ldm_batch.diffusion.models.files import read_json
from ldm_batch.diffusion.models.headers import Header
from ldm_batch.errors import JobError, one_line

MAX_NAMED = 3
MAX_GROWTH, SLACK = 2, 2**24
"""What a network may have beside its stored weights: tables that it computes, one tied twice."""
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def complete(
    class_name: str, arguments: Mapping[str, Any], weights: Mapping[str, torch.Tensor], place: str
) -> dict[str, Any]:
    """Return the whole configuration of a network, whose weights are exactly these.

    Args:
        class_name: a model class of diffusers, or LDMBertModel.
        place: what a message says they are of.

    Raises:
        JobError: the arguments make no network, or a weight is missing, left over, of another
            shape, of another dtype than weights have or not finite.
    """
    try:
        with torch.device("meta"):
            module, config = _build(class_name, arguments)
    except (TypeError, ValueError, RuntimeError, AssertionError, ZeroDivisionError) as error:
        raise JobError(f"{place}: its numbers make no {class_name}: {error}") from error
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    if missing := sorted(wanted.keys() - weights.keys()):
        raise JobError(f"{place}: {len(missing)} weights are missing: {_some(missing)}")
    if left := sorted(weights.keys() - wanted.keys()):
        raise JobError(f"{place}: {len(left)} weights have no place: {_some(left)}")
    for name, value in weights.items():
        if tuple(value.shape) != wanted[name]:
            shapes = f"{tuple(value.shape)}, the yaml's numbers make it {wanted[name]}"
            raise JobError(f"{place}: {name} is {shapes}")
        check_values(value, f"{place}: {name}")
    return config


def refuse_larger(module_class: Any, stored: Header, folder: Path) -> None:
    """Refuse a component whose configuration makes a network much larger than its weights, before
    any memory is taken.

    Args:
        stored: what its files hold.
        folder: the component's own.

    Raises:
        JobError: names both sizes; or the configuration makes no network.
    """
    settings = read_json(folder / "config.json")
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            if hasattr(module_class, "config_class"):
                module = module_class(module_class.config_class.from_dict(settings))
            else:
                module = module_class.from_config(settings)
    except Exception as error:  # of many kinds: any number may stand anywhere
        told = f"{type(error).__name__}: {one_line(error)}"
        raise JobError(
            f"{folder / 'config.json'}: makes no {module_class.__name__}: {told}"
        ) from error
    wanted = sum(one.numel() for one in (*module.parameters(), *module.buffers()))
    found = sum(one.size for one in stored.values())
    if wanted > MAX_GROWTH * found + SLACK:
        raise JobError(
            f"{folder / 'config.json'}: makes a {module_class.__name__} of {wanted} numbers, but "
            f"its weights are {found}"
        )


def check_values(weight: torch.Tensor, place: str) -> None:
    """Raise JobError where a weight holds something else than finite floating-point numbers."""
    if weight.dtype not in DTYPES:
        raise JobError(f"{place} is of {weight.dtype}, which is no dtype of weights")
    if not bool(torch.isfinite(weight).all()):
        raise JobError(f"{place} is not finite")


def _build(class_name: str, arguments: Mapping[str, Any]) -> tuple[torch.nn.Module, dict[str, Any]]:
    if class_name == "LDMBertModel":
        from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
            LDMBertConfig,
            LDMBertModel,
        )

        module = LDMBertModel(LDMBertConfig(**arguments))
        names = {"architectures": ["LDMBertModel"], "model_type": "ldmbert", "pad_token_id": 0}
        return module, {**names, **arguments}
    if class_name.startswith("CLIP"):
        import transformers

        config = transformers.CLIPTextConfig.from_dict(dict(arguments))
        return getattr(transformers, class_name)(config), dict(arguments)
    import diffusers

    module = getattr(diffusers, class_name).from_config(dict(arguments))
    return module, json.loads(module.to_json_string())


def _some(names: list[str]) -> str:
    return ", ".join(names[:MAX_NAMED]) + (", ..." if len(names) > MAX_NAMED else "")

"""Load the parts of one of diffusers' own pipelines, each of a class of the closed table and whole.

Weights come from safetensors alone. Must not know how parts become a pipeline (load.py), nor check
what is told without weights (parts.py).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ldm_batch.config import ModelConfig
from ldm_batch.diffusion.family.files import read_family
from ldm_batch.diffusion.family.table import (
    CLIP_TOKENIZERS,
    CLIP_TOKENS,
    LOW_RES_SCHEDULER,
    SUCCESSORS,
    TEXT_ENCODERS,
    TOKENIZERS,
)
from ldm_batch.diffusion.family.template import freeze_template
from ldm_batch.diffusion.load import TORCH_DTYPES, check_whole, loading_options, quiet_libraries
from ldm_batch.diffusion.models.blueprint import refuse_larger
from ldm_batch.diffusion.models.conversion import read_conversion
from ldm_batch.diffusion.models.files import find_weights, read_index, read_json
from ldm_batch.diffusion.models.headers import read_headers
from ldm_batch.diffusion.models.untrusted import told_as_not_loading
from ldm_batch.diffusion.switches import decode_dtype
from ldm_batch.errors import JobError


def load_part(folder: Path, name: str, model: ModelConfig, device: torch.device) -> Any:
    """Load one part of the pipeline in a folder: a tokenizer, a scheduler, a module in its dtype.

    Raises:
        JobError: it does not load, is not whole or not finite; names the part.
    """
    class_name = read_index(folder)[name]
    told = f"{folder}: {name} does not load as a {class_name}"
    with told_as_not_loading(told), quiet_libraries():
        if name in TOKENIZERS:
            return _load_tokenizer(folder, name, class_name)
        if name == LOW_RES_SCHEDULER:
            path = folder / name / "scheduler_config.json"
            return find_class(class_name).from_config(read_json(path))
        dtype = _dtype(name, model)
        module = _load_module(folder, name, class_name, dtype, model.variant)
        module = module.to(device=device)
        if name not in TEXT_ENCODERS:  # which keep what they must in float32
            module = module.to(dtype=dtype)
    return module.eval().requires_grad_(False)


def find_class(name: str) -> Any:
    """A class of the closed table, from whichever library has it.

    Raises:
        JobError: neither has.
    """
    name = SUCCESSORS.get(name, name)
    for library in ("diffusers", "transformers"):
        with suppress(AttributeError):
            return getattr(importlib.import_module(library), name)
    raise JobError(f"model: this installation has no {name}; install a newer diffusers")


def _load_tokenizer(folder: Path, name: str, class_name: str) -> Any:
    """Load a tokenizer; the limit of CLIP's is not always told, and pipelines pad to it."""
    tokenizer = find_class(class_name).from_pretrained(
        folder / name, local_files_only=True, trust_remote_code=False
    )
    if class_name in CLIP_TOKENIZERS:
        config = read_json(folder / name.replace("tokenizer", "text_encoder") / "config.json")
        limit = int(config.get("max_position_embeddings", CLIP_TOKENS))
        tokenizer.model_max_length = min(tokenizer.model_max_length, limit)
    if read_family(folder).template == "chat":
        freeze_template(tokenizer, folder / name)
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
    refuse_larger(find_class(class_name), read_headers(folder, weights), folder / name)
    options = loading_options(weights)
    is_text = name in TEXT_ENCODERS
    if is_text:
        options |= {"dtype": dtype, "trust_remote_code": False}
    else:  # the other way needs the package accelerate
        options |= {"torch_dtype": dtype, "low_cpu_mem_usage": False}
    with torch.random.fork_rng(devices=[]):
        module, info = find_class(class_name).from_pretrained(folder / name, **options)
    kinds: Sequence[str] = ("missing_keys", "mismatched_keys")
    check_whole(module, info, folder / name, kinds if is_text else (*kinds, "unexpected_keys"))
    return module  # type: ignore[no-any-return]

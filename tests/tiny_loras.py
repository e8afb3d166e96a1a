"""Tiny LoRAs of the tiny pipelines, random weights of a seed, in the forms that people publish."""

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils import logging as diffusers_logging
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from ldm_batch.diffusion.family.table import FAMILIES
from ldm_batch.diffusion.models.loras import USUAL_NAME

TARGETS = {
    "unet": ["to_q", "to_v", "proj_in", "conv1"],
    "transformer": ["to_q", "to_k", "to_out.0"],
    "text_encoder": ["q_proj", "out_proj", "fc1"],
    "text_encoder_2": ["v_proj", "out_proj"],
}
"""Part -> the ends of the names of modules that are changed."""
RANK, ALPHA = 3, 6
KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}


def make_lora(
    kind: str, model: Path, folder: Path, seed: int = 1, *, says_alpha: bool = True
) -> Path:
    """Write a LoRA for the tiny pipeline in `model`, as diffusers' training scripts do.

    Args:
        says_alpha: keep peft's settings in the header, as newer versions do; else it is the rank.
    """
    diffusers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    pipeline = getattr(diffusers, kind)
    pipe = pipeline.from_pretrained(model, low_cpu_mem_usage=False)
    layers: dict[str, Any] = {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for part in FAMILIES[kind].loras:
            module = getattr(pipe, part)
            module.add_adapter(
                LoraConfig(
                    r=RANK,
                    lora_alpha=ALPHA,
                    target_modules=TARGETS[part],
                    init_lora_weights=False,
                ),
                "default",
            )
            weights = get_peft_model_state_dict(module, adapter_name="default")
            layers[f"{part}_lora_layers"] = {name: 3 * one for name, one in weights.items()}
            if says_alpha:
                settings = module.peft_config["default"].to_dict()
                layers[f"{part}_lora_adapter_metadata"] = settings
    pipeline.save_lora_weights(folder, **layers)
    return folder / USUAL_NAME


def as_kohya(lora: Path, path: Path, text_encoder: str = "lora_te1") -> Path:
    """The same LoRA as kohya's scripts write it, with an alpha for each module."""
    names = KOHYA | {"text_encoder": text_encoder}
    weights = {}
    for name, value in load_file(lora).items():
        part, _, rest = name.partition(".")
        module, ab, _ = rest.rsplit(".", 2)
        stem = f"{names[part]}_{module.replace('.', '_')}"
        if part != "unet" and "text_model" not in module:
            stem = f"{names[part]}_text_model_{module.replace('.', '_')}"
        side = {"lora_A": "lora_down", "lora_B": "lora_up"}[ab]
        weights[f"{stem}.{side}.weight"] = value
        weights[f"{stem}.alpha"] = torch.tensor(float(ALPHA))
    save_file(weights, path)
    return path

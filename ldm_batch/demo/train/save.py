"""Writing of trained pipelines: UNets in half precision, and no trace of where they came from."""

import json
from pathlib import Path

import torch
from diffusers import DiffusionPipeline


def save_pipeline(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Save a pipeline as safetensors; plain diffusers loads it in float32 again.

    Only the UNet is stored as float16: it is most of the size, and no checked figure changes.
    """
    pipeline.save_pretrained(folder)
    pipeline.unet.to(torch.float16).save_pretrained(folder / "unet")
    pipeline.unet.to(torch.float32)
    for file in folder.rglob("*.json"):
        _drop_origin(file)
    for file in folder.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)


def _drop_origin(file: Path) -> None:
    """Take out the folder on the training machine that diffusers and transformers note."""
    settings = json.loads(file.read_text())
    if {"_name_or_path", "name_or_path"} & settings.keys():
        kept = {k: v for k, v in settings.items() if k not in ("_name_or_path", "name_or_path")}
        file.write_text(json.dumps(kept, indent=2) + "\n")

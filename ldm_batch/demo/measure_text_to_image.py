"""How good the text-to-image model is: checked pictures of held-out captions, and its speed."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from diffusers import LDMTextToImagePipeline
from numpy.typing import NDArray

from ldm_batch.demo.checker import Verdict, check
from ldm_batch.demo.train.autoencoder import render_scenes
from ldm_batch.demo.train.metrics import psnr, share_right
from ldm_batch.demo.world import SceneSpec, caption, draw_specs

BATCH_SIZE = 16


@dataclass(frozen=True)
class PictureCall:
    """How pictures are asked for."""

    num_inference_steps: int = 20
    guidance_scale: float = 2.0


def load_text_to_image(folder: str) -> LDMTextToImagePipeline:
    """Load the plain diffusers pipeline from a folder, without a progress bar."""
    pipeline = LDMTextToImagePipeline.from_pretrained(folder, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def held_out_scenes(num: int, num_objects: int) -> list[SceneSpec]:
    """Draw the scenes that the model is measured on, none of them in its training captions."""
    return draw_specs(1000 + num_objects, num, num_objects=num_objects, split="test")


def paint(
    pipeline: LDMTextToImagePipeline,
    specs: Sequence[SceneSpec],
    call: PictureCall,
    *,
    seed: int = 0,
) -> NDArray[np.float32]:
    """Generate one picture per scene, (N, 64, 64, 3) in 0..255; picture i has seed + i's noise."""
    images = []
    for start in range(0, len(specs), BATCH_SIZE):
        batch = specs[start : start + BATCH_SIZE]
        places = range(start, start + len(batch))
        images.append(
            pipeline(
                [caption(spec) for spec in batch],
                num_inference_steps=call.num_inference_steps,
                guidance_scale=call.guidance_scale,
                generator=[torch.Generator().manual_seed(seed + place) for place in places],
                output_type="np",
            ).images
        )
    return np.concatenate(images) * np.float32(255)


def measure_pictures(
    pipeline: LDMTextToImagePipeline, num: int, num_objects: int, call: PictureCall
) -> dict[str, float]:
    """Share of pictures that are right, in all and per attribute."""
    specs = held_out_scenes(num, num_objects)
    images = paint(pipeline, specs, call)
    return shares([check(image, spec) for image, spec in zip(images, specs, strict=True)])


def shares(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Share of right pictures, in all and per attribute."""
    names = ("is_right", *(field.name for field in fields(Verdict)))
    return {name: sum(getattr(v, name) for v in verdicts) / len(verdicts) for name in names}


@torch.no_grad()
def measure_autoencoder(pipeline: LDMTextToImagePipeline, num: int = 512) -> dict[str, float]:
    """Checker and PSNR on reconstructions of held-out renders."""
    specs = draw_specs(1000, num, split="test")
    images = render_scenes(specs, seed=1000)
    parts = [
        pipeline.vqvae.decode(pipeline.vqvae.encode(part).latent_dist.mode()).sample
        for part in torch.split(images, 64)
    ]
    decoded = torch.cat(parts)
    return {"right": share_right(decoded, specs), "psnr_db": psnr(decoded, images)}


def measure_time(pipeline: LDMTextToImagePipeline, call: PictureCall) -> dict[str, float]:
    """CPU-seconds per picture in one thread, batch 16, decoding included; the best of three."""
    specs = held_out_scenes(BATCH_SIZE, 2)
    torch.set_num_threads(1)
    seconds = []
    for _ in range(3):
        started = time.process_time()
        paint(pipeline, specs, call)
        seconds.append((time.process_time() - started) / BATCH_SIZE)
    return {"cpu_s_per_image": min(seconds)}

"""The speed-for-quality guide, measured: checker accuracy of every scheduler at every step count.

`python -m ldm_batch.demo.schedulers` prints a Markdown table; the sampler is the product's own
(`ldm_batch.diffusion.sampler`), because the pipeline's loop is wrong for some of these schedulers.
"""

import argparse
import csv
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import torch
from diffusers import LDMTextToImagePipeline
from torch import Tensor

from ldm_batch.demo.evaluate import MODELS
from ldm_batch.demo.measure_text_to_image import held_out_scenes, load_text_to_image
from ldm_batch.demo.train.metrics import share_right
from ldm_batch.demo.world import SceneSpec, caption
from ldm_batch.diffusion.sampler import Denoiser, Guidance, guide, sample
from ldm_batch.diffusion.schedulers import NAMES, make_scheduler

STEPS = (2, 5, 10, 15, 20, 50)
BATCH_SIZE = 16


@dataclass(frozen=True)
class Accuracy:
    """What one scheduler reached in one number of steps."""

    scheduler: str
    num_inference_steps: int
    right: float
    cpu_s_per_image: float


def measure_scheduler(
    pipeline: LDMTextToImagePipeline,
    name: str,
    num_inference_steps: int,
    specs: Sequence[SceneSpec],
    guidance_scale: float,
) -> Accuracy:
    """Generate one picture per scene, the noise the same for every scheduler, and check them."""
    scheduler = make_scheduler(pipeline.scheduler.config, name)
    started = time.process_time()
    images = []
    for start in range(0, len(specs), BATCH_SIZE):
        batch = specs[start : start + BATCH_SIZE]
        generators = [torch.Generator().manual_seed(start + place) for place in range(len(batch))]
        latents = sample(
            _make_denoiser(pipeline, batch, guidance_scale),
            torch.cat([torch.randn(1, 8, 8, 8, generator=generator) for generator in generators]),
            scheduler,
            num_inference_steps=num_inference_steps,
            generators=generators,
        )
        images.append(pipeline.vqvae.decode(latents / pipeline.vqvae.config.scaling_factor).sample)
    cpu_s = (time.process_time() - started) / len(specs)
    return Accuracy(name, num_inference_steps, share_right(torch.cat(images), list(specs)), cpu_s)


def _make_denoiser(
    pipeline: LDMTextToImagePipeline, specs: Sequence[SceneSpec], guidance_scale: float
) -> Denoiser:
    with_text = _embed(pipeline, [caption(spec) for spec in specs])
    both = torch.cat([_embed(pipeline, [""] * len(specs)), with_text])

    def denoise(embeddings: Tensor) -> Denoiser:
        return lambda x, t: pipeline.unet(x, t, encoder_hidden_states=embeddings).sample

    if guidance_scale == 1:
        return denoise(with_text)
    return guide(denoise(both), denoise(with_text), Guidance(guidance_scale))


def _embed(pipeline: LDMTextToImagePipeline, prompts: list[str]) -> Tensor:
    tokens = pipeline.tokenizer(
        prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    embeddings: Tensor = pipeline.bert(tokens.input_ids)[0]
    return embeddings


def markdown_table(accuracies: Sequence[Accuracy]) -> str:
    """Lay the shares of right pictures out, a row per scheduler and a column per step count."""
    steps = sorted({accuracy.num_inference_steps for accuracy in accuracies})
    rows: dict[str, dict[int, Accuracy]] = {}
    for accuracy in accuracies:
        rows.setdefault(accuracy.scheduler, {})[accuracy.num_inference_steps] = accuracy
    lines = [
        "| scheduler | " + " | ".join(map(str, steps)) + " | CPU-s per image and step |",
        "| --- |" + " --- |" * (len(steps) + 1),
    ]
    for name, by_steps in rows.items():
        cells = [f"{by_steps[n].right:.0%}" if n in by_steps else "" for n in steps]
        last = by_steps[max(by_steps)]
        per_step = last.cpu_s_per_image / last.num_inference_steps
        lines.append(f"| {name} | {' | '.join(cells)} | {per_step:.4f} |")
    return "\n".join(lines)


@torch.inference_mode()
def main() -> None:
    """Read the command line, measure in one thread, print the table and write the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m ldm_batch.demo.schedulers", description=__doc__
    )
    parser.add_argument("--models", type=Path, default=MODELS, help="folder of the pipelines")
    parser.add_argument("--num-images", type=int, default=32, help="half of each kind of scene")
    parser.add_argument("--guidance", type=float, default=2.0, help="guidance scale")
    parser.add_argument("--steps", type=int, nargs="*", default=list(STEPS))
    parser.add_argument("--schedulers", nargs="*", default=list(NAMES))
    parser.add_argument("--csv", type=Path, help="where the figures go")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = load_text_to_image(str(arguments.models / "text_to_image"))
    half = arguments.num_images // 2
    specs = held_out_scenes(half, 1) + held_out_scenes(half, 2)
    accuracies = []
    for name in arguments.schedulers:
        for steps in arguments.steps:
            accuracy = measure_scheduler(pipeline, name, steps, specs, arguments.guidance)
            print(f"{name} {steps}: {accuracy.right:.3f}", flush=True)
            accuracies.append(accuracy)
    print(markdown_table(accuracies))
    if arguments.csv:
        with arguments.csv.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(field.name for field in fields(Accuracy))
            rows.writerows(astuple(accuracy) for accuracy in accuracies)


if __name__ == "__main__":
    main()

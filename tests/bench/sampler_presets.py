"""Presets against plain diffusers: `python tests/bench/sampler_presets.py --num-prompts 256`.

One interleaved run on the demo model: every batch of prompts goes through diffusers' own pipeline
at 50 DDIM steps and through every preset, the same seeds for all, so that a busy machine slows all
alike. Prints CPU seconds per image (encoding of images and checking excluded), speed against
diffusers, distance to diffusers' images and the share that the demo world's checker finds right.
"""

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from diffusers import LDMTextToImagePipeline

from ldm_batch.commands.tradeoff.measure import Generate, run_interleaved
from ldm_batch.config import ModelConfig, SchedulerConfig
from ldm_batch.demo.tradeoff import share_right
from ldm_batch.demo.world import caption, draw_specs
from ldm_batch.diffusion.load import load
from ldm_batch.diffusion.models.find import find_model
from ldm_batch.diffusion.noise import make_generator
from ldm_batch.diffusion.presets import PRESETS
from ldm_batch.diffusion.text_to_image import TextToImage
from ldm_batch.records import Call, Request


def make_diffusers(folder: str, batch_size: int) -> Generate:
    """Plain diffusers with its DDIM, one generator per image, uint8 out."""
    plain = LDMTextToImagePipeline.from_pretrained(folder, use_safetensors=True)
    plain.set_progress_bar_config(disable=True)

    def generate(requests: Sequence[Request]) -> list[np.ndarray]:
        padded = [*requests, *[requests[-1]] * (batch_size - len(requests))]
        images = plain(
            [request.inputs["prompt"] for request in padded],
            num_inference_steps=50,
            guidance_scale=requests[0].call.guidance_scale,
            generator=[make_generator(request.seed) for request in padded],
            output_type="pil",
        ).images
        return [np.asarray(image) for image in images[: len(requests)]]

    return generate


def make_ours(pipeline: TextToImage, num_inference_steps: int) -> Generate:
    """One of our pipelines at its own number of steps."""

    def generate(requests: Sequence[Request]) -> Sequence[np.ndarray]:
        old = requests[0].call
        call = Call(
            num_inference_steps=num_inference_steps,
            guidance_scale=old.guidance_scale,
            eta=old.eta,
            height=old.height,
            width=old.width,
        )
        return pipeline.generate(
            [
                Request(
                    inputs={"prompt": r.inputs["prompt"], "negative_prompt": ""},
                    seed=r.seed,
                    call=call,
                )
                for r in requests
            ]
        )

    return generate


def ways_to_compare(options: argparse.Namespace) -> dict[str, Generate]:
    """Plain diffusers first, the presets, then what the command line adds."""
    folder = find_model(ModelConfig(path=options.model))
    first = TextToImage(load(folder), SchedulerConfig(), batch_size=options.batch_size)
    ways = {"diffusers ddim 50": make_diffusers(str(folder), options.batch_size)}
    for name, preset in PRESETS.items():
        pipeline = first.with_scheduler(preset.scheduler)
        ways[name] = make_ours(pipeline, preset.num_inference_steps)
    for text in options.also:
        name, steps, start, stop, cache = text.split(",")
        interval = [float(start), float(stop)]
        scheduler = SchedulerConfig(
            name=name, guidance_interval=interval, cache_interval=int(cache)
        )
        ways[text] = make_ours(first.with_scheduler(scheduler), int(steps))
    return ways


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo:text_to_image")
    parser.add_argument("--num-prompts", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--guidance-scale", type=float, default=2.0)
    parser.add_argument("--split", default="test", help="train, test (held out) or all")
    parser.add_argument("--also", nargs="*", default=[], help="scheduler,steps,start,stop,cache")
    options = parser.parse_args()
    torch.set_num_threads(1)
    specs = draw_specs(2000, options.num_prompts, split=options.split)
    prompts = [caption(spec) for spec in specs]
    call = Call(
        num_inference_steps=50, guidance_scale=options.guidance_scale, eta=0.0, height=64, width=64
    )
    requests = [
        Request(inputs={"prompt": prompt, "negative_prompt": ""}, seed=5000 + i, call=call)
        for i, prompt in enumerate(prompts)
    ]
    runs = run_interleaved(ways_to_compare(options), requests, options.batch_size)
    reference, reference_s, _ = next(iter(runs.values()))
    print("| setting | CPU ms/image | speed | distance | right |\n|---|---|---|---|---|")
    for label, (images, cpu_s, _) in runs.items():
        error = (np.stack(images).astype(float) - np.stack(reference)) / 255
        right = share_right(images, prompts)
        print(
            f"| {label} | {cpu_s / len(images) * 1e3:.1f} | {reference_s / cpu_s:.2f}x "
            f"| {np.sqrt((error**2).mean()):.4f} | {right:.3f} |"
        )


if __name__ == "__main__":
    main()

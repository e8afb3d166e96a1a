"""`python -m ldm_batch.demo.upscale_quality`: how good the enlarged pictures are, in numbers and
side by side."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ldm_batch.demo.measure_super_resolution import psnr_db, ssim
from ldm_batch.demo.train.details import downsample, draw_scenes_in_detail
from ldm_batch.diffusion.super_resolution import SuperResolution

MODEL = "demo:super_resolution"
FIRST_HELD_OUT_SCENE = 2000
NUM_SHOWN, TITLE_HEIGHT = 2, 18
Enlarge = Callable[[Sequence[Image.Image]], Sequence[Image.Image]]


def resize(resample: Image.Resampling) -> Enlarge:
    """Enlarging by interpolation."""
    return lambda images: [
        image.resize((4 * image.width, 4 * image.height), resample) for image in images
    ]


def enlarge(num_inference_steps: int) -> Enlarge:
    """Enlarging by the demo model, image i with seed i."""
    model = SuperResolution.from_pretrained(MODEL, device="cpu", batch_size=4)
    model.set_progress_bar_config(disable=True)
    return lambda images: list(
        model(list(images), num_inference_steps=num_inference_steps, seed=0).images
    )


def score(made: Sequence[Image.Image], wanted: Sequence[Image.Image]) -> tuple[float, float]:
    """Mean PSNR in dB and mean SSIM of pictures against what they should be."""
    pairs = [(_array(a), _array(b)) for a, b in zip(made, wanted, strict=True)]
    return float(np.mean([psnr_db(*p) for p in pairs])), float(np.mean([ssim(*p) for p in pairs]))


def side_by_side(columns: dict[str, Sequence[Image.Image]]) -> Image.Image:
    """Pictures of one size in columns with titles."""
    titles, pictures = list(columns), list(columns.values())
    width, height = pictures[0][0].size
    sheet = Image.new(
        "RGB", (len(titles) * (width + 4), len(pictures[0]) * (height + 4) + TITLE_HEIGHT), "white"
    )
    draw = ImageDraw.Draw(sheet)
    for i, (title, column) in enumerate(zip(titles, pictures, strict=True)):
        draw.text((i * (width + 4) + 4, 3), title, fill="black")
        for j, picture in enumerate(column):
            sheet.paste(picture, (i * (width + 4), j * (height + 4) + TITLE_HEIGHT))
    return sheet


def main() -> None:
    """Print the table as Markdown and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=48, help="held-out scenes of 256 pixels")
    parser.add_argument("--out", type=Path, default=Path("upscale_quality.png"))
    arguments = parser.parse_args()
    wanted = draw_scenes_in_detail(FIRST_HELD_OUT_SCENE, arguments.num)
    small = [downsample(image) for image in wanted]
    methods: dict[str, Enlarge] = {
        "nearest": resize(Image.Resampling.NEAREST),
        "bicubic": resize(Image.Resampling.BICUBIC),
        "model, 4 steps": enlarge(4),
        "model, 20 steps": enlarge(20),
    }
    shown: dict[str, Sequence[Image.Image]] = {}
    print("| 64 to 256 pixels | PSNR, dB | SSIM | CPU-s per image |\n| --- | --- | --- | --- |")
    for name, method in methods.items():
        start = time.process_time()
        made = method(small)
        seconds = (time.process_time() - start) / len(small)
        psnr, similarity = score(made, wanted)
        print(f"| {name} | {psnr:.2f} | {similarity:.4f} | {seconds:.3f} |", flush=True)
        shown[name] = made[:NUM_SHOWN]
    sheet = side_by_side({**shown, "original": wanted[:NUM_SHOWN]})
    sheet.quantize(128, dither=Image.Dither.NONE).save(arguments.out, optimize=True)
    print(f"side by side: {arguments.out.absolute()}")


def _array(image: Image.Image) -> NDArray[np.float64]:
    return np.asarray(image, np.float64)


if __name__ == "__main__":
    main()

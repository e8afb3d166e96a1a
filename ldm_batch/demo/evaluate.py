"""Measure the demo models against their targets: `python -m ldm_batch.demo.evaluate`.

Prints a Markdown table, and writes every figure as JSON where `--json` says.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from ldm_batch.demo.measure_checker import measure_checker
from ldm_batch.demo.measure_super_resolution import (
    compare,
    load_super_resolution,
    measure_scenes,
)
from ldm_batch.demo.measure_text_to_image import (
    PictureCall,
    load_text_to_image,
    measure_autoencoder,
    measure_pictures,
    measure_time,
)

MODELS = Path(__file__).parent / "models"
MEBIBYTE = 2**20
Figures = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Target:
    """A figure and what it should be; `at_most` says that smaller is better."""

    what: str
    section: str
    figure: str
    bound: float
    at_most: bool = False

    def is_met(self, value: float) -> bool:
        """Whether a measured value is on the right side of the bound."""
        return value <= self.bound if self.at_most else value >= self.bound


TARGETS = (
    Target("checker accepts true renders", "checker", "true_accepted", 0.99),
    Target("checker rejects altered renders", "checker", "altered_rejected", 0.99),
    Target("autoencoder: reconstructions right", "autoencoder", "right", 0.97),
    Target("text-to-image, one object, held out: right", "one_object", "is_right", 0.90),
    Target("text-to-image, two objects, held out: right", "two_objects", "is_right", 0.70),
    Target("text-to-image: CPU-s per image, one thread", "time", "cpu_s_per_image", 0.25, True),
    Target("super-resolution: PSNR over bicubic, dB", "scenes_enlarged", "psnr_gain_db", 7.0),
    Target("super-resolution: SSIM over bicubic", "scenes_enlarged", "ssim_gain", 0.0),
    Target("size of both models, MiB", "size", "mib", 16.0, True),
)


def measure_all(arguments: argparse.Namespace) -> Figures:
    """Measure everything that was asked for; super-resolution only where its model is there."""
    call = PictureCall(arguments.steps, arguments.guidance)
    painter = load_text_to_image(str(arguments.models / "text_to_image"))
    figures: Figures = {
        "checker": measure_checker(),
        "autoencoder": measure_autoencoder(painter),
        "one_object": measure_pictures(painter, arguments.num_images, 1, call),
        "two_objects": measure_pictures(painter, arguments.num_images, 2, call),
        "time": measure_time(painter, PictureCall(20, arguments.guidance)),
        "size": {"mib": folder_bytes(arguments.models) / MEBIBYTE},
    }
    if (arguments.models / "super_resolution").is_dir():
        figures |= _measure_enlarging(arguments)
    return figures


def folder_bytes(folder: Path) -> int:
    """Sum the sizes of all files under a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def markdown_table(figures: Figures) -> str:
    """Lay the targets out beside what was measured."""
    lines = ["| what | target | measured | met |", "| --- | --- | --- | --- |"]
    for target in TARGETS:
        if target.section in figures:
            value = figures[target.section][target.figure]
            sign = "<=" if target.at_most else ">="
            met = "yes" if target.is_met(value) else "no"
            lines.append(f"| {target.what} | {sign} {target.bound:g} | {value:.3f} | {met} |")
    return "\n".join(lines)


def _measure_enlarging(arguments: argparse.Namespace) -> Figures:
    enlarger = load_super_resolution(str(arguments.models / "super_resolution"))
    steps = arguments.enlarging_steps
    figures = {"scenes_enlarged": measure_scenes(enlarger, arguments.num_scenes, steps)}
    if arguments.photographs:
        photographs = [_read_photograph(file) for file in arguments.photographs]
        figures["photographs_enlarged"] = compare(enlarger, photographs, steps)
    return figures


def _read_photograph(file: Path) -> Image.Image:
    """Read the middle 256 x 256 pixels of a photograph at half its size."""
    image = Image.open(file).convert("RGB")
    image = image.reduce(2)
    left, top = (image.width - 256) // 2, (image.height - 256) // 2
    return image.crop((left, top, left + 256, top + 256))


def main() -> None:
    """Read the command line, measure in one thread, print and write."""
    parser = argparse.ArgumentParser(prog="python -m ldm_batch.demo.evaluate", description=__doc__)
    parser.add_argument("--models", type=Path, default=MODELS, help="folder of both pipelines")
    parser.add_argument("--num-images", type=int, default=512, help="pictures of each kind")
    parser.add_argument("--steps", type=int, default=20, help="DDIM steps of text-to-image")
    parser.add_argument("--guidance", type=float, default=2.0, help="guidance scale")
    parser.add_argument("--num-scenes", type=int, default=32, help="scenes to enlarge")
    parser.add_argument("--enlarging-steps", type=int, default=2, help="DDIM steps of enlarging")
    parser.add_argument("--photographs", type=Path, nargs="*", default=[], help="files to enlarge")
    parser.add_argument("--json", type=Path, help="where every figure goes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures = measure_all(arguments)
    print(markdown_table(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

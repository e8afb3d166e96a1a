"""The pictures of README.md: `python -m ldm_batch.demo.figures` draws them anew."""

import argparse
import csv
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from ldm_batch.demo.checker import check
from ldm_batch.demo.measure_super_resolution import enlarge, load_super_resolution
from ldm_batch.demo.measure_text_to_image import (
    PictureCall,
    held_out_scenes,
    load_text_to_image,
    paint,
)
from ldm_batch.demo.train.details import downsample, draw_scenes_in_detail
from ldm_batch.demo.world import SceneSpec, caption

HERE = Path(__file__).parent
TRAINING_LOGS = HERE / "training"
FIGURES = HERE / "figures"
ENLARGING_STEPS = 2
RIGHT, WRONG = (0, 110, 0), (190, 0, 0)
PLOTTED = {
    "text_encoder": ("read_from_all",),
    "autoencoder": ("right", "right_at_noise_0.5"),
    "unet": ("is_right_1", "is_right_2", "colour_2", "shape_1", "shape_2"),
    "detail_autoencoder": ("psnr_db",),
    "super_resolution_unet": ("psnr_db_at_4_steps", "psnr_db_at_20_steps"),
}


def draw_contact_sheet(
    images: Sequence[Image.Image], specs: Sequence[SceneSpec], *, columns: int = 8
) -> Image.Image:
    """Lay 64-px pictures out at twice their size, captions green where the checker agrees."""
    width, height = 148, 186
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (image, spec) in enumerate(zip(images, specs, strict=True)):
        x, y = index % columns * width + 10, index // columns * height + 6
        sheet.paste(image.resize((128, 128), Image.Resampling.NEAREST), (x, y))
        colour = RIGHT if check(image, spec).is_right else WRONG
        draw.text((x, y + 130), textwrap.fill(caption(spec), 22), fill=colour, spacing=1)
    return sheet


def draw_enlargements(rows: Sequence[Sequence[Image.Image]], titles: Sequence[str]) -> Image.Image:
    """Lay rows of pictures out at 256 px, smaller ones enlarged by bicubic interpolation."""
    side, gap = 256, 8
    size = (len(titles) * (side + gap), len(rows) * (side + gap) + 16)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((column * (side + gap) + 4, 2), title, fill="black")
        for row, images in enumerate(rows):
            image = images[column].resize((side, side), Image.Resampling.BICUBIC)
            sheet.paste(image, (column * (side + gap), row * (side + gap) + 16))
    return sheet


def draw_training_plot(logs: Sequence[Path], file: Path) -> None:
    """Plot the metrics of `PLOTTED` against CPU-seconds, a panel per stage."""
    from matplotlib.figure import Figure

    curves = _read_curves(logs)
    stages = [stage for stage in PLOTTED if stage in curves]
    figure = Figure(figsize=(4.2 * len(stages), 3.4), layout="constrained")
    for panel, stage in zip(np.ravel(figure.subplots(1, len(stages))), stages, strict=True):
        for metric in PLOTTED[stage]:
            panel.plot(*zip(*curves[stage][metric], strict=True), marker=".", label=metric)
        panel.set_title(stage)
        panel.set_xlabel("CPU-seconds of one thread")
        panel.legend(fontsize=7)
        panel.grid(alpha=0.3)
    figure.savefig(file, dpi=80)


def _read_curves(logs: Sequence[Path]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    curves: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for log in logs:
        with log.open(newline="") as file:
            for row in csv.DictReader(file):
                point = (float(row["cpu_s"]), float(row["value"]))
                curves[row["stage"]][row["metric"]].append(point)
    return curves


def main() -> None:
    """Draw the plot, the contact sheet and the enlargements from the shipped models and logs."""
    parser = argparse.ArgumentParser(prog="python -m ldm_batch.demo.figures", description=__doc__)
    parser.add_argument("--models", type=Path, default=HERE / "models")
    parser.add_argument("--out", type=Path, default=FIGURES)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    draw_training_plot(sorted(TRAINING_LOGS.glob("*.csv")), arguments.out / "training.png")
    specs = held_out_scenes(16, 1) + held_out_scenes(16, 2)
    pixels = paint(
        load_text_to_image(str(arguments.models / "text_to_image")), specs, PictureCall()
    )
    images = [Image.fromarray(picture.round().astype(np.uint8)) for picture in pixels]
    draw_contact_sheet(images, specs).save(arguments.out / "text_to_image.png")
    enlarger = load_super_resolution(str(arguments.models / "super_resolution"))
    scenes = draw_scenes_in_detail(3000, 2)
    rows = [(downsample(s), enlarge(enlarger, downsample(s), ENLARGING_STEPS), s) for s in scenes]
    painted = images[:2] + images[16:18]
    rows += [(image, enlarge(enlarger, image, ENLARGING_STEPS), image) for image in painted]
    titles = (
        "bicubic x4",
        f"super-resolution x4, {ENLARGING_STEPS} steps",
        "truth; below: the input, nearest",
    )
    draw_enlargements(
        [(a, b, c.resize((256, 256), Image.Resampling.NEAREST)) for a, b, c in rows], titles
    ).save(arguments.out / "super_resolution.png")


if __name__ == "__main__":
    main()

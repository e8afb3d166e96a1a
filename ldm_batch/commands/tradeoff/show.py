"""Show a trade-off: a table (Markdown and CSV), a plot, a contact sheet of the same seeds.

Must not know how the results came about.
"""

from __future__ import annotations

import csv
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ldm_batch.commands.tradeoff.measure import Result
from ldm_batch.errors import JobError

HEADER = ("setting", "CPU ms/image", "ms/image", "speed", "distance", "right")
MAX_ROWS_SHOWN = 8
TILE_PIXELS, GAP_PIXELS, CAPTION_PIXELS, LINE_PIXELS = 96, 6, 150, 13


def write_results(results: Sequence[Result], prompts: Sequence[str], folder: Path) -> None:
    """Write `tradeoff.md`, `.csv`, `.png` and `_sheet.png` into a folder.

    Args:
        results: the reference first; all have one image per prompt.

    Raises:
        JobError: they cannot be written; the table is printed.
    """
    rows = [table_row(result, results[0]) for result in results]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tradeoff.md").write_text(format_table(rows))
        with (folder / "tradeoff.csv").open("w", newline="") as file:
            csv.writer(file).writerows([HEADER, *rows])
        draw_sheet(results, prompts).save(folder / "tradeoff_sheet.png")
        draw_plot(results, folder / "tradeoff.png")
    except OSError as error:
        print(format_table(rows))  # it took long to measure
        raise JobError(
            f"--output: {folder}: cannot be written: {error.strerror or error}"
        ) from error


def table_row(result: Result, reference: Result) -> tuple[str, ...]:
    """Return one line of the table, as text."""
    is_right = "" if result.share_right is None else f"{result.share_right:.3f}"
    return (
        result.label,
        f"{result.cpu_s * 1e3:.1f}",
        f"{result.wall_s * 1e3:.1f}",
        f"{reference.cpu_s / result.cpu_s:.2f}x",
        f"{result.distance:.4f}",
        is_right,
    )


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Lay rows out as a Markdown table that reads well as plain text, too."""
    lines = [HEADER, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]

    def format_line(cells: Sequence[str]) -> str:
        first, *rest = (cell.ljust(widths[0]) if i == 0 else cell.rjust(widths[i])
                        for i, cell in enumerate(cells))  # fmt: skip
        return f"| {' | '.join([first, *rest])} |"

    rule = f"|{'|'.join('-' * (width + 2) for width in widths)}|"
    note = (
        "speed: images per CPU second against the first line; distance: RMS of pixels (0..1) to "
        "the first line's, same seeds; right: share that a checker finds right (demo prompts)."
    )
    return "\n".join([format_line(HEADER), rule, *map(format_line, rows), "", note, ""])


def draw_sheet(results: Sequence[Result], prompts: Sequence[str]) -> Image.Image:
    """Draw one row per prompt and one column per setting."""
    rows = min(MAX_ROWS_SHOWN, len(prompts))
    tile = TILE_PIXELS + GAP_PIXELS
    top = 2 * LINE_PIXELS
    width = CAPTION_PIXELS + tile * len(results) + GAP_PIXELS
    sheet = Image.new("RGB", (width, top + tile * rows), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for column, result in enumerate(results):
        x = CAPTION_PIXELS + column * tile
        draw.text((x, 4), result.label, "black", font)
        for row in range(rows):
            picture = Image.fromarray(result.images[row])
            picture.thumbnail((TILE_PIXELS, TILE_PIXELS))
            sheet.paste(_enlarged(picture), (x, top + row * tile))
    for row in range(rows):
        for number, line in enumerate(textwrap.wrap(prompts[row], 24, max_lines=7)):
            draw.text((4, top + row * tile + number * LINE_PIXELS), line, "black", font)
    return sheet


def _enlarged(picture: Image.Image) -> Image.Image:
    scale = TILE_PIXELS / max(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    return picture.resize(size, Image.Resampling.NEAREST)


def draw_plot(results: Sequence[Result], path: Path) -> None:
    """Plot distance to the reference over time per image, one line per scheduler.

    Raises:
        JobError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise JobError("the plot needs matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    groups: dict[str, list[Result]] = {}
    for result in results[1:]:
        groups.setdefault(result.label.split(" ")[0], []).append(result)
    for name, group in groups.items():
        group = sorted(group, key=lambda result: result.cpu_s)
        times = [result.cpu_s * 1e3 for result in group]
        axes.plot(times, [result.distance for result in group], "o-", label=name)
        for result, time_ms in zip(group, times, strict=True):
            place = (time_ms, result.distance)
            axes.annotate(
                str(result.num_inference_steps), place, (3, 3), textcoords="offset points"
            )
    axes.axvline(results[0].cpu_s * 1e3, color="grey", linestyle=":", label=results[0].label)
    axes.set(xscale="log", yscale="log" if _can_log(results) else "linear")
    axes.set(xlabel="CPU ms per image", ylabel=f"RMS distance to {results[0].label}")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def _can_log(results: Sequence[Result]) -> bool:
    return bool(np.all([result.distance > 0 for result in results[1:]]))

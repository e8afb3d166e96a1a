"""A picture of a dataset's first images with their prompts: `python -m ldm_batch sheet`.

Reads committed objects only.
"""

from __future__ import annotations

import argparse
import io
import textwrap
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa
from PIL import Image, ImageDraw, ImageFont

from ldm_batch import identity
from ldm_batch.commands.dataset_argument import add_sink, named_sink
from ldm_batch.commands.ending import ends
from ldm_batch.commands.program import program
from ldm_batch.config.job import IMAGE_FORMATS
from ldm_batch.dataset import rows_of
from ldm_batch.errors import JobError
from ldm_batch.storage import Store
from ldm_batch.write.commit import committed_shards

COLUMNS_PER_SHEET = 8
TILE_PIXELS = 128
CAPTION_LINES, LINE_PIXELS, CHARS_PER_LINE = 4, 13, 22
GAP_PIXELS = 8
FORMATS = [name.upper() for name in IMAGE_FORMATS]
DAMAGE = (
    *(pa.ArrowException, OSError, SyntaxError, ValueError, KeyError, TypeError),
    Image.DecompressionBombError,
)
"""What reading an object raises that is damaged, or none of ours."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def first_images(store: Store, num_images: int) -> Iterator[tuple[Image.Image, str]]:
    """Decode the first images of a dataset, with their prompts or keys, in the order of the shards.

    Raises:
        JobError: an object is damaged.
    """
    left = num_images
    for index in sorted(committed_shards(store)):
        try:
            for row in islice(rows_of(store, index, ["image", "prompt", "key"]), left):
                left -= 1
                caption = row.get("prompt") or row["key"]  # not every task has prompts
                image = Image.open(io.BytesIO(row["image"]["bytes"]), formats=FORMATS)
                image.load()
                yield image, caption
        except DAMAGE as error:
            why = "it has no images of ours" if isinstance(error, KeyError | TypeError) else error
            path = identity.data_path(f"{index:05d}")
            raise JobError(f"{store.uri(path)}: cannot be read: {why}; see `verify`") from error
        if left <= 0:
            return


def draw_sheet(images: Sequence[tuple[Image.Image, str]]) -> Image.Image:
    """Lay images out in rows of eight, each over its prompt."""
    columns = min(COLUMNS_PER_SHEET, len(images))
    tile_width = TILE_PIXELS + GAP_PIXELS
    tile_height = TILE_PIXELS + CAPTION_LINES * LINE_PIXELS + GAP_PIXELS
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * tile_width + GAP_PIXELS, rows * tile_height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for i, (image, prompt) in enumerate(images):
        x, y = GAP_PIXELS + i % columns * tile_width, GAP_PIXELS + i // columns * tile_height
        scale = TILE_PIXELS / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        sheet.paste(image.convert("RGB").resize(size, Image.Resampling.LANCZOS), (x, y))
        lines = textwrap.wrap(prompt, CHARS_PER_LINE, max_lines=CAPTION_LINES, placeholder="...")
        for number, line in enumerate(lines):
            draw.text((x, y + TILE_PIXELS + 2 + number * LINE_PIXELS), line, "black", font)
    return sheet


def write_contact_sheet(sink: Store, path: Path, num_images: int) -> None:
    """Draw the first images of a dataset into a file, of a kind that its ending names.

    Raises:
        JobError: there is no image yet, or the file cannot be written.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise JobError(f"--output: {path} ends with none of {', '.join(SUFFIXES)}")
    images = list(first_images(sink, num_images))
    if not images and not sink.has(identity.PLAN_PATH):
        raise JobError(f"{sink.root}: no dataset here (no {identity.PLAN_PATH})")
    if not images:
        raise JobError(f"{sink.root}: no images to show yet; `status` tells how far it is")
    sheet = draw_sheet(images)
    try:
        sheet.save(path)
    except OSError as error:
        raise JobError(
            f"--output: {path} cannot be written: {error.strerror or error}; name a file in a "
            "folder that is there"
        ) from error


@ends
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and write the sheet."""
    parser = argparse.ArgumentParser(prog=program("sheet"), description=__doc__)
    add_sink(parser)
    parser.add_argument("--output", type=Path, default=Path("contact_sheet.png"))
    parser.add_argument("--images", type=int, default=48, help="how many (default: 48)")
    options = parser.parse_args(arguments)
    if options.images < 1:
        parser.error(f"--images: {options.images} is not at least 1")
    write_contact_sheet(named_sink(options), options.output, options.images)
    print(options.output)

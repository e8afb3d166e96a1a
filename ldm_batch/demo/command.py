"""`python -m ldm_batch demo`: write the demo prompts, run the real command, show what came out."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ldm_batch.commands.ending import ends
from ldm_batch.commands.program import program
from ldm_batch.commands.sheet import write_contact_sheet
from ldm_batch.dataset import open_dataset
from ldm_batch.demo.prompts import make_demo_prompts
from ldm_batch.errors import JobError
from ldm_batch.storage import Store

OUTPUT = Path("demo_output")
NUM_SHOWN = 48


def write_prompts(path: Path) -> None:
    """Write the demo prompts; a file that holds them already stays as it is."""
    rows = make_demo_prompts()
    types: dict[str, pa.DataType] = {
        "id": pa.string(),
        "prompt": pa.string(),
        "num_inference_steps": pa.int32(),
    }
    table = pa.Table.from_pylist(rows, schema=pa.schema(types))
    if path.exists() and pq.read_table(path).equals(table):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=64)


def print_rejections(sink: str) -> None:
    """One line on each rejected row of the dataset."""
    for row in open_dataset(Store(sink)).rejections():
        print(f"  {row['reason']}: {row['key']} (row {row['input_row']}): {row['message']}")


@ends
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demo in the current folder."""
    argparse.ArgumentParser(prog=program("demo"), description=__doc__).parse_args(arguments)
    prompts, sink, sheet = OUTPUT / "prompts.parquet", OUTPUT / "dataset", OUTPUT / "sheet.png"
    try:
        write_prompts(prompts)
    except (OSError, pa.ArrowException) as error:
        raise JobError(
            f"{prompts.absolute()}: cannot be written ({str(error).partition(chr(10))[0]}); remove "
            f"{OUTPUT}, or run the demo in another folder"
        ) from error
    places = [f"source.uri={prompts}", f"sink.uri={sink}"]
    code = subprocess.call([sys.executable, "-m", "ldm_batch", "run", "conf=demo", *places])
    if code:
        sys.exit(code)
    print("rejected rows:")
    print_rejections(str(sink))
    write_contact_sheet(Store(str(sink)), sheet, NUM_SHOWN)
    print(f"contact sheet: {sheet.absolute()}")

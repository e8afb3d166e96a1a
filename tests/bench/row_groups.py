"""What a shard costs by where it stands in a row group of a million rows, and the memory it takes.

    python tests/bench/row_groups.py --rows 1000000

Each kind of file is written once, and each shard of 1,024 rows is read in a process of its own:
seconds of CPU of reading alone, without imports and footers, and how far memory grows for it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ldm_batch.config import SourceConfig
from ldm_batch.generate.super_resolution import SUPER_RESOLUTION
from ldm_batch.generate.text_to_image import TEXT_TO_IMAGE
from ldm_batch.read.batches import find_columns, read_batches
from ldm_batch.read.footer import read_new_footers
from ldm_batch.read.input_types import NO_TYPES
from ldm_batch.records import InputFile, Shard
from ldm_batch.storage import SourceFile

SHARD_ROWS = 1024
WORDS = [f"word{number:x}" for number in np.random.default_rng(0).integers(0, 2**24, 4096)]


def texts(num_rows: int, num_words: int, *, num_distinct: int | None = None) -> Any:
    """Texts of some words; with so many distinct ones, in turns."""
    random = np.random.default_rng(1)
    picked = random.integers(0, len(WORDS), (min(num_rows, num_distinct or num_rows), num_words))
    distinct = pa.array([" ".join(WORDS[place] for place in row) for row in picked])
    if num_distinct is None:
        return distinct
    turns = pa.array(np.arange(num_rows, dtype=np.int32) % len(distinct))
    return pa.DictionaryArray.from_arrays(turns, distinct)


def prompts(num_rows: int, num_words: int = 6, **distinct: int) -> pa.Table:
    """Prompts and seeds."""
    texts_ = texts(num_rows, num_words, **distinct)
    return pa.table({"prompt": texts_, "seed": np.arange(num_rows)})


def images(num_rows: int) -> pa.Table:
    """Images of 1,500 bytes with their paths; nothing here decodes them."""
    raw = np.random.default_rng(2).bytes(1500 * num_rows)
    offsets = pa.array(np.arange(num_rows + 1, dtype=np.int64) * 1500)
    cells = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), num_rows, [None, offsets.buffers()[1], pa.py_buffer(raw)]
    )
    paths = pa.array([f"{number}.png" for number in range(num_rows)])
    return pa.table({"image": pa.StructArray.from_arrays([cells, paths], ["bytes", "path"])})


def long_prompts(num_rows: int) -> pa.Table:
    """All different, of 600 bytes."""
    base = texts(num_rows, 58, num_distinct=5000).dictionary_decode()
    numbers = pa.array([f"{number} " for number in range(num_rows)])
    joined = pc.binary_join_element_wise(numbers, base, "")
    return pa.table({"prompt": joined})


KINDS: dict[str, tuple[Callable[[int], pa.Table], dict[str, Any]]] = {
    "prompts": (prompts, {}),
    "without a dictionary": (prompts, {"use_dictionary": False}),
    "in one page": (
        prompts,
        {"use_dictionary": False, "data_page_size": 2**30, "max_rows_per_page": 2**30},
    ),
    "deltas": (
        prompts,
        {
            "use_dictionary": False,
            "column_encoding": {"prompt": "DELTA_BYTE_ARRAY", "seed": "DELTA_BINARY_PACKED"},
        },
    ),
    "small pages, with an index": (prompts, {"data_page_size": 8192, "write_page_index": True}),
    "2,000 texts of 1.5 kB": (
        lambda num_rows: prompts(num_rows, 150, num_distinct=2000),
        {"dictionary_pagesize_limit": 2**22},
    ),
    "long prompts": (long_prompts, {"compression": "zstd"}),
    "images": (images, {"compression": "none"}),
}


def planned(path: Path, start: int) -> Shard:
    size_bytes = path.stat().st_size
    [footer] = read_new_footers([SourceFile(path.name, str(path), size_bytes, "")])
    file = InputFile(path.name, str(path), size_bytes, "", footer.num_rows, footer.sha256)
    return Shard(0, file, start, min(SHARD_ROWS, footer.num_rows - start))


def measure(path: Path, start: int) -> tuple[float, float]:
    """Seconds of CPU, and megabytes that memory grows by at its highest."""
    task = SUPER_RESOLUTION if path.name.startswith("images") else TEXT_TO_IMAGE
    shard, source = planned(path, start), SourceConfig()
    Path("/proc/self/clear_refs").write_text("5")  # the highest memory counts from here
    before_mb = _highest_mb()
    started = time.process_time()
    used = find_columns(shard, task.columns, source, NO_TYPES)
    batches = read_batches(shard, used, source, is_image=task.columns.has_image)
    num_rows = sum(batch.num_rows for batch in batches)
    spent_s = time.process_time() - started
    assert num_rows == shard.num_rows
    return spent_s, _highest_mb() - before_mb


def _highest_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Write each kind of file and print a row of what its shards cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(Path(options.measure[0]), int(options.measure[1]))))
        return
    print(
        "| rows of one group | MB | start | middle | end | memory |\n| --- " + "| ---: " * 5 + "|"
    )
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kinds:
            make, settings = KINDS[kind]
            path = Path(folder) / f"{kind.replace(' ', '_')}.parquet"
            path.write_bytes(b"")
            pq.write_table(make(options.rows), path, row_group_size=options.rows, **settings)
            starts = [0, options.rows // 2, options.rows - SHARD_ROWS]
            told = [_in_a_process(path, start) for start in starts]
            seconds = " | ".join(f"{spent_s:.2f} s" for spent_s, _ in told)
            size_mb, grown_mb = path.stat().st_size // 10**6, max(grown for _, grown in told)
            print(f"| {kind} | {size_mb} | {seconds} | {grown_mb:.0f} MB |", flush=True)
            path.unlink()


def _in_a_process(path: Path, start: int) -> tuple[float, float]:
    command = [sys.executable, __file__, "--measure", str(path), str(start)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    spent_s, grown_mb = json.loads(ended.stdout)
    return spent_s, grown_mb


if __name__ == "__main__":
    main()

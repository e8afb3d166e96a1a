"""What a row costs besides drawing and encoding its image: CPU time in one process.

    python tests/bench/data_plane.py [--rows 20000] [--rounds 5]

Random 8x8 pixels stand in for a model; a shard has 1,000 rows and no carried columns. Whole shards
are made by a real worker into a local folder; the generator alone and the encoder alone, over the
same images, are timed in turns with it and printed, and what is left is the data plane: parsing,
keys and seeds, requests, digests, the spool, records, Arrow and Parquet, the commit. Medians of all
rounds, in microseconds of CPU a row.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import pyarrow as pa
import pyarrow.parquet as pq

from ldm_batch.config import JobConfig, ModelConfig, SinkConfig, SourceConfig
from ldm_batch.drive import run_job
from ldm_batch.generate.random_pixels import RandomPixels
from ldm_batch.records import Call, Request
from ldm_batch.write.encode import encode_image, sha256

ROWS_PER_SHARD = 1000


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = [measure(Path(folder), options.rows, number) for number in range(options.rounds)]
    names = found[0].keys()
    print("| what | us of CPU a row |\n| --- | --- |")
    for name in names:
        print(f"| {name} | {median(one[name] for one in found):.1f} |")


def measure(folder: Path, num_rows: int, number: int) -> dict[str, float]:
    """One round: what each took, in microseconds a row."""
    source = folder / "in.parquet"
    prompts = [f"a red circle, number {row}" for row in range(num_rows)]
    pq.write_table(pa.table({"prompt": prompts}), source)
    few = folder / "few.parquet"
    pq.write_table(pa.table({"prompt": prompts[:1]}), few)
    pixels: list[object] = []

    def draw() -> None:
        call = Call(num_inference_steps=50, height=8, width=8)
        requests = [Request(inputs={}, seed=row, call=call) for row in range(num_rows)]
        pixels[:] = RandomPixels().generate(requests)

    def encode() -> None:
        for image in pixels:
            encode_image(image, "webp")  # type: ignore[arg-type]

    def digest() -> None:
        for image in pixels:
            sha256(image)  # type: ignore[arg-type]

    fixed = cpu(lambda: make(few, folder / f"few{number}"))
    whole = cpu(lambda: make(source, folder / f"out{number}")) - fixed
    took = {"whole job, without what one row takes": whole, "generator alone": cpu(draw)}
    took["encoder alone"] = cpu(encode)
    rest = whole - took["generator alone"] - took["encoder alone"]
    took["data plane: the rest"] = rest
    took["of it SHA-256 of the pixels"] = cpu(digest)
    return {name: 1e6 * seconds / num_rows for name, seconds in took.items()}


def make(source: Path, sink: Path) -> None:
    """Run the job in this process."""
    job = JobConfig(
        model=ModelConfig(engine="random_pixels"),
        source=SourceConfig(uri=str(source)),
        sink=SinkConfig(uri=str(sink)),
        rows_per_shard=ROWS_PER_SHARD,
        batch_size=16,
    )
    job = replace(job, cluster=replace(job.cluster, executor="in_process"))
    with Path("/dev/null").open("w") as nowhere:
        assert run_job(job, out=nowhere) == 0


def cpu(function: Callable[[], None]) -> float:
    """Seconds of CPU time, of all threads."""
    before = time.process_time()
    function()
    return time.process_time() - before


if __name__ == "__main__":
    main()

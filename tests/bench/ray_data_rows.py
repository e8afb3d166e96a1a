"""The same work as a job of this package, as a Ray Data script: what `scale.py` compares with.

    python tests/bench/ray_data_rows.py IN OUT [--workers 2]

Reads prompts, draws 8x8 random pixels from a seed of each row's own, encodes them as lossless WebP
and writes Parquet files, as a team would who knows Ray Data: enough blocks for all actors, a fixed
pool of actors, room on the cluster for reading and writing beside them.
"""

import argparse
import hashlib
import io
import logging
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from PIL import Image

SIDE, BATCH_SIZE, ROWS_PER_BLOCK = 8, 16, 4000
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


class RandomPixels:
    """An actor's pipeline: rows in, rows with encoded images out."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        keys = batch.column("id").to_pylist()
        seeds = [seed_of(key) for key in keys]
        images = [encode(draw(seed)) for seed in seeds]
        return pa.table(
            {
                "image": pa.array(
                    [
                        {"bytes": data, "path": f"{key}.webp"}
                        for key, data in zip(keys, images, strict=True)
                    ],
                    IMAGE_TYPE,
                ),
                "key": batch.column("id"),
                "prompt": batch.column("prompt"),
                "seed": pa.array(seeds, pa.uint64()),
                "height": pa.array([SIDE] * len(keys), pa.int32()),
                "width": pa.array([SIDE] * len(keys), pa.int32()),
            }
        )


def seed_of(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def draw(seed: int) -> Any:
    bits = np.random.Generator(np.random.Philox(seed))
    return bits.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def encode(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, exact=True, method=0)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("source")
    parser.add_argument("sink")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    ray.init(
        address="local",
        num_cpus=2 * options.workers,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=1024**3,
    )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = ray.data.read_parquet(options.source).select_columns(["id", "prompt"])
    rows = rows.repartition(target_num_rows_per_block=ROWS_PER_BLOCK)
    images = rows.map_batches(
        RandomPixels,
        batch_size=BATCH_SIZE,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=options.workers),
        num_cpus=1,
    )
    images.write_parquet(options.sink)


if __name__ == "__main__":
    main()

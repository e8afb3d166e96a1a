"""How many rows a shard gets when the user leaves it to us: `rows_per_shard: auto`.

Pure numbers. Must not know how fast a device is, how large an object may become, or any plan.
"""

from __future__ import annotations

import math

from ldm_batch.config.cluster import ClusterConfig

LARGEST_IMAGES = 1024
"""More images in a shard save nothing, and are more to lose when a machine goes."""
SMALLEST_IMAGES = 64
"""With fewer a fast device waits for the store."""
FEWEST_IMAGES = 32
"""A table so small is one shard: what there is to gain is over before anyone notices."""
SHARDS_PER_WORKER = 32
"""At the end workers wait half a shard on average: 1/64 of the job."""
FEWEST_PER_WORKER = 4
"""Below that the end costs more than small shards do."""
ROOT_PER_WORKER = 2
"""Images per worker grow with their number: of n, there are taken to be sqrt(n) / 2 workers."""
LOCAL_WORKERS = 8
"""Taken for a machine of unknown size: the GPUs of a large one."""


def auto_rows_per_shard(
    num_rows: int, num_workers: int | None, *, batch_size: int, num_images_per_prompt: int = 1
) -> int:
    """Choose rows per shard: about 32 shards per worker, of whole batches, of 1024 images at most.

    Args:
        num_rows: rows of all input files when the dataset is first planned.
        num_workers: how many share them; None takes half the square root of the images.
        batch_size: images per model call.
        num_images_per_prompt: images of each row.

    Returns:
        At least the rows of one batch, even where the dataset has fewer.
    """
    num_images = num_rows * num_images_per_prompt
    workers = num_workers or max(1, math.isqrt(num_images) // ROOT_PER_WORKER)
    smallest = min(SMALLEST_IMAGES, num_images // (workers * FEWEST_PER_WORKER))
    images = max(FEWEST_IMAGES, smallest, num_images // (workers * SHARDS_PER_WORKER))
    of_one_batch = -(-batch_size // num_images_per_prompt)
    rows = max(of_one_batch, min(images, LARGEST_IMAGES) // num_images_per_prompt)
    filling = _rows_of_whole_batches(batch_size, num_images_per_prompt)
    if rows < filling and filling * num_images_per_prompt <= LARGEST_IMAGES:
        return filling
    return whole_batches(rows, batch_size=batch_size, num_images_per_prompt=num_images_per_prompt)


def expected_workers(cluster: ClusterConfig) -> int | None:
    """How many workers a job is likely to have, by its configuration alone; None: nothing says."""
    if cluster.executor == "in_process":
        return 1
    if named := cluster.num_workers or cluster.max_workers:
        return named
    if cluster.min_workers > 1:
        return cluster.min_workers
    return LOCAL_WORKERS if cluster.address is None else None


def whole_batches(num_rows: int, *, batch_size: int, num_images_per_prompt: int = 1) -> int:
    """Round rows down to where their images fill batches, or nearly: the rest would be padding.

    Returns:
        From 1 to `num_rows`; `num_rows` itself where its images are less than a batch.
    """
    filling = _rows_of_whole_batches(batch_size, num_images_per_prompt)
    if num_rows >= filling:
        return num_rows // filling * filling
    batches = num_rows * num_images_per_prompt // batch_size
    return batches * batch_size // num_images_per_prompt or num_rows


def _rows_of_whole_batches(batch_size: int, num_images_per_prompt: int) -> int:
    """The fewest rows whose images fill batches without a rest."""
    return batch_size // math.gcd(batch_size, num_images_per_prompt)

"""Images per second of the job beside a bare in-memory loop, interleaved in one run.

    python tests/bench/job_against_loop.py [--rounds 5] [--rows 192] [--steps 25]

The loop is what a script would do: diffusers' own pipeline, the same prompts, settings and batch
size, images kept in memory, nothing read or written. The job is one worker of ours, end to end,
from a Parquet file to committed objects. Both run in this process on one thread; loading the model
is not counted on either side. A third side is the loop with our sampler in diffusers' place.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from diffusers import LDMTextToImagePipeline

from ldm_batch.config import (
    CallConfig,
    ClusterConfig,
    JobConfig,
    ModelConfig,
    SinkConfig,
    SourceConfig,
)
from ldm_batch.demo.world import caption, draw_specs
from ldm_batch.generate.batches import plan_images
from ldm_batch.generate.choose import choose
from ldm_batch.generate.text_to_image import TEXT_TO_IMAGE
from ldm_batch.identity import NEWEST_FORM, PLAN_PATH
from ldm_batch.plan.make import make_plan
from ldm_batch.plan.stored import PLAN_FORMAT, plan_document
from ldm_batch.records import Call, Row, Shard
from ldm_batch.storage import Store
from ldm_batch.worker import Terms, Worker, WorkerSpec

MODEL = Path(__file__).parents[2] / "ldm_batch/demo/models/text_to_image"
BATCH_SIZE, GUIDANCE = 16, 2.0


def make_job(folder: Path, prompts: list[str], steps: int) -> JobConfig:
    pq.write_table(pa.table({"prompt": prompts}), folder / "prompts.parquet")
    return JobConfig(
        model=ModelConfig(path="demo:text_to_image"),
        call=CallConfig(num_inference_steps=steps, guidance_scale=GUIDANCE),
        source=SourceConfig(uri=[str(folder / "prompts.parquet")]),
        sink=SinkConfig(uri=str(folder / "out")),
        cluster=ClusterConfig(executor="in_process"),
        batch_size=BATCH_SIZE,
        rows_per_shard=64,
    )


def plan_shards(job: JobConfig, native_size: tuple[int, int]) -> tuple[Shard, ...]:
    images = {"source": {"carry": {}}}
    document = plan_document(images, NEWEST_FORM, columns=[], models={}, config={}, environment={})
    store = Store(str(job.sink.uri))
    task = TEXT_TO_IMAGE.columns
    sizes = {"document": document, "native_size": native_size}
    return make_plan(job, store, None, task=task, **sizes).shards


def plan_of(terms: Terms) -> bytes:
    """The plan that a worker asks for before it commits."""
    return json.dumps({"format": PLAN_FORMAT, "fingerprint": terms.fingerprint}).encode()


def timed(side: Callable[[], None]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    side()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=192)
    parser.add_argument("--steps", type=int, default=25)
    options = parser.parse_args()
    torch.set_num_threads(1)
    prompts = [caption(spec) for spec in draw_specs(0, options.rows)]
    theirs = LDMTextToImagePipeline.from_pretrained(MODEL)
    theirs.set_progress_bar_config(disable=True)
    with tempfile.TemporaryDirectory() as name:
        job = make_job(Path(name), prompts, options.steps)
        found = choose(job).find_models()
        lock, native_size = found.lock, found.native_size
        ours = choose(job).load(lock)
        spec = WorkerSpec(job, lock, native_size)
        columns = TEXT_TO_IMAGE.columns.of_dataset(NEWEST_FORM.number, {})
        terms = Terms("bench", NEWEST_FORM.number, tuple(columns), {"": "demo"})
        shards = plan_shards(job, native_size)
        height, width = native_size
        call = Call(
            num_inference_steps=options.steps, guidance_scale=GUIDANCE, height=height, width=width
        )
        rows = [
            Row(
                index=i,
                input_row=i,
                key=str(i),
                inputs={"prompt": prompt, "negative_prompt": ""},
                call=call,
                seed=None,
            )
            for i, prompt in enumerate(prompts)
        ]
        images = plan_images(TEXT_TO_IMAGE, rows, NEWEST_FORM, job_seed=0, num_images=1)
        requests = [TEXT_TO_IMAGE.make_request(image, None) for image in images]
        kept: list[object] = []

        def loop() -> None:
            kept.clear()
            for start in range(0, len(prompts), BATCH_SIZE):
                generators = [torch.Generator().manual_seed(start + i) for i in range(BATCH_SIZE)]
                batch = prompts[start : start + BATCH_SIZE]
                kept.extend(
                    theirs(
                        batch,
                        num_inference_steps=options.steps,
                        guidance_scale=GUIDANCE,
                        generator=generators[: len(batch)],
                    ).images
                )

        def our_loop() -> None:
            kept.clear()
            for start in range(0, len(requests), BATCH_SIZE):
                kept.extend(ours.generate(requests[start : start + BATCH_SIZE]))

        def whole_job() -> None:
            with tempfile.TemporaryDirectory() as sink:
                store = Store(sink)
                store.publish(PLAN_PATH, plan_of(terms), exclusive=True)
                worker = Worker(spec, ours, store)
                for shard in shards:
                    worker.make_shard(shard, terms)

        sides = {"diffusers loop": loop, "our sampler, bare": our_loop, "whole job": whole_job}
        for side in sides.values():
            side()
        laps: dict[str, list[tuple[float, float]]] = {label: [] for label in sides}
        for _ in range(options.rounds):
            for label, side in sides.items():
                laps[label].append(timed(side))
        for label, pairs in laps.items():
            wall = statistics.median(lap[0] for lap in pairs)
            cpu = statistics.median(lap[1] for lap in pairs)
            ratios = [
                base[0] / lap[0] for base, lap in zip(laps["diffusers loop"], pairs, strict=True)
            ]
            print(
                f"{label:18} {options.rows / wall:7.2f} images/s  {options.rows / cpu:7.2f} images "
                f"per core-second  x{statistics.median(ratios):.3f} of the loop (wall, median)"
            )


if __name__ == "__main__":
    main()

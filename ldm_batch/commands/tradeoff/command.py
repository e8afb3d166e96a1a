"""Time against quality on a job's own prompts: `python -m ldm_batch tradeoff SOURCE`.

Runs schedulers x steps on a sample of rows, the same seeds for all, and writes a table, a plot and
a contact sheet side by side, so that a user chooses for their own model. Writes no dataset.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from ldm_batch.columns import COLUMNS
from ldm_batch.commands.ending import ends
from ldm_batch.commands.program import program
from ldm_batch.commands.tradeoff.measure import Setting, ShareRight, cannot_tell, measure
from ldm_batch.commands.tradeoff.show import write_results
from ldm_batch.config import (
    CallConfig,
    JobConfig,
    ModelConfig,
    SchedulerConfig,
    SourceConfig,
    with_size,
)
from ldm_batch.config.bounds import fits, one_of, refuse, within
from ldm_batch.dataset import Dataset, find_sink
from ldm_batch.errors import JobError
from ldm_batch.generate.choose import choose
from ldm_batch.generate.ldm import LDM
from ldm_batch.identity import NEWEST_FORM, Form
from ldm_batch.plan.inputs import Inputs
from ldm_batch.plan.make import make_plan
from ldm_batch.plan.save_inputs import store_inputs
from ldm_batch.plan.stored import load_plan
from ldm_batch.plan.stored_inputs import where_to_read
from ldm_batch.read.input_types import InputTypes, encode_carried
from ldm_batch.read.rows import RowContext
from ldm_batch.read.shard import ShardRows, read_shard
from ldm_batch.records import Request, Row
from ldm_batch.storage import Store

SCHEDULERS = ("ddim", "dpmpp_2m", "unipc")
STEPS = (5, 10, 20, 50)
MAX_SHARDS_READ, MAX_PROMPTS = 8, 100_000
Item = TypeVar("Item")


def job_of(source: str, options: argparse.Namespace) -> tuple[JobConfig, Form]:
    """Return the job of a dataset that has a plan, or one made of the command line, and the form
    by which its images are named and seeded.

    Raises:
        JobError: the dataset's plan cannot be read.
    """
    store = find_sink(source) if Path(source).is_dir() else None
    if store is not None and (plan := load_plan(store)) is not None:
        return _job_of_plan(Dataset(store, plan)), plan.form
    job = JobConfig(source=SourceConfig(uri=source, columns={"prompt": options.column}))
    job.model = ModelConfig(path=options.model)
    job.sink.uri = str(options.output)
    job.call = CallConfig(guidance_scale=options.guidance_scale)
    return job, NEWEST_FORM


def _job_of_plan(dataset: Dataset) -> JobConfig:
    job = dataset.job
    if choose(job).task.columns.main != "prompt":
        raise JobError(
            "the trade-off is measured on prompts; the rows of this dataset's task have none"
        )
    if job.model.engine != LDM.name:
        raise JobError(
            "the trade-off is measured of our own loop, engine ldm; this dataset's engine is "
            f"{job.model.engine}"
        )
    return job


def sample_rows(job: JobConfig, form: Form, num_rows: int) -> list[Row]:
    """Return valid rows spread evenly over the job's input.

    Raises:
        JobError: the input cannot be read or has no valid row.
    """
    chosen = choose(job)
    task = chosen.task.columns
    size = chosen.find_models().native_size
    call = with_size(job.call, size)
    found: list[ShardRows] = []
    with TemporaryDirectory(prefix="ldm_batch-") as folder:  # what is text becomes Parquet there
        store = Store(folder)
        with closing(Inputs(job.source, store)) as inputs:
            inputs.look(None)
            plan = make_plan(
                job, store, None, inputs, task=task, identify=_types_alone, native_size=size
            )
            store_inputs(store, inputs, plan)
        for shard in _spread(plan.shards, MAX_SHARDS_READ):
            stored, source = where_to_read(shard, job.source, store)
            context = RowContext(source, call, form, types=plan.types)
            found.append(read_shard(stored, task, chosen.task.parse_row, context))
    rows = [row for read in found for row in read.rows]
    if not rows:
        raise JobError(f"{job.source.uri}: no valid rows to try")
    first_size = (rows[0].call.height, rows[0].call.width)
    return _spread([r for r in rows if (r.call.height, r.call.width) == first_size], num_rows)


def _types_alone(types: InputTypes) -> dict[str, Any]:
    """Of what a plan stores, that by which rows are read."""
    source = {"carry": types.words, "folders": types.folders}
    return {"images": {"source": source}, "carried": encode_carried(types.carried)}


def _spread(values: Sequence[Item], num: int) -> list[Item]:
    """Take `num` of the values at even distances, or all if there are fewer."""
    step = max(1.0, len(values) / num)
    return [values[int(i * step)] for i in range(min(num, len(values)))]


def settings_of(options: argparse.Namespace, job: JobConfig) -> list[Setting]:
    """Return what to try, the reference first: the presets, or schedulers x steps."""
    if options.presets:
        from ldm_batch.diffusion.presets import PRESETS

        return [Setting(n, p.scheduler, p.num_inference_steps) for n, p in PRESETS.items()]
    combinations = [
        (s, n) for s in options.schedulers.split(",") for n in _steps("--steps", options.steps)
    ]
    name, _, number = options.reference.partition(":")
    if not number:
        raise JobError(f"--reference: {options.reference!r} is not like ddim:100")
    reference = (name, *_steps("--reference", number))
    settings = {} if job.scheduler.name == "from_model" else job.scheduler.settings
    return [
        Setting(f"{s} {n}", SchedulerConfig(name=s, settings=settings), n)
        for s, n in dict.fromkeys([reference, *combinations])
    ]


def _steps(option: str, text: str) -> list[int]:
    column = COLUMNS["num_inference_steps"]
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise JobError(f"{option}: {text!r} is not like 10,20") from error
    refuse(problem for number in numbers for problem in fits(option, number, column))
    return numbers


def requests_of(rows: Sequence[Row], job: JobConfig, form: Form) -> list[Request]:
    """Return the first image of each row, with the seed that the job itself would use."""
    return [
        Request(
            inputs=row.inputs,
            seed=form.image_seed(job.seed, row.key, 0, row.seed),
            call=row.call,
        )
        for row in rows
    ]


def run(options: argparse.Namespace, share_right: ShareRight) -> Path:
    """Measure, write the results and return their folder.

    Args:
        share_right: who judges whether pictures show what their prompts say.

    Raises:
        JobError: the input, the model or a setting is wrong.
    """
    _check(options)
    job, form = job_of(options.source, options)
    rows = sample_rows(job, form, options.num_prompts)
    settings = settings_of(options, job)
    print(f"{len(rows)} prompts, {len(settings)} settings; the first is the reference")
    results = measure(job, requests_of(rows, job, form), settings, share_right)
    write_results(results, [row.inputs["prompt"] for row in rows], options.output)
    return Path(options.output)


def _check(options: argparse.Namespace) -> None:
    """Refuse what could not work, before anything is measured.

    Raises:
        JobError: names the options.
    """
    from ldm_batch.diffusion.schedulers import NAMES, SCHEDULER_CLASSES

    known = ("from_model", *NAMES, *SCHEDULER_CLASSES)
    refuse(
        [
            *within("--num-prompts", options.num_prompts, 1, MAX_PROMPTS),
            *fits("--guidance-scale", options.guidance_scale, COLUMNS["guidance_scale"]),
            *(
                p
                for name in options.schedulers.split(",")
                for p in one_of("--schedulers", name, known)
            ),
            *one_of("--reference", options.reference.partition(":")[0], known),
        ]
    )
    for path in (options.output, *options.output.absolute().parents):
        if path.is_symlink() or path.exists():
            if not path.is_dir() or not os.access(path, os.W_OK):
                raise JobError(
                    f"--output: {options.output}: {path} is no folder that can be written to; name "
                    "another"
                )
            return


def make_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(prog=program("tradeoff"), description=__doc__)
    parser.add_argument("source", help="a planned dataset, or Parquet: file, glob or folder")
    parser.add_argument("--output", type=Path, default=Path("tradeoff"))
    parser.add_argument("--column", default="prompt", help="prompt column of a Parquet source")
    parser.add_argument("--model", default="demo:text_to_image", help="folder, for Parquet sources")
    parser.add_argument("--guidance-scale", type=float, default=2.0, help="for Parquet sources")
    parser.add_argument("--num-prompts", type=int, default=16)
    parser.add_argument("--schedulers", default=",".join(SCHEDULERS))
    parser.add_argument("--steps", default=",".join(map(str, STEPS)))
    parser.add_argument("--reference", default="ddim:100", help="scheduler:steps to compare with")
    parser.add_argument("--presets", action="store_true", help="compare the named speeds")
    return parser


@ends
def main(arguments: Sequence[str] | None = None, *, share_right: ShareRight = cannot_tell) -> None:
    """Parse the command line, run, print the table.

    Args:
        share_right: who judges whether pictures show what their prompts say.
    """
    options = make_parser().parse_args(arguments)
    folder = run(options, share_right)
    print((folder / "tradeoff.md").read_text())
    print(f"plot and contact sheet: {folder}/")

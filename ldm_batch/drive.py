"""Drive a job: plan it, hand its missing shards to workers, count, and report.

Everything that happens between a validated configuration and an exit code; must not know where
the configuration came from (run.py does).
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from typing import TextIO

from ldm_batch import identity
from ldm_batch.cluster import run_on_ray, run_once_on_ray
from ldm_batch.cluster.attempts import run_in_process, run_once_in_process
from ldm_batch.config import JobConfig
from ldm_batch.errors import JobError, StorageError
from ldm_batch.generate.choose import Choice, choose, measure_batch_size, validate_job
from ldm_batch.identity import NEWEST_FORM
from ldm_batch.plan.fingerprint import images_document
from ldm_batch.plan.make import carry_schema, make_plan, select_shards
from ldm_batch.plan.recorded import anchor, model_name, recorded_config, resume_command
from ldm_batch.plan.stored import Plan, load_document, load_plan, plan_document, save_plan
from ldm_batch.progress import Progress, Tally
from ldm_batch.records import Failure, Notice, Outcome, Receipt, Shard
from ldm_batch.storage import Store, open_sink
from ldm_batch.storage.lease import hold_lease
from ldm_batch.versions import versions
from ldm_batch.worker import WorkerSpec, load_worker
from ldm_batch.write.commit import committed_shards
from ldm_batch.write.receipt import roll_forward, write_failure

EXIT_DONE, EXIT_SHARDS_FAILED = 0, 1
MIN_ROWS_TO_JUDGE = 200
"""Rejected rows are a share of at least so many: a few bad rows at the start are no bad input."""
MAX_NAMED = 20
"""Failed shards that the command which makes them names; more, and it makes all that is missing."""


def run_job(job: JobConfig, *, overrides: Sequence[str] = (), out: TextIO = sys.stdout) -> int:
    """Run one job: what is missing of its dataset, or the shards that it names.

    Args:
        job: the configuration; checked here.
        overrides: the command's own settings, to print the command that resumes.
        out: where progress and the report go.

    Returns:
        0 if every shard to do is committed, 1 if some failed.

    Raises:
        JobError: the job cannot run or must stop; nothing that was committed is lost.
    """
    chosen = choose(anchor(validate_job(job).job))
    store = open_sink(chosen.job.sink)
    lock, native_size = chosen.find_models()
    command = resume_command(chosen.job, overrides)
    try:
        chosen = _settle_batch_size(chosen, store, native_size, out)
        job = chosen.job
        plan = _settle_plan(chosen, store, lock, native_size, command)
        done = committed_shards(store)
        todo = select_shards(plan, done, named=job.shards, overwrite=job.overwrite)
        _print_plan(plan, todo, done, store, out)
        if job.dry_run or not todo:
            return EXIT_DONE
        turn = _claim(store, out)
        roll_forward(store, done)
    except StorageError as error:
        raise JobError(str(error)) from error
    names = {stage.section: model_name(stage.model) for stage in chosen.stages}
    spec = WorkerSpec(
        job,
        plan.fingerprint,
        plan.form.number,
        lock,
        native_size,
        {"": chosen.engine.name, **names},
    )
    with turn:
        tally = _make_shards(job, store, spec, todo, out)
    _print_report(tally, store, command, out)
    return EXIT_SHARDS_FAILED if tally.failures else EXIT_DONE


def _claim(store: Store, out: TextIO) -> AbstractContextManager[None]:
    """Prove the store; what must be held while shards are made: on a good store, nothing."""
    if store.prove_exclusive():
        return nullcontext()
    _tell(
        out,
        f"warning: {store.root} lets a second writer replace what the first created; going on as "
        "sink.allow_unconditional=true asks: one driver at a time, and a shard that is made twice "
        "must come out as the same bytes",
    )
    return hold_lease(store)


def _settle_batch_size(
    chosen: Choice, store: Store, native_size: tuple[int, int], out: TextIO
) -> Choice:
    """The job with `batch_size: auto` settled: by the plan, or measured where a worker runs."""
    job = chosen.job
    if job.batch_size != "auto":
        return chosen
    planned = load_document(store)
    if planned is not None:
        size = int(planned["images"]["batch_size"])
    elif job.dry_run:
        size = 1
    else:
        measure = partial(measure_batch_size, job, native_size)
        tell = partial(_tell, out)
        tell("batch_size: to be measured where a worker runs")
        if job.cluster.executor == "in_process":
            size = int(run_once_in_process(measure))
        else:
            size = int(run_once_on_ray(measure, job.cluster, tell))
        tell(f"batch_size: {size}, measured for this model and machine")
    return choose(dataclasses.replace(job, batch_size=size))


def _settle_plan(
    chosen: Choice,
    store: Store,
    lock: Mapping[str, str],
    native_size: tuple[int, int],
    command: str,
) -> Plan:
    """The plan with this run's new input, stored unless it is a dry run.

    Of two drivers that plan at once one stores first; the other starts again from what it stored.
    """
    environment = {"command": command, "versions": versions()}
    job, task = chosen.job, chosen.task
    config, carry = recorded_config(job), carry_schema(job.source, task.columns)
    while True:
        planned = load_plan(store)
        if planned is None:  # a plan that cannot be worked must not be stored
            chosen.engine.check_models(job, task)
        form = planned.form if planned else NEWEST_FORM
        of_task = task.identify(job, lock)
        images = images_document(job, lock, carry, form, task=task.columns, of_task=of_task)
        document = plan_document(images, form, config=config, environment=environment)
        plan = make_plan(
            job,
            store,
            planned,
            task=task.columns,
            document=document,
            native_size=native_size,
        )
        if job.dry_run or save_plan(store, plan):
            return plan


def _make_shards(
    job: JobConfig, store: Store, spec: WorkerSpec, todo: Sequence[Shard], out: TextIO
) -> Tally:
    run: Callable[..., Iterator[Receipt | Failure | Notice]] = (
        run_in_process if job.cluster.executor == "in_process" else run_on_ray
    )
    tally = Tally()
    num_rows = sum(shard.num_rows for shard in todo)
    progress = Progress(out, num_rows=num_rows, num_shards=len(todo))
    progress.show(tally)
    cluster = job.cluster
    if job.overwrite or job.sink.allow_unconditional:  # a late copy might replace what stands
        cluster = dataclasses.replace(cluster, copy_stragglers=False)
    with closing(run(partial(load_worker, spec), todo, cluster)) as events:  # type: ignore[type-var]
        try:
            for event in events:
                if isinstance(event, Notice):
                    progress.end()
                    _tell(out, event.message)
                    continue
                tally.add(event)
                if isinstance(event, Failure):
                    progress.end()
                    _record_failure(store, event, out)
                progress.show(tally)
                _check_error_budget(job, tally, num_rows)
            progress.show(tally, force=True)
        finally:
            progress.end()
    return tally


def _record_failure(store: Store, failure: Failure, out: TextIO) -> None:
    _tell(out, f"shard {failure.shard:05d} failed: {failure.message}")
    try:
        write_failure(store, failure)
    except StorageError as error:
        _tell(out, f"and could not be recorded: {error}")


def _check_error_budget(job: JobConfig, tally: Tally, num_rows: int) -> None:
    """Stop a job that rejects too many of its rows."""
    judged = max(tally.num_rows, min(MIN_ROWS_TO_JUDGE, num_rows))
    if tally.num_rejected > job.max_rejected_fraction * judged:
        reasons = ", ".join(f"{n} {reason}" for reason, n in tally.rejected.most_common())
        raise JobError(
            f"stopped: {tally.num_rejected} of {tally.num_rows} rows rejected ({reasons}), more "
            f"than max_rejected_fraction={job.max_rejected_fraction}. What is committed stays; "
            "raise the limit and run the same command again, or mend the input for a new sink"
        )


def _print_plan(
    plan: Plan, todo: Sequence[Shard], done: set[int], store: Store, out: TextIO
) -> None:
    files = {shard.file.name for shard in plan.shards}
    for note in plan.notes:
        _tell(out, note)
    if plan.new_shards and len(plan.new_shards) < len(plan.shards):
        _tell(out, f"new input: {len(plan.new_shards)} shards appended to the plan")
    _tell(
        out,
        f"plan: {len(files)} files, {plan.num_rows:,} rows, {len(plan.shards)} shards; "
        f"{len(done & {s.index for s in plan.shards})} done, {len(todo)} to do "
        f"({sum(shard.num_rows for shard in todo):,} rows) -> {store.root}",
    )


def _print_report(tally: Tally, store: Store, command: str, out: TextIO) -> None:
    _tell(
        out,
        f"{tally.num_images:,} images from {tally.num_rows - tally.num_rejected:,} rows in "
        f"{tally.num_shards} shards; {tally.num_rejected:,} rows rejected",
    )
    for reason, count in tally.rejected.most_common():
        _tell(out, f"  {count:,} {reason}")
    if tally.lost[Outcome.FOUND]:
        _tell(out, f"{tally.lost[Outcome.FOUND]} shards were made by another run meanwhile")
    if tally.lost[Outcome.LOST_TO_SAME]:
        _tell(out, f"{tally.lost[Outcome.LOST_TO_SAME]} shards were also made by another attempt")
    if tally.lost[Outcome.LOST_TO_OTHER]:
        _tell(
            out,
            f"warning: {tally.lost[Outcome.LOST_TO_OTHER]} shards were made by another attempt "
            "with other bytes (other hardware or versions?); the first to commit stands",
        )
    if tally.failures:
        indices = sorted(failure.shard for failure in tally.failures)
        listed = ",".join(map(str, indices[:MAX_NAMED]))
        _tell(out, f"{len(indices)} shards failed; to make them:")
        rest = "" if len(indices) > MAX_NAMED else f" 'shards=[{listed}]'"
        _tell(out, f"  {command}{rest}")
    _tell(out, f"dataset: {store.uri(identity.DATA_FOLDER)}")


def _tell(out: TextIO, message: str) -> None:
    """Print a line now: logs of a job that waits must not stand in a buffer."""
    print(message, file=out, flush=True)

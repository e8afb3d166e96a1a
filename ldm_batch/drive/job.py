"""Drive a job: plan it, hand its missing shards to workers, count, and report.

Everything that happens between a validated configuration and an exit code; must not know where
the configuration came from (`run/` does).
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TextIO

from ldm_batch.cluster import run_on_ray, run_once_on_ray
from ldm_batch.cluster.attempts import run_in_process, run_once_in_process
from ldm_batch.config import JobConfig, source_uris
from ldm_batch.dataset import find_sink
from ldm_batch.drive.budget import Budget
from ldm_batch.drive.report import print_model, print_plan, print_report
from ldm_batch.drive.revisions import with_revisions
from ldm_batch.drive.settle import Planning, StartAgain, Work
from ldm_batch.errors import JobError, NoRoomError, StorageError, TryLaterError
from ldm_batch.generate.choose import Choice, choose, measure_batch_size, validate_job
from ldm_batch.generate.task import FoundModels
from ldm_batch.plan.command_line import resume_command, variables_to_set
from ldm_batch.plan.own import refuse_own_sink
from ldm_batch.plan.recorded import anchor
from ldm_batch.plan.runs import show_life
from ldm_batch.plan.stored import load_document
from ldm_batch.progress import Progress, Tally, tell
from ldm_batch.records import Failure, Notice, Receipt, Shard
from ldm_batch.storage import Store, open_sink
from ldm_batch.storage.lease import hold_lease
from ldm_batch.versions import versions
from ldm_batch.worker import Terms, WorkerSpec, load_worker
from ldm_batch.write.receipt import roll_forward, write_failure

EXIT_DONE, EXIT_SHARDS_FAILED = 0, 1


@dataclass(frozen=True, slots=True)
class JobResult:
    """What a run made of its dataset; what was there before counts in none of it."""

    sink: str
    """The dataset's folder."""
    num_shards: int
    """Shards that this run has made, or found made by another one meanwhile."""
    num_rows: int
    """Rows of these: with images, or rejected."""
    num_images: int
    rejected: dict[str, int]
    """Rejected rows by reason."""
    failed: dict[int, str]
    """Shards that could not be made, and why; the same job makes what is missing."""

    @property
    def exit_code(self) -> int:
        """What the command ends with: 0 if every shard to do is committed, 1 if some failed."""
        return EXIT_SHARDS_FAILED if self.failed else EXIT_DONE


def run_job(job: JobConfig, *, overrides: Sequence[str] = (), out: TextIO = sys.stdout) -> int:
    """Run one job to its exit code: 0 if every shard to do is committed, 1 if some failed.

    See `drive_job` for the arguments and what it raises.
    """
    return drive_job(job, overrides=overrides, out=out).exit_code


def drive_job(job: JobConfig, *, overrides: Sequence[str], out: TextIO) -> JobResult:
    """Run one job: what is missing of its dataset, or the shards that it names.

    Args:
        job: the configuration; checked here.
        overrides: the command's own words, to print the command that resumes: settings, and before
            them `--config-dir=FOLDER` where there is one.
        out: where progress and the report go.

    Raises:
        JobError: the job cannot run or must stop; nothing that was committed is lost, and one that
            could not run has stored nothing.
    """
    chosen = choose(_beside_data(anchor(validate_job(job).job)))
    store = open_sink(chosen.job.sink)
    refuse_own_sink(source_uris(chosen.job.source), store)
    command = resume_command(job, chosen.job, overrides)
    try:
        chosen = with_revisions(
            chosen, partial(_stored_document, chosen, store), partial(tell, out)
        )
        models = chosen.find_models()
        print_model(chosen.job, overrides, out)
        while True:
            try:
                return _result(_run(chosen, store, models, command, out), store)
            except StartAgain:
                tell(out, "another driver planned this dataset first: starting again by its plan")
                chosen = choose(dataclasses.replace(chosen.job, plan_again=False))
    except NoRoomError as error:
        raise TryLaterError(str(error)) from error
    except StorageError as error:
        raise JobError(str(error)) from error
    finally:
        store.remove_empty_folders()


def _beside_data(job: JobConfig) -> JobConfig:
    """The job with the folder of its dataset where its sink names the `data/` in it."""
    root = find_sink(str(job.sink.uri), job.sink.access).root
    return dataclasses.replace(job, sink=dataclasses.replace(job.sink, uri=root))


def _run(
    chosen: Choice,
    store: Store,
    models: FoundModels,
    command: str,
    out: TextIO,
) -> Tally:
    is_measured = chosen.job.batch_size == "auto"
    chosen = _settle_batch_size(chosen, store, models.native_size, out)
    planning = Planning(
        chosen,
        store,
        models=models,
        command=command,
        is_batch_size_measured=is_measured,
    )
    with closing(planning):
        return _work_off(chosen, store, models, planning, command, out)


def _work_off(
    chosen: Choice,
    store: Store,
    models: FoundModels,
    planning: Planning,
    command: str,
    out: TextIO,
) -> Tally:
    """Do what a plan has to do, once it is stored."""
    work, say = planning.look(), partial(tell, out)
    print_plan(work, store, out)
    if chosen.job.dry_run:
        planning.compare(work, say)
        return Tally()
    if not work.todo and work.is_news:  # nothing is left that could refuse
        work = planning.begin(versions(), say)
    if not work.todo:
        return Tally()
    budget = Budget(chosen.job, store)
    budget.expect(work)
    budget.check(Tally())
    spec = WorkerSpec(chosen.job, models.lock, models.native_size)
    with _claim(store, out):
        tally = _make_shards(spec, store, planning, work, budget, out)
    to_add = variables_to_set(chosen.job.cluster.runtime_env)
    print_report(tally, store, command, out, to_add=to_add)
    return tally


def _result(tally: Tally, store: Store) -> JobResult:
    return JobResult(
        sink=store.root,
        num_shards=tally.num_shards,
        num_rows=tally.num_rows,
        num_images=tally.num_images,
        rejected=dict(tally.rejected.most_common()),
        failed={failure.shard: failure.message for failure in tally.failures},
    )


def _claim(store: Store, out: TextIO) -> AbstractContextManager[None]:
    """Prove the store; what must be held while shards are made: on a good store, nothing."""
    if store.prove_exclusive():
        return nullcontext()
    tell(
        out,
        f"warning: {store.root} lets a second writer replace what the first created; going on as "
        "sink.allow_unconditional=true asks: one driver at a time, and a shard that is made twice "
        "must come out as the same bytes",
    )
    return hold_lease(store)


def _stored_document(chosen: Choice, store: Store) -> Mapping[str, Any] | None:
    """The document of the plan that the job goes on with, if the sink has one."""
    return None if chosen.job.plan_again else load_document(store)


def _settle_batch_size(
    chosen: Choice, store: Store, native_size: tuple[int, int], out: TextIO
) -> Choice:
    """The job with `batch_size: auto` settled: by the plan, or measured where a worker runs."""
    job = chosen.job
    if job.batch_size != "auto":
        return chosen
    planned = _stored_document(chosen, store)
    if planned is not None:
        size = int(planned["images"]["batch_size"])
    elif job.dry_run:
        size = 1
    else:
        measure = partial(measure_batch_size, job, native_size)
        say = partial(tell, out)
        say("batch_size: to be measured where a worker runs")
        if job.cluster.executor == "in_process":
            size = int(run_once_in_process(measure))
        else:
            size = int(run_once_on_ray(measure, job.cluster, say))
        say(f"batch_size: {size}, measured for this model and machine")
    return choose(dataclasses.replace(job, batch_size=size))


def _make_shards(
    spec: WorkerSpec,
    store: Store,
    planning: Planning,
    work: Work,
    budget: Budget,
    out: TextIO,
) -> Tally:
    """Make what is to be done, once a worker has loaded and the plan is stored."""
    job, cluster, tally = spec.job, spec.job.cluster, Tally()
    progress = Progress(out)
    progress.expect(work.todo)
    progress.show(tally)
    if job.overwrite or job.sink.allow_unconditional:  # a late copy might replace what stands
        cluster = dataclasses.replace(cluster, copy_stragglers=False)

    def begin(environment: Mapping[str, str]) -> tuple[Sequence[Shard], Terms]:
        now = planning.begin(environment, partial(tell, out))
        if now.todo != work.todo:
            progress.end()
            print_plan(now, store, out)
        roll_forward(store, now.done - {s.index for s in now.todo}, now.plan.fingerprint)
        running.enter_context(show_life(store))
        progress.expect(now.todo)
        budget.expect(now)
        return now.todo, planning.terms(now.plan)

    run: Callable[..., Iterator[Receipt | Failure | Notice]] = (
        run_in_process if cluster.executor == "in_process" else run_on_ray
    )
    events = run(partial(load_worker, spec), work.todo, cluster, begin)
    with ExitStack() as running, closing(events):  # type: ignore[type-var]
        try:
            for event in events:
                if isinstance(event, Notice):
                    progress.end()
                    tell(out, event.message)
                    continue
                tally.add(event)
                if isinstance(event, Failure):
                    progress.end()
                    _record_failure(store, event, out)
                progress.show(tally)
                budget.check(tally)
            progress.show(tally, force=True)
        finally:
            progress.end()
    return tally


def _record_failure(store: Store, failure: Failure, out: TextIO) -> None:
    tell(out, f"shard {failure.shard:05d} failed: {failure.message}")
    try:
        write_failure(store, failure)
    except StorageError as error:
        tell(out, f"and could not be recorded: {error}")

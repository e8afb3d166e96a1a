"""A job's plan: made in memory, and stored when all that can refuse the job has spoken.

That is when the first worker has loaded its model, and before it is given a shard. Until then a
command leaves a sink as it was. Must not know who asks, nor how shards are made.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ldm_batch import identity
from ldm_batch.columns import METADATA_KEY
from ldm_batch.config import shard_ranges
from ldm_batch.errors import JobError
from ldm_batch.generate.choose import Choice
from ldm_batch.identity import NEWEST_FORM
from ldm_batch.plan.fingerprint import images_document
from ldm_batch.plan.make import carry_schema, make_plan, select_shards
from ldm_batch.plan.recorded import (
    model_name,
    planned_model_names,
    recorded_config,
    refuse_other_environment,
)
from ldm_batch.plan.runs import living_runs
from ldm_batch.plan.stored import (
    Plan,
    load_document,
    load_plan,
    plan_document,
    remove_plan,
    save_plan,
)
from ldm_batch.records import Shard
from ldm_batch.storage import Store
from ldm_batch.versions import decisive_differences, versions
from ldm_batch.worker import Terms
from ldm_batch.write.commit import committed_shards

MAX_TOLD = 5
"""Names in a message."""


class StartAgain(Exception):
    """Another driver stored its plan first, with a batch size that this one had yet to measure."""


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """What a run is to do, as the sink stands now."""

    plan: Plan
    is_stored: bool
    """Whether the sink held a plan before this run: what is new of it may not be stored yet."""
    done: set[int]
    """Shards whose object stands."""
    todo: list[Shard]


class Planning:
    """The plan of one run, from the first look at its sink until it is stored."""

    def __init__(
        self,
        chosen: Choice,
        store: Store,
        *,
        lock: Mapping[str, str],
        native_size: tuple[int, int],
        command: str,
        is_batch_size_measured: bool = False,
    ) -> None:
        """Nothing is read or written yet.

        Args:
            chosen: the job, its `batch_size` settled.
            lock: SHA-256 of every file that loading its models reads.
            native_size: the model's own height and width in pixels.
            command: what resumes the job.
            is_batch_size_measured: a plan that another driver stores decides the batch size.
        """
        self._chosen, self._store = chosen, store
        self._lock, self._native_size, self._command = lock, native_size, command
        self._is_measured = is_batch_size_measured
        self._replaced: Mapping[str, Any] | None = None
        """The document of the stored plan that `plan_again` makes way for."""
        self._work: Work | None = None
        self._carry: dict[str, str] = {}
        """Carried columns in the order of the input, which plans of form 1 do not keep."""

    def look(self) -> Work:
        """What there is to do; stores nothing.

        Raises:
            JobError: the stored plan has another fingerprint, the input cannot be read or has
                changed, or an object in `data/` is none of this dataset.
        """
        planned = load_plan(self._store)
        if planned is not None and self._chosen.job.plan_again and self._work is None:
            refuse_to_plan_again(self._store)
            self._replaced = planned.document
        if planned is not None and planned.document == self._replaced:
            planned = None
        if planned is None:  # a plan that cannot be worked must not be stored
            self._chosen.engine.check_models(self._chosen.job, self._chosen.task)
        plan = self.make(planned)
        if planned is None and not self._is_alone(plan):
            return self.look()
        self._work = self._select(plan, is_stored=planned is not None)
        return self._work

    def begin(self, environment: Mapping[str, str], tell: Callable[[str], None]) -> Work:
        """Store what is new of the plan, and say what there is to do by what stands in the sink.

        Of two drivers that store at once one wins; the other goes on with what that one stored.

        Args:
            environment: what the first worker runs on: versions, and its device.
            tell: is told what else images were made on so far.

        Raises:
            JobError: as `look`; or another driver's plan has another fingerprint.
            StartAgain: its batch size is another one, and ours was measured.
        """
        work, is_strict = self._work or self.look(), self._chosen.job.strict_environment
        while True:
            plan = work.plan if work.is_stored else _made_on(work.plan, environment)
            if is_strict:
                refuse_other_environment(_flat(plan.document["environment"]), environment)
            if not work.is_stored and not self._is_alone(plan):
                work = self._look_again()
                continue
            if self._replaced is not None:
                self._make_way()
            if save_plan(self._store, plan):
                break
            work = self._look_again()
        if differing := decisive_differences(_flat(plan.document["environment"]), environment):
            tell(
                f"warning: this dataset was begun with {'; '.join(differing)}: images may differ "
                "in their last bits (strict_environment=true refuses that)"
            )
        return self._select(plan, is_stored=True)

    def terms(self, plan: Plan) -> Terms:
        """What workers need to know of a plan."""
        job, task, form = self._chosen.job, self._chosen.task, plan.form.number
        columns = plan.document.get("columns") or task.columns.of_dataset(form, self._carry)
        recorded = plan.document["environment"]
        return Terms(
            fingerprint=plan.fingerprint,
            form=form,
            columns=tuple((name, kind) for name, kind in columns),
            model_names=planned_model_names(plan.document, self._model_names()),
            environment=_flat(recorded) if job.strict_environment else None,
        )

    def make(self, planned: Plan | None) -> Plan:
        """The plan with this run's new input, by what the sink holds of it; stores nothing."""
        job, task = self._chosen.job, self._chosen.task
        form = planned.form if planned else NEWEST_FORM
        carry = self._carry = carry_schema(job.source, task.columns)
        images = images_document(
            job,
            self._lock,
            carry,
            form,
            task=task.columns,
            of_task=task.identify(job, self._lock),
        )
        document = plan_document(
            images,
            form,
            columns=task.columns.of_dataset(form.number, carry),
            models=self._model_names(),
            config=recorded_config(job),
            environment={"command": self._command, "versions": versions()},
        )
        return make_plan(
            job,
            self._store,
            planned,
            task=task.columns,
            document=document,
            native_size=self._native_size,
        )

    def _is_alone(self, plan: Plan) -> bool:
        """Refuse a dataset that would begin beside objects of others; False if these are there
        because another driver has planned it meanwhile."""
        try:
            refuse_foreign(self._store, plan)
        except JobError:
            if load_document(self._store) in (None, self._replaced):
                raise
            return False
        return True

    def _select(self, plan: Plan, *, is_stored: bool) -> Work:
        job, done = self._chosen.job, committed_shards(self._store)
        named = shard_ranges(job.shards)
        todo = select_shards(plan, done, named=named, overwrite=job.overwrite)
        return Work(plan, is_stored, done, todo)

    def _look_again(self) -> Work:
        try:
            return self.look()
        except JobError as error:
            planned = load_plan(self._store)
            size = planned and planned.document["images"]["batch_size"]
            if self._is_measured and size not in (None, self._chosen.job.batch_size):
                raise StartAgain from error
            raise

    def _make_way(self) -> None:
        """Remove the stored plan, if it still is the one that was looked at."""
        planned = load_plan(self._store)
        if planned is not None and planned.document == self._replaced:
            refuse_to_plan_again(self._store)
            remove_plan(self._store)
        self._replaced = None

    def _model_names(self) -> dict[str, str]:
        names = {stage.section: model_name(stage.model) for stage in self._chosen.stages}
        return {"": self._chosen.engine.name, **names}


def refuse_to_plan_again(store: Store) -> None:
    """Raise a JobError where a stored plan must stay: images were made by it, or are just made."""
    names = _visible(store)
    if names:
        raise JobError(
            f"plan_again: {store.uri(identity.DATA_FOLDER)} holds {names[0]} already, made by the "
            "stored plan; use the planned settings, or write to a new sink"
        )
    if runs := living_runs(store):
        raise JobError(
            f"plan_again: {store.root} is being worked on by {runs[0]}; end that job first (one "
            "that was killed counts as alive for a minute)"
        )


def refuse_foreign(store: Store, plan: Plan) -> None:
    """Refuse to begin a dataset beside objects that are none of its own.

    Raises:
        JobError: names the first object that does not name the plan's fingerprint and its shard.
    """
    for name in _visible(store):
        path = f"{identity.DATA_FOLDER}/{name}"
        index = identity.shard_index(name) if name.endswith(".parquet") else None
        try:
            if index is None or index >= len(plan.shards):
                raise ValueError("no shard of the plan has this name")
            with store.open(path) as file:
                facts = json.loads((pq.read_metadata(file).metadata or {})[METADATA_KEY])
            if facts["fingerprint"] != plan.fingerprint:
                raise ValueError("it was made with other settings")
            if facts["num_rows"] != plan.shards[index].num_rows or facts["shard"] != f"{index:05d}":
                raise ValueError("it was made of other rows")
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            why = str(error).splitlines()[0] if isinstance(error, ValueError) else "it is not ours"
            raise JobError(
                f"{store.uri(path)}: stands where a dataset is to begin, and is none of its "
                f"objects ({why}); remove it, or write to another sink"
            ) from error


def _visible(store: Store) -> list[str]:
    """Names in `data/` that readers would read."""
    return sorted(n for n in store.names(identity.DATA_FOLDER) if not n.startswith("."))


def _made_on(plan: Plan, environment: Mapping[str, str]) -> Plan:
    """A plan that is not stored yet, with what its images are going to be made on."""
    recorded = {
        **plan.document["environment"],
        "versions": {name: v for name, v in environment.items() if name != "device"},
        "device": environment.get("device", ""),
    }
    return dataclasses.replace(plan, document={**plan.document, "environment": recorded})


def _flat(recorded: Mapping[str, Any]) -> dict[str, str]:
    """Versions and device of a plan's environment; one of form 1 has no device."""
    device = {"device": recorded["device"]} if recorded.get("device") else {}
    return {**recorded.get("versions", {}), **device}

"""A job's plan: made in memory, and stored when all that can refuse the job has spoken.

That is when the first worker has loaded its model, and before it is given a shard. Until then a
command leaves a sink as it was. Must not know who asks, nor how shards are made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ldm_batch import identity
from ldm_batch.config import shard_ranges
from ldm_batch.errors import JobError
from ldm_batch.generate.choose import Choice
from ldm_batch.generate.task import FoundModels
from ldm_batch.identity import NEWEST_FORM, Form
from ldm_batch.plan.fingerprint import images_document
from ldm_batch.plan.inputs import Inputs
from ldm_batch.plan.make import make_plan, select_shards
from ldm_batch.plan.own import names_without_receipt, refuse_foreign, visible_names
from ldm_batch.plan.recorded import (
    model_name,
    planned_model_names,
    recorded_config,
    refuse_other_environment,
)
from ldm_batch.plan.runs import living_runs
from ldm_batch.plan.save_inputs import mend_inputs, store_inputs, take_back_inputs
from ldm_batch.plan.stored import Plan, load_plan, plan_document, remove_plan, save_plan
from ldm_batch.read.input_types import InputTypes, encode_carried
from ldm_batch.records import Shard
from ldm_batch.storage import Store
from ldm_batch.versions import decisive_differences, versions
from ldm_batch.worker import Terms
from ldm_batch.write.commit import committed_shards


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

    @property
    def is_news(self) -> bool:
        """Tell whether the sink holds less than the plan."""
        return not self.is_stored or bool(self.plan.new_shards)


class Planning:
    """The plan of one run, from the first look at its sink until it is stored."""

    def __init__(
        self,
        chosen: Choice,
        store: Store,
        *,
        models: FoundModels,
        command: str,
        is_batch_size_measured: bool = False,
    ) -> None:
        """Nothing is read or written yet.

        Args:
            chosen: the job, its `batch_size` settled.
            models: its models, as they were found here.
            command: what resumes the job.
            is_batch_size_measured: a plan that another driver stores decides the batch size.
        """
        self._chosen, self._store = chosen, store
        self._models, self._command = models, command
        self._is_measured = is_batch_size_measured
        self._replaced: Mapping[str, Any] | None = None
        """The document of the stored plan that `plan_again` makes way for."""
        self._work: Work | None = None
        self._has_looked = False
        self._inputs = Inputs(chosen.job.source, store)
        self._carry: Mapping[str, str] = {}
        """Carried columns in the order of the input, which plans of form 1 do not keep."""

    def look(self) -> Work:
        """What there is to do; stores nothing.

        Raises:
            JobError: the stored plan has another fingerprint, the input cannot be read or has
                changed, or an object in `data/` is none of this dataset.
        """
        planned = load_plan(self._store)
        if planned is not None and self._chosen.job.plan_again and not self._has_looked:
            refuse_to_plan_again(self._store)
            self._replaced = planned.document
        if planned is not None and planned.document == self._replaced:
            planned = None
        told: list[str] = []
        if planned is None:  # a plan that cannot be worked must not be stored
            told = self._chosen.engine.check_models(self._chosen.job, self._chosen.task)
        self._has_looked = True
        plan = self.make(planned)
        plan = dataclasses.replace(plan, notes=(*plan.notes, *told))
        work = self._select(plan, is_stored=planned is not None)
        self._work = work if self._is_own(work) else self.look()
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
            if not self._is_own(self._select(plan, is_stored=work.is_stored)):
                work = self._look_again()
                continue
            if self._replaced is not None:
                self._make_way()
            ready, created = store_inputs(self._store, self._inputs, plan)
            if ready is not None and save_plan(self._store, ready):
                plan = ready
                break
            take_back_inputs(self._store, created)
            work = self._look_again()
        if differing := decisive_differences(_flat(plan.document["environment"]), environment):
            tell(
                f"warning: this dataset was begun with {'; '.join(differing)}: images may differ "
                "in their last bits (strict_environment=true refuses that)"
            )
        self._work = None
        settled = self._select(plan, is_stored=True)
        files = {shard.file.name: shard.file for shard in settled.todo}
        mend_inputs(self._store, self._inputs, files.values())
        return settled

    def close(self) -> None:
        """Remove what was made on this machine on the way to a plan."""
        self._inputs.close()

    def compare(self, work: Work, tell: Callable[[str], None]) -> None:
        """Say by what this process runs whether a stored plan's images were made on something else;
        what workers run on, only they can say.

        Raises:
            JobError: they were, and the job is strict.
        """
        recorded = _flat(work.plan.document["environment"])
        if self._chosen.job.strict_environment:
            refuse_other_environment(recorded, versions())
        if differing := decisive_differences(recorded, versions()):
            tell(f"note: this dataset was begun with {'; '.join(differing)} (on this machine)")

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
            types=plan.types,
        )

    def make(self, planned: Plan | None) -> Plan:
        """The plan with this run's new input, by what the sink holds of it; stores nothing."""
        self._inputs.look(planned)
        return make_plan(
            self._chosen.job,
            self._store,
            planned,
            self._inputs,
            task=self._chosen.task.columns,
            identify=partial(self._identify, planned.form if planned else NEWEST_FORM),
            native_size=self._models.native_size,
        )

    def _identify(self, form: Form, types: InputTypes) -> dict[str, Any]:
        """The document of the job, by the types of its input's columns."""
        job, task = self._chosen.job, self._chosen.task
        self._carry = types.words
        images = images_document(
            job,
            self._models.lock,
            types.words,
            form,
            task=task.columns,
            of_task=task.identify(job, self._models.lock),
            folders=types.folders,
        )
        return plan_document(
            images,
            form,
            columns=task.columns.of_dataset(form.number, types.words),
            models=self._model_names(),
            config=recorded_config(job),
            environment=self._environment(),
            carried=encode_carried(types.carried),
        )

    def _is_own(self, work: Work) -> bool:
        """Refuse objects of others where this dataset's are to stand; False if they are those of
        another driver, which has planned it meanwhile."""
        job, store = self._chosen.job, self._store
        names = set() if work.is_stored else visible_names(store)
        names |= {f"{shard.id}.parquet" for shard in work.plan.new_shards} & {
            f"{index:05d}.parquet" for index in work.done
        }
        if work.is_stored and work.todo:
            replaced = {shard.index for shard in work.todo} if job.overwrite else set()
            planned = {shard.index for shard in work.plan.shards}
            names |= names_without_receipt(store, work.done & planned - replaced)
        try:
            refuse_foreign(store, work.plan, names, job.sink.access)
        except JobError:
            if self._stands_still(work):
                raise
            return False
        return True

    def _stands_still(self, work: Work) -> bool:
        """Tell whether the sink's plan is what it was, or as absent, when the work was found."""
        planned = load_plan(self._store)
        if planned is None or planned.document == self._replaced:
            return not work.is_stored
        return work.is_stored and planned.num_segments == work.plan.num_segments

    def _select(self, plan: Plan, *, is_stored: bool) -> Work:
        job, done = self._chosen.job, committed_shards(self._store)
        todo = select_shards(plan, done, named=shard_ranges(job.shards), overwrite=job.overwrite)
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

    def _environment(self) -> dict[str, Any]:
        """What is recorded of where a plan was made; identifies nothing."""
        converted = dict(self._models.converted)
        return {
            "command": self._command,
            "versions": versions(),
            **({"converted_models": converted} if converted else {}),
        }

    def _model_names(self) -> dict[str, str]:
        names = {stage.section: model_name(stage.model) for stage in self._chosen.stages}
        return {"": self._chosen.engine.name, **names}


def refuse_to_plan_again(store: Store) -> None:
    """Raise a JobError where a stored plan must stay: images were made by it, or are just made."""
    if names := visible_names(store):
        raise JobError(
            f"plan_again: {store.uri(identity.DATA_FOLDER)} holds {min(names)} already, made by "
            "the stored plan; use the planned settings, or write to a new sink"
        )
    if runs := living_runs(store):
        raise JobError(
            f"plan_again: {store.root} is being worked on by {runs[0]}; end that job first (one "
            "that was killed counts as alive for a minute)"
        )


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

"""One worker: a pipeline, a store, and one shard from its input rows to its committed object.

Knows nothing of Ray, Hydra or torch. Two shards may be under way in two threads; only one of them
generates, while the other reads, writes or commits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

from ldm_batch.columns import COLUMNS, IMAGE, LOW_RESOLUTION, By
from ldm_batch.config import CallConfig, JobConfig, with_size
from ldm_batch.errors import LdmBatchError, StorageError
from ldm_batch.generate.batches import generate_images, plan_images, reject_faulty
from ldm_batch.generate.choose import choose
from ldm_batch.generate.pipeline import Pipeline
from ldm_batch.generate.row_by_row import as_usual
from ldm_batch.identity import FORMS, data_path, fingerprint
from ldm_batch.made_as import MADE_AS, count_made_as, describe_made_as
from ldm_batch.plan.recorded import refuse_other_environment
from ldm_batch.plan.stored import refuse_other_plan
from ldm_batch.plan.stored_inputs import where_to_read
from ldm_batch.read.images import InputImages, largest_asked
from ldm_batch.read.input_types import NO_TYPES, InputTypes
from ldm_batch.read.rejected import read_rejected
from ldm_batch.read.rows import RowContext
from ldm_batch.read.shard import read_shard
from ldm_batch.records import (
    Outcome,
    PlannedImage,
    PromptCount,
    Reason,
    Receipt,
    Rejection,
    Row,
    Shard,
    split_lock,
)
from ldm_batch.storage import Store, open_sink
from ldm_batch.versions import versions
from ldm_batch.write.commit import commit_shard, make_facts
from ldm_batch.write.encode import Encoded, Encoders
from ldm_batch.write.parquet import object_schema, written_object
from ldm_batch.write.receipt import make_receipt, read_receipt, write_receipt
from ldm_batch.write.record import Origin, make_record
from ldm_batch.write.rejections import RejectionsFile, make_rejections_file
from ldm_batch.write.spool import Spool, told_of_no_room


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """All that a worker needs to know to load; plain values that travel to other machines."""

    job: JobConfig
    model_lock: Mapping[str, str]
    native_size: tuple[int, int]
    """The model's own height and width in pixels."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a plan says of every shard; plain values that travel to other machines."""

    fingerprint: str
    form: int
    """Number of the plan's form: how images are named and seeded."""
    columns: tuple[tuple[str, str], ...]
    """Name and type of every column of an object, in order."""
    model_names: Mapping[str, str]
    """Section of a model -> its name in the dataset: the job's own under nothing."""
    environment: Mapping[str, str] | None = None
    """Versions and device on which alone shards may be made; None: any."""
    types: InputTypes = NO_TYPES
    """What the plan says of its input's columns."""


def load_worker(spec: WorkerSpec) -> Worker:
    """Load the pipeline and open the sink, where the worker runs.

    Raises:
        JobError: the model does not load.
    """
    pipeline = choose(spec.job).load(spec.model_lock)
    return Worker(spec, pipeline, open_sink(spec.job.sink))


class Worker:
    """Makes shards of one job."""

    def __init__(self, spec: WorkerSpec, pipeline: Pipeline, store: Store) -> None:
        self._spec, self._pipeline, self._store = spec, pipeline, store
        self._task = choose(spec.job).task
        device = str(pipeline.describe().get("device", "cpu"))
        self._environment = {**versions(), "device": device}
        self._turn = threading.Lock()
        self._encoders = Encoders(spec.job.image, spec.job.batch_size)

    def environment(self) -> dict[str, str]:
        """What it runs on: versions by package, and the kind of its device."""
        return dict(self._environment)

    def make_shard(self, shard: Shard, terms: Terms) -> Receipt:
        """Turn one shard into its committed object, unless that stands by now.

        Raises:
            ShardError: the input cannot be read, or the object would be too large.
            StorageError: the object could not be written.
            JobError: what stands in the shard's place is damaged, or none of ours; the plan is
                another one by now; or this is not what the plan wants shards to be made on.
        """
        refuse_other_environment(terms.environment, self._environment)
        if not self._spec.job.overwrite and self._is_there(shard):
            found = read_receipt(self._store, shard.index, terms.fingerprint)
            return self._with_receipt(replace(found, outcome=Outcome.FOUND), terms)
        with told_of_no_room(), Spool() as encoded, Spool() as inputs:
            return self._with_receipt(self._make_shard(shard, terms, encoded, inputs), terms)

    def _make_shard(self, shard: Shard, terms: Terms, encoded: Spool, inputs: Spool) -> Receipt:
        """Read, generate and encode, write, commit: what the package's listing says."""
        job, task, form, clock = self._spec.job, self._task, FORMS[terms.form], Clock()
        call = with_size(job.call, self._spec.native_size)
        given = InputImages(job, task.columns, shard, inputs) if task.columns.has_image else None
        stored, source = where_to_read(shard, job.source, self._store)
        asked = largest_asked(job, task.columns)
        context = RowContext(source, call, form, given, terms.types, asked)

        found = read_shard(stored, task.columns, task.parse_row, context)
        counts = self._count_tokens(found.rows)
        rows, too_long = self._refuse_long(found.rows, counts)
        num_images = job.num_images_per_prompt
        images = plan_images(task, rows, form, job_seed=job.seed, num_images=num_images)
        clock.lap("read_s")

        pictures, notes = self._draw(images, given, call, encoded, clock)

        faulty = reject_faulty(images, pictures.faults)
        rejections = found.with_lines([*found.rejections, *too_long, *faulty.values()])
        rejected = self._keep_rejected(shard, terms, rejections)
        facts = make_facts(shard, terms.fingerprint, rejections, rejected)
        good = {n: image for n, image in enumerate(images) if image.row.key not in faulty}
        records = self._records(shard, terms, good, counts, pictures)
        schema = object_schema(terms.columns, dict(found.carried), facts)
        with written_object(records, encoded, schema=schema, extension=job.image.format) as content:
            refuse_other_plan(self._store, terms.fingerprint)
            committed = commit_shard(
                self._store,
                shard,
                content,
                rejected,
                max_bytes=job.max_object_bytes,
                overwrite=job.overwrite,
            )
        clock.lap("write_s")
        return make_receipt(
            shard.index,
            facts,
            committed,
            num_images=len(good),
            started_at=clock.started_at,
            laps=clock.laps,
            pipeline=self._pipeline.describe(),
            notes=(*notes, *describe_made_as(count_made_as(r[MADE_AS] for _, r in records))),
        )

    def _draw(
        self,
        images: Sequence[PlannedImage],
        given: InputImages | None,
        call: CallConfig,
        encoded: Spool,
        clock: Clock,
    ) -> tuple[Encoded, tuple[str, ...]]:
        """Generate images and encode them, when it is this shard's turn; and what was noted."""
        usual = partial(as_usual, usual=call, is_sized=given is None)
        make = self._task.make_request
        with self._turn:
            clock.lap("wait_s")
            encoding = self._encoders.begin(encoded)
            for drawn in generate_images(self._pipeline, images, lambda i: make(i, given), usual):
                encoding.add(drawn)
            notes = tuple(self._pipeline.pop_notes())
            clock.lap("generate_s")
        return encoding.finish(), notes  # meanwhile another shard may generate

    def _is_there(self, shard: Shard) -> bool:
        """Tell whether a shard stands by now; what keeps the store from saying so, the commit
        tells better."""
        try:
            return self._store.has(data_path(shard.id))
        except LdmBatchError:
            return False

    def _with_receipt(self, receipt: Receipt, terms: Terms) -> Receipt:
        """Store a receipt; the shard is done all the same if that fails.

        Raises:
            JobError: the plan became another one while the object was created; without a receipt
                nobody takes that object for the new plan's.
        """
        refuse_other_plan(self._store, terms.fingerprint)
        try:
            write_receipt(self._store, receipt, terms.fingerprint)
        except StorageError as error:
            notes = (*receipt.notes, f"its receipt is not stored: {error}")
            return replace(receipt, notes=notes)
        return receipt

    def _count_tokens(self, rows: Sequence[Row]) -> dict[str, PromptCount]:
        counts = self._pipeline.count_tokens([row.inputs.get("prompt", "") for row in rows])
        return {row.key: count for row, count in zip(rows, counts, strict=True)}

    def _refuse_long(
        self, rows: Sequence[Row], counts: Mapping[str, PromptCount]
    ) -> tuple[list[Row], list[Rejection]]:
        """Rows, and those that a job refuses because the text encoder would cut their prompts."""
        if self._spec.job.source.long_prompts == "truncate":
            return list(rows), []
        kept = [row for row in rows if not counts[row.key].is_truncated]
        refused = [
            Rejection(
                row.key,
                row.input_row,
                Reason.TOO_MANY_TOKENS,
                f"the prompt has {counts[row.key].num_tokens} tokens, more than the encoder takes",
            )
            for row in rows
            if counts[row.key].is_truncated
        ]
        return kept, refused

    def _keep_rejected(
        self, shard: Shard, terms: Terms, rejections: Sequence[Rejection]
    ) -> RejectionsFile | None:
        """The file of a shard's rejections, with the rows themselves where the form has them."""
        if not rejections:
            return None
        rows = None
        if FORMS[terms.form].keeps_rejected_rows:
            places = [rejection.input_row for rejection in rejections]
            stored, source = where_to_read(shard, self._spec.job.source, self._store)
            rows = read_rejected(stored, self._task.columns, source, places, terms.types)
        return make_rejections_file(shard, rejections, rows)

    def _records(
        self,
        shard: Shard,
        terms: Terms,
        images: Mapping[int, PlannedImage],
        counts: Mapping[str, PromptCount],
        pictures: Encoded,
    ) -> list[tuple[int, dict[str, object]]]:
        """Number and record of each image.

        Args:
            images: those that are stored, by number.
        """
        task, records = self._task, []
        origin = self._origin(terms)
        unmeasured = {n: None for n in task.columns.recorded if COLUMNS[n].by is By.CHECK}
        for number, image in images.items():
            low = pictures.digests.get((number, LOW_RESOLUTION))
            of_task = task.record(image, counts[image.row.key], low and low[1])
            record = make_record(
                image,
                origin=origin,
                input_file=shard.file.name,
                digests=pictures.digests[number, IMAGE],
                of_task={**unmeasured, **of_task, **pictures.measured.get(number, {})},
                scale=task.columns.scale,
            )
            records.append((number, record))
        return records

    def _origin(self, terms: Terms) -> Origin:
        """What all images of the job have in common."""
        spec, described = self._spec, self._pipeline.describe()
        return Origin(
            scheduler=str(described["scheduler"]),
            model=terms.model_names[""],
            model_sha256=fingerprint(split_lock(spec.model_lock)[0]),
            image_format=spec.job.image.format,
            fingerprint=terms.fingerprint,
            of_task=self._task.origin(spec.job, spec.model_lock, described, terms.model_names),
        )


class Clock:
    """Seconds between laps, by name, and when it all began."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Note the seconds since the lap before."""
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 4)
        self._last = now

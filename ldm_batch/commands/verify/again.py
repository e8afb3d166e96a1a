"""Make images of a dataset again, each as it was made: from its own record, or from its row.

Must not know which images are chosen, nor what they are compared with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ldm_batch.columns import COLUMNS, IMAGE, MASK
from ldm_batch.config import with_size
from ldm_batch.errors import ShardError
from ldm_batch.generate.batches import plan_images
from ldm_batch.generate.choose import Choice
from ldm_batch.generate.pipeline import Picture, Pipeline
from ldm_batch.made_as import MADE_AS, parse_made_as
from ldm_batch.plan.stored import Plan
from ldm_batch.read.images import InputImages
from ldm_batch.read.rows import RowContext
from ldm_batch.read.shard import ShardRows, read_shard
from ldm_batch.records import Fault, Made, Request, Shard
from ldm_batch.write.encode import sha256
from ldm_batch.write.spool import Spool

NO_SIDE = 8
"""Pixels, where a call must have some: rows that are read again bring images, and so the size."""
DIGITS_SHOWN = 12
"""Of a SHA-256 in a message."""
Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class NotMade:
    """What is returned in place of a picture where an image could not be made again."""

    why: str


class MakerAgain:
    """Makes images of one dataset again.

    An image that was made otherwise than planned is made so again: in as many rows, in float32.
    Where a job has more torch threads than one, an image's last bits may depend on its place in its
    batch: then each is made at all places of a batch of its own, and that which is as recorded
    taken.
    """

    def __init__(self, chosen: Choice, pipeline: Pipeline, plan: Plan) -> None:
        """Take a loaded pipeline.

        Args:
            chosen: the planned job, on the device that there is here.
        """
        self._chosen, self._plan = chosen, plan
        self._says_how = says_how(plan)
        self._pipeline = pipeline
        self._other: tuple[str, Pipeline] | None = None
        """How it makes images, and the pipeline that does; one at a time, as it may have weights of
        its own."""

    def make(
        self, index: int, records: Sequence[Record]
    ) -> Iterator[tuple[Record, Picture | NotMade]]:
        """Make images of a shard again; yields each record with what came out, in any order.

        Rows that the task reads again must be what they were: see `_input_problem`.

        Raises:
            StorageError: an input image is there but cannot be read.
            AccessError: the input is not ours to read.
        """
        for text in dict.fromkeys(self._how(record) for record in records):
            alike = [record for record in records if self._how(record) == text]
            try:
                pipeline = self._pipeline_for(text)
            except ValueError as error:
                yield from ((record, NotMade(str(error))) for record in alike)
                continue
            if self._chosen.task.request_again is not None:
                yield from self._from_records(pipeline, alike)
            else:
                shard = self._plan.shards[index]
                yield from ((record, self._from_row(pipeline, shard, record)) for record in alike)

    def _how(self, record: Record) -> str:
        return str(record[MADE_AS]) if self._says_how else ""

    def _pipeline_for(self, text: str) -> Pipeline:
        """The pipeline that makes images as one with this `made_as` was made."""
        if not text:
            return self._pipeline
        if self._other is None or self._other[0] != text:
            how = parse_made_as(text, planned_rows(self._plan))
            self._other = None
            self._other = text, self._pipeline.as_made(how)
        return self._other[1]

    def _from_records(
        self, pipeline: Pipeline, records: Sequence[Record]
    ) -> Iterator[tuple[Record, Picture]]:
        task = self._chosen.task
        assert task.request_again is not None
        requests = [task.request_again(record, task.columns) for record in records]
        for call in dict.fromkeys(request.call for request in requests):
            slots = [slot for slot, request in enumerate(requests) if request.call == call]
            if self._chosen.job.num_threads > 1:
                yield from (
                    (records[slot], _at_all_places(pipeline, requests[slot], records[slot]))
                    for slot in slots
                )
                continue
            _, batch_size = pipeline.batch_key(call)
            for start in range(0, len(slots), batch_size):
                batch = slots[start : start + batch_size]
                made = pipeline.generate([requests[slot] for slot in batch])
                yield from zip((records[slot] for slot in batch), made, strict=True)

    def _from_row(self, pipeline: Pipeline, shard: Shard, record: Record) -> Picture | NotMade:
        """An image of a row that is read again where the plan says that it is."""
        place = record["input_row"]
        if not shard.row_start <= place < shard.row_start + shard.num_rows:
            return NotMade(f"row {place} is not of its shard")
        with Spool() as spool:
            inputs = InputImages(self._chosen.job, self._chosen.task.columns, shard, spool)
            try:
                found = self._read(replace(shard, row_start=place, num_rows=1), inputs)
            except ShardError as error:
                return NotMade(f"its row cannot be read again: {error}")
            if problem := _input_problem(record, found):
                return NotMade(problem)
            request = self._request(record, found, inputs)
        if request is None:
            return NotMade(f"its row has no image {record['image_index']}")
        if self._chosen.job.num_threads > 1:
            return _at_all_places(pipeline, request, record)
        return pipeline.generate([request])[0]

    def _read(self, row: Shard, inputs: InputImages) -> ShardRows:
        job, task = self._chosen.job, self._chosen.task
        call = with_size(job.call, (NO_SIDE, NO_SIDE))
        context = RowContext(job.source, call, self._plan.form, inputs, self._plan.types)
        return read_shard(row, task.columns, task.parse_row, context)

    def _request(self, record: Record, found: ShardRows, inputs: InputImages) -> Request | None:
        job, task = self._chosen.job, self._chosen.task
        sizes = {"job_seed": job.seed, "num_images": job.num_images_per_prompt}
        images = plan_images(task, found.rows, self._plan.form, **sizes)
        wanted = [image for image in images if image.image_index == record["image_index"]]
        return task.make_request(wanted[0], inputs) if wanted else None


def _at_all_places(pipeline: Pipeline, request: Request, record: Record) -> Picture:
    """An image made at every place of one batch: that which is as recorded, else the first."""
    _, batch_size = pipeline.batch_key(request.call)
    made = pipeline.generate([request] * batch_size)
    return next((one for one in made if _is_as_recorded(one, record)), made[0])


def _is_as_recorded(made: Picture, record: Record) -> bool:
    if isinstance(made, Fault):
        return False
    pixels = made.pixels if isinstance(made, Made) else made
    return sha256(pixels) == str(record["pixel_sha256"])


def says_how(plan: Plan) -> bool:
    """Tell whether the objects of a dataset say how their images were made."""
    return plan.form.number >= COLUMNS[MADE_AS].since


def planned_rows(plan: Plan) -> int:
    """Rows of every model call, as planned."""
    return int(plan.document["images"]["batch_size"])


def _input_problem(record: Record, found: ShardRows) -> str:
    """Why what a row brings now is not what an image was made from; empty where it is."""
    remedy = "put back the file that it was made from"
    if found.rejections:
        name = _input_name(record, "input")
        return f"{name} is no usable image any more: {found.rejections[0].message}; {remedy}"
    for field, column in ((IMAGE, "input"), (MASK, "mask")):
        if field not in found.rows[0].inputs:
            continue
        now, then = found.rows[0].inputs[field].sha256, str(record[f"{column}_sha256"])
        if now != then:
            return (
                f"{_input_name(record, column)} is another one: it has SHA-256 "
                f"{now[:DIGITS_SHOWN]}..., was made from {then[:DIGITS_SHOWN]}...; {remedy}"
            )
    return ""


def _input_name(record: Record, column: str) -> str:
    row, path = f"row {record['input_row']} of {record['input_file']}", record.get(f"{column}_path")
    return f"its {column} {path} ({row})" if path else f"its {column} ({row})"

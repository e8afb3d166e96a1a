"""The stored plan: all shards of a dataset and what identifies its images.

`plan.json` is created once; shards stand in segments that are only ever added, so a plan grows
without rewriting anything and two drivers cannot disagree on a shard's index.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ldm_batch import identity
from ldm_batch.errors import JobError
from ldm_batch.read.input_types import InputTypes, planned_types
from ldm_batch.records import InputFile, Shard, StoredInput
from ldm_batch.storage import Store

PLAN_FORMAT = 1
PLAN_AGAIN = "Nothing is made by that plan yet: plan_again=true replaces it."
NUMBERS = ("seed", "num_images_per_prompt", "batch_size")
"""Of the document's images."""
SHARDS_PER_ROW_GROUP = 16_384
"""Of a segment, and read at once: Python values of all shards never stand beside the plan."""
_SEGMENT_FIELDS: dict[str, pa.DataType] = {
    "shard": pa.int64(),
    "row_start": pa.int64(),
    "num_rows": pa.int64(),
    "file": pa.string(),
    "uri": pa.string(),
    "size_bytes": pa.int64(),
    "version": pa.string(),
    "file_rows": pa.int64(),
    "footer_sha256": pa.string(),
}
SEGMENT_SCHEMA = pa.schema(_SEGMENT_FIELDS)
_STORED_FIELDS: dict[str, pa.DataType] = {
    "stored_path": pa.string(),
    "stored_bytes": pa.int64(),
    "text_sha256": pa.string(),
}
"""Of a segment that has files which were text; null of others."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All shards of a dataset, in the order of their indices, and what identifies its images."""

    document: Mapping[str, Any]
    shards: tuple[Shard, ...]
    num_segments: int
    new_shards: tuple[Shard, ...] = ()
    gone_files: frozenset[str] = frozenset()
    """Planned files that the source does not hold any more."""
    notes: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that can change an image or the row set."""
        return str(self.document["fingerprint"])

    @property
    def form(self) -> identity.Form:
        """How its images are named and seeded."""
        return identity.FORMS[_form_number(self.document)]

    @property
    def types(self) -> InputTypes:
        """What it says of the columns of its input."""
        return planned_types(self.document)

    @property
    def knows_folders(self) -> bool:
        """False of one that was made before folders could name columns, and before as many names
        of files were read; it grows as it began."""
        return "carried" in self.document

    @property
    def num_rows(self) -> int:
        """Rows of all planned shards."""
        return sum(shard.num_rows for shard in self.shards)


def load_document(store: Store) -> Mapping[str, Any] | None:
    """Read what identifies a dataset's images, without its shards; None where it has no plan.

    Raises:
        JobError: the plan is damaged or of a format that this version does not know.
    """
    raw = store.read(identity.PLAN_PATH)
    if raw is None:
        return None
    try:
        document: Mapping[str, Any] = json.loads(raw)
        known = document["format"] == PLAN_FORMAT and _form_number(document) in identity.FORMS
        is_whole = not known or _is_whole(document)
    except (ValueError, KeyError, TypeError, RecursionError, pa.ArrowException) as error:
        raise _damaged(store, identity.PLAN_PATH, error) from error
    if not known:
        raise JobError(
            f"{store.uri(identity.PLAN_PATH)}: made by another version of ldm_batch; use that one, "
            "or a new sink"
        )
    if not is_whole:
        raise _damaged(store, identity.PLAN_PATH, "something of it is missing")
    return document


def _is_whole(document: Mapping[str, Any]) -> bool:
    """Tell whether a document has what every plan has had, of the right kinds."""
    sections = [document[name] for name in ("images", "config", "environment")]
    if not all(isinstance(section, Mapping) for section in sections):
        return False
    planned_types(document)
    return (
        isinstance(document["fingerprint"], str)
        and isinstance(document["environment"]["command"], str)
        and all(type(document["images"][name]) is int for name in NUMBERS)
    )


def _damaged(store: Store, path: str, error: Exception | str) -> JobError:
    why = f"no {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
    return JobError(f"{store.uri(path)}: damaged plan: {why}; put it back, or use a new sink")


def _form_number(document: Mapping[str, Any]) -> int:
    """Number of a document's form; 0, which there is not, where it is no whole number."""
    number = document.get("fingerprint_form", 1)
    return number if type(number) is int else 0


def load_plan(store: Store) -> Plan | None:
    """Read the plan that a dataset holds; None where it has none.

    Raises:
        JobError: the plan is damaged or of a format that this version does not know.
    """
    document = load_document(store)
    names = sorted(
        n for n in store.names(identity.PLAN_FOLDER) if identity.shard_index(n) is not None
    )
    if document is None and names:
        document = load_document(store)  # another driver may have stored its plan meanwhile
    if document is None:
        if names:
            raise JobError(
                f"{store.uri(identity.PLAN_FOLDER)}: damaged plan: {identity.PLAN_PATH} is gone "
                "and its shards are not; put it back, or remove this folder where nothing was made"
            )
        return None
    shards = [shard for name in names for shard in _read_segment(store, name)]
    if [shard.index for shard in shards] != list(range(len(shards))):
        raise JobError(f"{store.uri(identity.PLAN_FOLDER)}: damaged plan: shards are missing")
    return Plan(document=document, shards=tuple(shards), num_segments=len(names))


def _read_segment(store: Store, name: str) -> Iterator[Shard]:
    path = f"{identity.PLAN_FOLDER}/{name}"
    raw = store.read(path)
    try:
        parquet = pq.ParquetFile(pa.BufferReader(raw or b""), page_checksum_verification=True)
        files: dict[str, InputFile] = {}
        known = {*SEGMENT_SCHEMA.names, *_STORED_FIELDS}
        names = [name for name in parquet.schema_arrow.names if name in known]
        for batch in parquet.iter_batches(SHARDS_PER_ROW_GROUP, columns=names):
            yield from _shards_of(batch.to_pydict(), files)
    except (pa.ArrowException, KeyError, OSError) as error:
        raise _damaged(store, path, error) from error


def _shards_of(
    columns: Mapping[str, Sequence[Any]], files: dict[str, InputFile]
) -> Iterator[Shard]:
    """Shards of some rows of a segment; those of a file share its description."""
    places = zip(*(columns.get(c) or repeat(None) for c in _STORED_FIELDS), strict=False)
    rows = zip(*(columns[column] for column in SEGMENT_SCHEMA.names), strict=True)
    for (index, start, num_rows, name, *described), place in zip(rows, places, strict=False):
        if name not in files:
            files[name] = InputFile(name, *described)
            if place[0] is not None:
                files[name] = replace(files[name], stored=StoredInput(*place))
        yield Shard(index, files[name], start, num_rows)


def plan_document(
    images: Mapping[str, Any],
    form: identity.Form,
    *,
    columns: Sequence[tuple[str, str]],
    models: Mapping[str, str],
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
    carried: str = "",
) -> dict[str, Any]:
    """The document that a plan stores.

    Args:
        images: everything that can change an image or the row set; this is the fingerprint.
        form: the rules by which the fingerprint was made of it.
        columns: name and type of every column of the dataset, for as long as it lives.
        models: section of a model -> its name in the column `model`.
        config: the resolved job.
        environment: command, versions, device: recorded, and told where they differ.
        carried: the types of carried columns, see `encode_carried`.
    """
    return {
        "format": PLAN_FORMAT,
        "fingerprint_form": form.number,
        "fingerprint": identity.fingerprint(images),
        "images": images,
        "columns": [list(column) for column in columns],
        "models": models,
        "config": config,
        "environment": environment,
        "carried": carried,
    }


def save_plan(store: Store, plan: Plan) -> bool:
    """Store what is new of a plan.

    Returns:
        False if another driver stored its plan first: load it and plan again.
    """
    raw = json.dumps(plan.document, indent=2, sort_keys=True).encode()
    if plan.num_segments == 0 and not store.publish(identity.PLAN_PATH, raw, exclusive=True):
        stored = store.read(identity.PLAN_PATH)
        if stored is None or json.loads(stored) != json.loads(raw):
            return False
    if not plan.new_shards:
        return True
    path = f"{identity.PLAN_FOLDER}/{plan.num_segments:05d}.parquet"
    return store.publish(path, _segment_bytes(plan.new_shards), exclusive=True)


def remove_plan(store: Store) -> None:
    """Remove a plan of which nothing is committed, and what was noted of its attempts.

    `plan.json` goes last: a crash before leaves a plan of fewer shards, which can be removed again.
    """
    folders = (identity.FAILURES_FOLDER, identity.REJECTED_FOLDER, identity.RECEIPTS_FOLDER)
    for folder in (*folders, identity.PLAN_FOLDER, identity.INPUT_FOLDER):
        for name in sorted(store.names(folder), reverse=True):
            store.remove(f"{folder}/{name}")
    store.remove(identity.PLAN_PATH)


def refuse_other_plan(store: Store, fingerprint: str) -> None:
    """Raise a JobError where the sink's plan is not the one with this fingerprint any more."""
    document = load_document(store)
    if document is None or document["fingerprint"] != fingerprint:
        raise JobError(
            f"{store.uri(identity.PLAN_PATH)}: is "
            f"{'gone' if document is None else 'another plan by now'}; nothing more is made by the "
            "one that this job began with. Run the command again"
        )


def _segment_bytes(shards: Sequence[Shard]) -> bytes:
    buffer = io.BytesIO()
    schema = SEGMENT_SCHEMA
    if any(shard.file.stored for shard in shards):
        schema = pa.schema({**_SEGMENT_FIELDS, **_STORED_FIELDS})
    with pq.ParquetWriter(buffer, schema, compression="zstd", write_page_checksum=True) as writer:
        for start in range(0, len(shards), SHARDS_PER_ROW_GROUP):
            writer.write_table(_segment_table(shards[start : start + SHARDS_PER_ROW_GROUP], schema))
    return buffer.getvalue()


def _segment_table(shards: Sequence[Shard], schema: pa.Schema) -> pa.Table:
    stored = [s.file.stored for s in shards]
    columns = {
        "shard": [s.index for s in shards],
        "row_start": [s.row_start for s in shards],
        "num_rows": [s.num_rows for s in shards],
        "file": [s.file.name for s in shards],
        "uri": [s.file.uri for s in shards],
        "size_bytes": [s.file.size_bytes for s in shards],
        "version": [s.file.version for s in shards],
        "file_rows": [s.file.num_rows for s in shards],
        "footer_sha256": [s.file.footer_sha256 for s in shards],
        "stored_path": [place and place.path for place in stored],
        "stored_bytes": [place and place.size_bytes for place in stored],
        "text_sha256": [place and place.text_sha256 for place in stored],
    }
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)

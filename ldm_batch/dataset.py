"""A dataset as its readers see it: its plan, its job, the rows of its objects, its receipts.

Changes nothing. Must not know how images are made, nor how what is read is shown.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property, partial
from typing import Any, BinaryIO, TypeVar, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from ldm_batch import identity
from ldm_batch.config import JobConfig
from ldm_batch.config.older import with_new_names
from ldm_batch.errors import JobError
from ldm_batch.plan.stored import Plan, load_plan
from ldm_batch.records import Receipt, Shard
from ldm_batch.storage import Access, Store
from ldm_batch.write.commit import read_named_digest
from ldm_batch.write.receipt import read_receipt

ROWS_PER_READ = 64
"""Rows of an object that stand in memory together, with the bytes of their images."""
RECEIPT_THREADS = 16
"""Receipts are small: reading one waits for the store's answer, not for a CPU."""
AHEAD_PER_THREAD = 4
"""Answers that may wait for the caller, so that a slow one holds up no thread for long."""
REJECTION_COLUMNS = ["key", "input_file", "input_row", "reason", "message"]
"""What is told of a rejected row, of any form; the row itself is not."""
In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Dataset:
    """A planned dataset, as it stands when it is looked at."""

    store: Store
    plan: Plan

    @cached_property
    def done(self) -> list[Shard]:
        """Planned shards whose object is there, in the order of the plan."""
        return [shard for shard in self.plan.shards if f"{shard.id}.parquet" in self._names]

    @cached_property
    def undone(self) -> set[int]:
        """Indices of the planned shards whose object is not there."""
        return {shard.index for shard in self.plan.shards} - {shard.index for shard in self.done}

    @cached_property
    def stray(self) -> list[str]:
        """Names in `data/` that no planned shard explains."""
        return sorted(self._names - {f"{shard.id}.parquet" for shard in self.plan.shards})

    @cached_property
    def failed(self) -> dict[int, str]:
        """Shards that are not there because their last attempt failed, and why."""
        records = map(identity.shard_index, self.store.names(identity.FAILURES_FOLDER))
        indices = sorted(index for index in records if index in self.undone)
        return {index: self._failure(index) for index in indices if index is not None}

    @cached_property
    def missing(self) -> list[int]:
        """Shards that are not there, nor failed."""
        return sorted(self.undone - self.failed.keys())

    @cached_property
    def job(self) -> JobConfig:
        """The job that its plan stores.

        Fields that this version does not know are left out; those that the plan does not know are
        at their defaults.
        """
        return with_new_names(_filled(JobConfig, self.plan.document["config"]))

    def receipts(self) -> Iterator[Receipt]:
        """The receipts of all shards that are done, rebuilt where they are missing.

        Raises:
            JobError: an object is none of ours, or damaged.
        """
        indices = (shard.index for shard in self.done)
        read = partial(read_receipt, self.store, fingerprint=self.plan.fingerprint)
        return map_in_threads(read, indices, RECEIPT_THREADS)

    def rejections(self) -> Iterator[Mapping[str, Any]]:
        """Key, place, reason and message of the rejected rows of all shards that are done.

        Raises:
            JobError: an object is damaged, or none of ours.
            pa.ArrowException: the record of its rejections is damaged.
        """
        for shard in self.done:
            yield from read_rejections(self.store, shard.id)

    def rows_at(self, index: int, places: Collection[int]) -> list[Mapping[str, Any]]:
        """Some rows of a shard's object, in order, by their places in it, from 0."""
        rows: list[Mapping[str, Any]] = []
        start, ordered = 0, sorted(places)
        with self.store.open(identity.data_path(f"{index:05d}")) as file:
            for batch in open_object(file).iter_batches(ROWS_PER_READ):
                here = [place - start for place in ordered if 0 <= place - start < len(batch)]
                rows += batch.take(here).to_pylist() if here else []
                start += len(batch)
        return rows

    def num_images(self, index: int) -> int:
        """Images of a shard, by its object's footer."""
        with self.store.open(identity.data_path(f"{index:05d}")) as file:
            return int(open_object(file).metadata.num_rows)

    @cached_property
    def _names(self) -> set[str]:
        return self.store.names(identity.DATA_FOLDER)

    def _failure(self, index: int) -> str:
        raw = self.store.read(identity.failure_path(f"{index:05d}"))
        try:
            return str(json.loads(raw or b"{}")["message"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return "unknown (its record is damaged)"


def find_sink(uri: str, access: Access = None) -> Store:
    """The store of the dataset that a path names: its folder, or `data/` in it, which a job prints.

    Raises:
        JobError: a kind of storage that cannot hold a dataset.
        StorageError: it cannot be reached.
    """
    store = Store(uri, access)
    folder, _, name = store.root.rpartition("/")
    if name != identity.DATA_FOLDER or not folder or store.has(identity.PLAN_PATH):
        return store
    above = Store(folder, access)
    return above if above.has(identity.PLAN_PATH) else store


def open_dataset(store: Store) -> Dataset:
    """The dataset that a folder holds.

    Raises:
        JobError: it holds none, or its plan is damaged.
    """
    plan = load_plan(store)
    if plan is None:
        raise JobError(f"{store.root}: no dataset here (no {identity.PLAN_PATH})")
    return Dataset(store, plan)


def read_rejections(store: Store, shard_id: str) -> list[Mapping[str, Any]]:
    """Key, place, reason and message of a shard's rejected rows.

    Raises:
        JobError: its object is damaged, or none of ours.
        StorageError: they cannot be read.
        pa.ArrowException: the record of its rejections is damaged.
    """
    raw = store.read(identity.rejected_path(shard_id, read_named_digest(store, shard_id)))
    if raw is None:
        return []
    table = pq.read_table(pa.BufferReader(raw), columns=REJECTION_COLUMNS)
    return list(table.to_pylist())


def rows_of(
    store: Store, index: int, columns: Sequence[str] | None = None
) -> Iterator[Mapping[str, Any]]:
    """The rows of a shard's object, a few at a time.

    Args:
        columns: only these; None: all.

    Raises:
        StorageError: the object is not there, or cannot be read.
        pa.ArrowException: it is damaged.
    """
    with store.open(identity.data_path(f"{index:05d}")) as file:
        yield from object_rows(open_object(file), columns)


def open_object(file: BinaryIO) -> pq.ParquetFile:
    """An object as a file that checks the sum of every page it reads."""
    return pq.ParquetFile(file, page_checksum_verification=True)


def object_rows(
    parquet: pq.ParquetFile, columns: Sequence[str] | None = None
) -> Iterator[Mapping[str, Any]]:
    """The rows of an opened object, a few at a time."""
    only = None if columns is None else list(columns)
    for batch in parquet.iter_batches(ROWS_PER_READ, columns=only):
        yield from batch.to_pylist()


def map_in_threads(
    function: Callable[[In], Out], values: Iterable[In], num_threads: int
) -> Iterator[Out]:
    """What a function returns for each value, in order; only a few calls are ahead of the caller,
    so that the results of many values never stand in memory together."""
    with ThreadPoolExecutor(num_threads) as pool:
        pending: deque[Future[Out]] = deque()
        for value in values:
            pending.append(pool.submit(function, value))
            if len(pending) == AHEAD_PER_THREAD * num_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _filled(kind: type[Any], values: Mapping[str, Any], path: str = "config") -> Any:
    """A section of a document as its dataclass; a JobError where it is no section."""
    if not isinstance(values, Mapping):
        raise JobError(f"plan.json: {path} is damaged: {values!r} is no section")
    hints = get_type_hints(kind)
    known = {field.name for field in fields(kind)} & values.keys()
    return kind(
        **{
            name: _filled(hints[name], values[name], f"{path}.{name}")
            if is_dataclass(hints[name])
            else values[name]
            for name in known
        }
    )

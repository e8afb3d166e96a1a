"""Verify one committed object: every row of its shard is an image or a rejection, nothing else.

Reads the object whole, once. Must not know how a dataset is listed or how a result is shown.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from ldm_batch import identity
from ldm_batch.columns import METADATA_KEY
from ldm_batch.commands.verify.shared import hash_keys
from ldm_batch.dataset import object_rows, open_object
from ldm_batch.errors import JobError, StorageError
from ldm_batch.made_as import MADE_AS, parse_made_as
from ldm_batch.read.matching import PARENT
from ldm_batch.records import Shard
from ldm_batch.storage import Store
from ldm_batch.write.commit import named_digest
from ldm_batch.write.encode import sha256

FETCH_BYTES = 8 * 1024 * 1024
"""Every read of S3 is a request: 32 for the largest object by default."""
MAX_PROBLEMS = 20
"""Lines about one object: what is wrong is often wrong in every row."""
LOSSLESS_FORMATS = ("webp", "png")


@dataclass(slots=True)
class ObjectReport:
    """What an object holds, and what is wrong with it, one line each."""

    shard: int
    num_rows: int = 0
    num_images: int = 0
    num_own_seeds: int = 0
    """Images whose seed is not derived from the job's: rows with a seed of their own."""
    rejected: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    schema: pa.Schema | None = None
    key_hashes: NDArray[np.uint64] = field(default_factory=lambda: hash_keys(()))
    """Of the rows that have images."""
    seeds: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    """Of all images."""
    made_as: Counter[str] = field(default_factory=Counter)
    """Images that were made otherwise than planned, by how."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the plan says of every object of a dataset."""

    fingerprint: str
    num_images_per_prompt: int
    seed_of: Callable[..., int]
    """(key, number of the image, the row's own seed or nothing) -> the image's seed."""
    planned_rows: int | None
    """Of every model call; None: objects do not say how their images were made."""
    knows_parents: bool = False
    """Whether the seed of what a row's image was made by is the last that `seed_of` takes."""


def verify_object(store: Store, shard: Shard, expected: Expected) -> ObjectReport:
    """Verify the object of a shard against its plan, its rejections and its receipt.

    Raises:
        JobError: there is no room for a local copy.
    """
    report = ObjectReport(shard.index)
    path = identity.data_path(shard.id)
    try:
        with _fetched(store, path) as (file, digest):
            parquet = open_object(file)
            if METADATA_KEY not in (parquet.schema_arrow.metadata or {}):
                _complain(report, "is no object of this dataset (it is not ours); remove it")
                return report
            facts = json.loads(parquet.schema_arrow.metadata[METADATA_KEY])
            report.schema = parquet.schema_arrow.remove_metadata()
            _check_facts(report, facts, shard, expected)
            _check_receipt(report, store, shard, digest)
            seen = _check_rows(report, parquet, shard, expected)
            report.key_hashes = hash_keys(seen.values())
        rejected = _check_rejections(report, store, shard, facts)
        _check_conservation(report, shard, seen, rejected)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        lines = str(error).splitlines()
        report.problems.append(f"{path}: damaged: {lines[0] if lines else type(error).__name__}")
    except StorageError as error:
        report.problems.append(str(error))
    if len(report.problems) > MAX_PROBLEMS:
        more = len(report.problems) - MAX_PROBLEMS
        report.problems[MAX_PROBLEMS:] = [f"{path}: and {more} problems more"]
    return report


@contextmanager
def _fetched(store: Store, path: str) -> Iterator[tuple[BinaryIO, str]]:
    """A local copy of an object, and the SHA-256 of its bytes."""
    digest = hashlib.sha256()
    with ExitStack() as opened:
        with _copying(path):
            file = opened.enter_context(tempfile.TemporaryFile(prefix="ldm_batch-"))
        with store.open(path) as remote:
            while block := remote.read(FETCH_BYTES):
                digest.update(block)
                with _copying(path):
                    file.write(block)
        with _copying(path):
            file.seek(0)
        yield cast(BinaryIO, file), digest.hexdigest()


@contextmanager
def _copying(path: str) -> Iterator[None]:
    """Trouble with the copy is this machine's, and says nothing of the object."""
    try:
        yield
    except OSError as error:
        raise JobError(
            f"{path} cannot be verified, there is no room for a copy of it: {error}; set TMPDIR to "
            "a folder with room"
        ) from error


def _check_facts(
    report: ObjectReport, facts: Mapping[str, Any], shard: Shard, expected: Expected
) -> None:
    for name, planned in (
        ("shard", shard.id),
        ("fingerprint", expected.fingerprint),
        ("num_rows", shard.num_rows),
    ):
        if facts[name] != planned:
            _complain(report, f"its {name} is {facts[name]}, planned {planned}")
    if facts["num_rows_with_images"] + sum(facts["rejected"].values()) != facts["num_rows"]:
        _complain(report, "its rows with images and its rejections do not add up to its rows")


def _check_receipt(report: ObjectReport, store: Store, shard: Shard, digest: str) -> None:
    raw = store.read(identity.receipt_path(shard.id))
    if raw is None:
        return  # it can be rebuilt at any time, and the next run does so
    try:
        recorded = json.loads(raw)["object_sha256"]
    except (ValueError, KeyError, TypeError):
        _complain(report, "its receipt is damaged; remove it, the next run rebuilds it")
        return
    if recorded != digest:
        _complain(report, f"its SHA-256 is {digest}, its receipt says {recorded}")


def _check_rows(
    report: ObjectReport, parquet: pq.ParquetFile, shard: Shard, expected: Expected
) -> dict[int, str]:
    """Check every image; the keys of the rows that have images, by place in the input."""
    keys: dict[int, str] = {}
    last: Mapping[str, Any] = {"input_row": -1, "image_index": -1}
    first, seeds = last, array("Q")
    for row in object_rows(parquet):
        report.num_images += 1
        first = first if row["image_index"] else row
        name = f"row {row['input_row']}, image {row['image_index']}"
        problems = (*_row_problems(row, last, shard, expected), *_image_problems(row))
        for problem in (*problems, *_made_as_problems(report, row, expected)):
            _complain(report, f"{name}: {problem}")
        if not _is_seed_known(row, first, expected):
            seed = row["seed"]
            _complain(
                report, f"{name}: has seed {seed}, which is neither derived nor the row's own"
            )
        report.num_own_seeds += row["seed"] not in _derived_seeds(row, expected)
        seeds.append(row["seed"] & identity.MAX_SEED)
        keys[row["input_row"]] = row["key"]
        last = row
    report.seeds = np.frombuffer(seeds, np.uint64)
    if len(set(keys.values())) != len(keys):
        _complain(report, "two of its rows have the same key")
    if report.num_images != len(keys) * expected.num_images_per_prompt:
        _complain(report, f"{report.num_images} images of {len(keys)} rows")
    return keys


def _row_problems(
    row: Mapping[str, Any], last: Mapping[str, Any], shard: Shard, expected: Expected
) -> Iterator[str]:
    """What is wrong with a row's identity, given the row before it."""
    place, number = row["input_row"], row["image_index"]
    first, end = shard.row_start, shard.row_start + shard.num_rows
    if row["input_file"] != shard.file.name or not first <= place < end:
        yield f"is not of rows {first} to {end - 1} of {shard.file.name}"
    if row["fingerprint"] != expected.fingerprint:
        yield "has another fingerprint than the plan"
    if number == 0:
        if place <= last["input_row"]:
            yield "stands twice or out of order"
        return
    if (place, number, row["key"]) != (last["input_row"], last["image_index"] + 1, last.get("key")):
        yield "does not follow the image before it"


def _made_as_problems(
    report: ObjectReport, row: Mapping[str, Any], expected: Expected
) -> Iterator[str]:
    """Count an image that was made otherwise than planned, or tell that it cannot be so."""
    text = "" if expected.planned_rows is None else str(row[MADE_AS])
    if not text:
        return
    try:
        parse_made_as(text, expected.planned_rows)
    except ValueError as error:
        yield str(error)
    else:
        report.made_as[text] += 1


def _derived_seeds(row: Mapping[str, Any], expected: Expected) -> list[int]:
    """Seeds that an image may have whose row brought none; where it was made from an image of a
    dataset, that one's seed stands beside its own if columns were carried."""
    key, number = row["key"], row["image_index"]
    parent = row.get(f"{PARENT}seed") if expected.knows_parents else None
    of_parent = [] if parent is None else [expected.seed_of(key, number, None, parent)]
    return [expected.seed_of(key, number), *of_parent]


def _is_seed_known(row: Mapping[str, Any], first: Mapping[str, Any], expected: Expected) -> bool:
    """Tell whether an image's seed is derived, or follows from that of its row's first image."""
    key, number = row["key"], row["image_index"]
    if number == 0 or first.get("key") != key:  # any seed may be the row's own
        return True
    known = (expected.seed_of(key, number), expected.seed_of(key, number, first["seed"]))
    return row["seed"] in known


def _image_problems(row: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the bytes of an image."""
    raw = row["image"]["bytes"]
    if sha256(raw) != row["image_sha256"]:
        yield "its bytes are not those of image_sha256"
    try:
        with Image.open(io.BytesIO(raw), formats=[row["image_format"].upper()]) as image:
            pixels = np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        yield f"cannot be decoded: {error}"
        return
    if pixels.shape[:2] != (row["height"], row["width"]):
        yield f"has shape {pixels.shape}, not {row['height']} x {row['width']}"
    elif row["image_format"] in LOSSLESS_FORMATS and sha256(pixels) != row["pixel_sha256"]:
        yield "its pixels are not those of pixel_sha256"


def _check_rejections(
    report: ObjectReport, store: Store, shard: Shard, facts: Mapping[str, Any]
) -> list[int]:
    """Check the rejections of a shard; the places in the input of the rejected rows."""
    if not facts["rejected"]:
        return []
    named = named_digest(facts)
    raw = store.read(identity.rejected_path(shard.id, named))
    if raw is None:
        _complain(report, "the record of its rejected rows is missing")
        return []
    if named and sha256(raw) != named:
        _complain(report, "the record of its rejected rows is not the one that it names")
    columns = ["input_row", "reason"] if named else None
    table = pq.read_table(pa.BufferReader(raw), columns=columns, page_checksum_verification=True)
    report.rejected = Counter(cast("list[str]", table.column("reason").to_pylist()))
    if report.rejected != facts["rejected"]:
        _complain(report, f"rejected {dict(report.rejected)}, its object says {facts['rejected']}")
    return cast("list[int]", table.column("input_row").to_pylist())


def _check_conservation(
    report: ObjectReport, shard: Shard, seen: Mapping[int, str], rejected: list[int]
) -> None:
    """Every planned row is there exactly once: as images or as a rejection."""
    found = Counter([*seen, *rejected])
    planned = range(shard.row_start, shard.row_start + shard.num_rows)
    report.num_rows = len(found.keys() & set(planned))
    lost = [place for place in planned if place not in found]
    if lost:
        _complain(report, f"{len(lost)} rows neither made nor rejected, the first is {lost[0]}")
    doubled = [place for place, count in found.items() if count > 1]
    if doubled:
        _complain(report, f"rows both made and rejected, or rejected twice: {doubled[:5]}")


def _complain(report: ObjectReport, problem: str) -> None:
    report.problems.append(f"{identity.data_path(f'{report.shard:05d}')}: {problem}")

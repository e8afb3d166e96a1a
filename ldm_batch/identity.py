"""Who is who: keys, per-image seeds, fingerprints and object names, from the plan and the row only.

Pure: must not know time, host, worker, batch or arrival order.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

DATA_FOLDER = "data"
META_FOLDER = ".ldm_batch"
PLAN_PATH = f"{META_FOLDER}/plan.json"
PLAN_FOLDER = f"{META_FOLDER}/plan"
RECEIPTS_FOLDER = f"{META_FOLDER}/receipts"
REJECTED_FOLDER = f"{META_FOLDER}/rejected"
FAILURES_FOLDER = f"{META_FOLDER}/failures"
RUNS_FOLDER = f"{META_FOLDER}/runs"
INPUT_FOLDER = f"{META_FOLDER}/input"

MAX_SEED = 2**64 - 1
"""Largest seed that a job or a row may bring."""
MAX_EXACT_FLOAT = float(2**53 - 1)
"""Up to here every whole number is a float of its own; the next is that of two whole numbers."""

_OBJECT_NAME = re.compile(r"([0-9]{5}|[1-9][0-9]{5,})\.(parquet|json)")
_REJECTED_NAME = re.compile(r"([0-9]{5}|[1-9][0-9]{5,})-([0-9a-f]{64})\.parquet")
_ENDS_IN_NUMBER = re.compile(r":[0-9]+\Z")


def data_path(shard_id: str) -> str:
    """Path of a shard's object below the sink; its existence is the shard's commit."""
    return f"{DATA_FOLDER}/{shard_id}.parquet"


def receipt_path(shard_id: str) -> str:
    """Path of a shard's receipt below the sink."""
    return f"{RECEIPTS_FOLDER}/{shard_id}.json"


def rejected_path(shard_id: str, digest: str = "") -> str:
    """Path of a shard's rejected rows below the sink.

    Args:
        digest: SHA-256 (hexadecimal) of the file, which the shard's object names; none in form 1.
    """
    return f"{REJECTED_FOLDER}/{shard_id}{'-' * bool(digest)}{digest}.parquet"


def failure_path(shard_id: str) -> str:
    """Path of the record of a shard's last failure below the sink."""
    return f"{FAILURES_FOLDER}/{shard_id}.json"


def run_path(started: str, unique: str) -> str:
    """Path of the record of a driver's run below the sink, which says that it is alive."""
    return f"{RUNS_FOLDER}/{started}-{unique}.json"


def shard_index(object_name: str) -> int | None:
    """Index of the shard that an object name (`00017.parquet`) stands for; None for others."""
    match = _OBJECT_NAME.fullmatch(object_name)
    return int(match[1]) if match else None


def split_rejected(name: str) -> tuple[str, str] | None:
    """Shard id and digest that a name of rejections (`00017-<digest>.parquet`) tells; None for
    others, those without a digest among them."""
    match = _REJECTED_NAME.fullmatch(name)
    return (match[1], match[2]) if match else None


def derive_key(file_name: str, input_row: int) -> str:
    """Key of a row without an id: its place in the input, e.g. `prompts.parquet#17`."""
    return f"{file_name}#{input_row}"


def numbered_seed(seed: int, image_index: int) -> int:
    """Seed of image `image_index` of what has this seed: the seed itself for the first.

    Returns:
        For every other image the 63-bit BLAKE2b hash of (seed, image index), so that no image's
        seed is that of its neighbour's row.
    """
    if image_index == 0:
        return seed
    return _hash(b"ldm_batch.image", f"{seed}\0{image_index}", bits=63)


@dataclass(frozen=True, slots=True)
class Form:
    """How the plans of one form name images, derive their seeds and take those of rows.

    A plan records its form's number and keeps it for ever; a new rule is a new form.
    """

    number: int
    image_key: Callable[[str, int], str]
    """(key of a row, number of its image) -> key of that image as an input of its own."""
    image_seed: Callable[..., int]
    """(job seed, key, number of the image, the row's own seed or nothing) -> the image's seed, 0 to
    2**64 - 1."""
    upscale_seed: Callable[..., int]
    """The same of an image that is enlarged, independent of its own seed. In a job of two stages
    the key is the `image_key` of what the first one makes, so that it gives the images of two jobs
    after each other."""
    edit_seed: Callable[..., int]
    """The same of an image that is made from another one, independent of both. Last comes the
    seed that the other one was made by, where it is known: an edit of an edit has its own noise."""
    max_given_seed: int
    """Largest seed that a row may bring; a larger one is a rejection."""
    max_given_float: float
    """Largest float that stands for a whole number."""
    keeps_rejected_rows: bool
    """Whether rejections hold the row itself, under a name that their object knows."""


def _image_key_1(key: str, image_index: int) -> str:
    return f"{key}:{image_index}" if image_index else key


def _image_seed_1(job_seed: int, key: str, image_index: int, row_seed: int | None = None) -> int:
    """The row's own seed plus the image's number where it has one, else a 64-bit hash."""
    if row_seed is not None:
        return (row_seed + image_index) % (MAX_SEED + 1)
    return _hash(b"ldm_batch.seed", f"{job_seed}\0{image_index}\0{key}", bits=64)


def _upscale_seed_1(job_seed: int, key: str, image_index: int, row_seed: int | None = None) -> int:
    if row_seed is not None:
        return (row_seed + image_index) % (MAX_SEED + 1)
    return _hash(b"ldm_batch.upscal", f"{job_seed}\0{image_index}\0{key}", bits=64)


def _image_key_2(key: str, image_index: int) -> str:
    """With the number also where the key could be taken for that of another row's image."""
    return f"{key}:{image_index}" if image_index or _ENDS_IN_NUMBER.search(key) else key


def _image_seed_2(job_seed: int, key: str, image_index: int, row_seed: int | None = None) -> int:
    """Image `image_index` of the row's seed: its own, or the 63-bit hash of (job seed, key)."""
    derived = _hash(b"ldm_batch.row", f"{job_seed}\0{key}", bits=63)
    return numbered_seed(derived if row_seed is None else row_seed, image_index)


def _upscale_seed_2(job_seed: int, key: str, image_index: int, row_seed: int | None = None) -> int:
    derived = _hash(b"ldm_batch.large", f"{job_seed}\0{key}", bits=63)
    return numbered_seed(derived if row_seed is None else row_seed, image_index)


def _edit_seed(
    job_seed: int,
    key: str,
    image_index: int,
    row_seed: int | None = None,
    parent_seed: int | None = None,
) -> int:
    if parent_seed is None:
        derived = _hash(b"ldm_batch.edit", f"{job_seed}\0{key}", bits=63)
    else:
        derived = _hash(b"ldm_batch.reedit", f"{job_seed}\0{parent_seed}\0{key}", bits=63)
    return numbered_seed(derived if row_seed is None else row_seed, image_index)


def _hash(person: bytes, text: str, *, bits: int) -> int:
    """The first bits of the 8-byte BLAKE2b hash of a text."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=person).digest()
    return int.from_bytes(digest, "big") >> (64 - bits)


FORMS = {
    1: Form(
        1,
        _image_key_1,
        _image_seed_1,
        _upscale_seed_1,
        _edit_seed,
        max_given_seed=2**63 - 1,
        max_given_float=math.inf,
        keeps_rejected_rows=False,
    ),
    2: Form(
        2,
        _image_key_2,
        _image_seed_2,
        _upscale_seed_2,
        _edit_seed,
        max_given_seed=MAX_SEED,
        max_given_float=MAX_EXACT_FLOAT,
        keeps_rejected_rows=True,
    ),
}
"""All forms that there ever were, by number. What the second mends: seeds of 64 bits, which are
negative where a reader has signed ones; `seed + 1` as the second image's, which is the first one's
of the next row; two images of one name; floats that two whole numbers share."""
NEWEST_FORM = FORMS[max(FORMS)]
"""The form of plans that are made now."""


def fingerprint(document: Mapping[str, Any]) -> str:
    """SHA-256 (hexadecimal) of a JSON document in canonical form."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def differing_fields(planned: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name the fields in which two documents differ, with both values, e.g. `seed: planned 0,
    now 1`."""
    before, after = dict(_flatten(planned)), dict(_flatten(now))
    absent = "nothing"
    return [
        f"{path}: planned {_show(before.get(path, absent))}, now {_show(after.get(path, absent))}"
        for path in sorted(before.keys() | after.keys())
        if before.get(path, absent) != after.get(path, absent)
    ]


def _flatten(value: object, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flatten(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _show(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

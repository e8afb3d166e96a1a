"""Who is who: keys, per-image seeds, fingerprints and object names, from the plan and the row only.

Pure: must not know time, host, worker, batch or arrival order.
"""

from __future__ import annotations

import hashlib
import json
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

MAX_SEED = 2**64 - 1
"""Largest seed of an image, as they are derived."""
MAX_GIVEN_SEED = 2**63 - 1
"""Largest seed that a job or a row may bring."""

_OBJECT_NAME = re.compile(r"([0-9]{5}|[1-9][0-9]{5,})\.(parquet|json)")


def data_path(shard_id: str) -> str:
    """Path of a shard's object below the sink; its existence is the shard's commit."""
    return f"{DATA_FOLDER}/{shard_id}.parquet"


def receipt_path(shard_id: str) -> str:
    """Path of a shard's receipt below the sink."""
    return f"{RECEIPTS_FOLDER}/{shard_id}.json"


def rejected_path(shard_id: str) -> str:
    """Path of a shard's rejected rows below the sink."""
    return f"{REJECTED_FOLDER}/{shard_id}.parquet"


def failure_path(shard_id: str) -> str:
    """Path of the record of a shard's last failure below the sink."""
    return f"{FAILURES_FOLDER}/{shard_id}.json"


def shard_index(object_name: str) -> int | None:
    """Index of the shard that an object name (`00017.parquet`) stands for; None for others."""
    match = _OBJECT_NAME.fullmatch(object_name)
    return int(match[1]) if match else None


def derive_key(file_name: str, input_row: int) -> str:
    """Key of a row without an id: its place in the input, e.g. `prompts.parquet#17`."""
    return f"{file_name}#{input_row}"


def image_key(key: str, image_index: int) -> str:
    """Key of image `image_index` of a row as an input of its own: the row's key for the first."""
    return f"{key}:{image_index}" if image_index else key


def image_seed(job_seed: int, key: str, image_index: int, row_seed: int | None = None) -> int:
    """Seed of image `image_index` of a row, 0 to 2**64 - 1.

    The row's own seed plus `image_index` (modulo 2**64) where it has one, else the 64-bit
    BLAKE2b hash of (job seed, image index, key).
    """
    if row_seed is not None:
        return (row_seed + image_index) % (MAX_SEED + 1)
    return _hashed_seed(b"ldm_batch.seed", job_seed, key, image_index)


def upscale_seed(job_seed: int, key: str, image_index: int, row_seed: int | None = None) -> int:
    """Seed with which an image is enlarged, 0 to 2**64 - 1; independent of the image's own seed.

    In a job of two stages `key` is the `image_key` of what the first one makes, so that it gives
    the images of two jobs after each other.
    """
    if row_seed is not None:
        return (row_seed + image_index) % (MAX_SEED + 1)
    return _hashed_seed(b"ldm_batch.upscal", job_seed, key, image_index)


def _hashed_seed(person: bytes, job_seed: int, key: str, image_index: int) -> int:
    text = f"{job_seed}\0{image_index}\0{key}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, person=person).digest(), "big")


@dataclass(frozen=True, slots=True)
class Form:
    """How the plans of one form name images and derive their seeds.

    A plan records its form's number and keeps it for ever; a new rule is a new form.
    """

    number: int
    image_key: Callable[[str, int], str]
    """(key of a row, number of its image) -> key of that image as an input of its own."""
    image_seed: Callable[..., int]
    """See `image_seed`."""
    upscale_seed: Callable[..., int]
    """See `upscale_seed`."""


FORMS = {1: Form(1, image_key, image_seed, upscale_seed)}
"""All forms that there ever were, by number."""
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

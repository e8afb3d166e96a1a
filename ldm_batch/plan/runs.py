"""The runs of a dataset: the sign of life of each driver, a record that it renews while it works.

A driver is alive where the store's own clock says that its record was written within a minute, and
the record does not say that the run has ended. Must not know what a run does.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from ldm_batch import identity
from ldm_batch.errors import LdmBatchError
from ldm_batch.storage import Store

RENEW_S, ALIVE_S = 10.0, 60.0
"""Five renewals in a row may fail before a driver is taken for dead."""


@contextmanager
def show_life(store: Store) -> Iterator[None]:
    """Keep a record that says that this driver is at work while the block runs.

    Raises:
        StorageError: the record could not be created.
    """
    started = datetime.now(UTC)
    path = identity.run_path(f"{started:%Y%m%dT%H%M%SZ}", uuid.uuid4().hex[:8])
    record: dict[str, Any] = {
        "started_at": started.isoformat(timespec="seconds"),
        "ended_at": None,
        "host": platform.node(),
        "pid": os.getpid(),
    }
    store.publish(path, _bytes(record), exclusive=True)
    done = threading.Event()
    renewer = threading.Thread(target=_renew, args=(store, path, record, done), daemon=True)
    renewer.start()
    try:
        yield
    finally:
        done.set()
        renewer.join()
        record["ended_at"] = datetime.now(UTC).isoformat(timespec="seconds")
        with suppress(LdmBatchError):  # in a minute nobody takes it for alive
            store.publish(path, _bytes(record), exclusive=False)


def living_runs(store: Store) -> list[str]:
    """The drivers that are at work on a dataset, each in words.

    Raises:
        StorageError: the store cannot be asked, or written to.
    """
    written = store.modified_at(identity.RUNS_FOLDER)
    if not written:
        return []
    now = store.now()
    young = sorted(name for name, at in written.items() if now - at < ALIVE_S)
    records = {name: store.read(f"{identity.RUNS_FOLDER}/{name}") for name in young}
    return [words for name, raw in records.items() if (words := _in_words(name, raw))]


def _renew(store: Store, path: str, record: Mapping[str, Any], done: threading.Event) -> None:
    while not done.wait(RENEW_S):
        with suppress(LdmBatchError):  # the next renewal may do better
            store.publish(path, _bytes(record), exclusive=False)


def _bytes(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, indent=2, sort_keys=True).encode()


def _in_words(name: str, raw: bytes | None) -> str | None:
    """A run in words; None where it has ended."""
    try:
        record = json.loads(raw or b"")
        if record["ended_at"] is not None:
            return None
        return f"process {record['pid']} on {record['host']}, since {record['started_at']}"
    except (ValueError, KeyError, TypeError):
        return f"a driver that wrote {identity.RUNS_FOLDER}/{name}"

"""One driver at a time on a store that cannot keep two writers apart: a lease object, renewed.

Needed in degraded mode only. Clocks of the drivers' machines may differ by a few seconds.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from ldm_batch.errors import JobError, LdmBatchError
from ldm_batch.storage import Store

LEASE_PATH = ".ldm_batch/lease.json"
LEASE_S, RENEW_S, SETTLE_S = 60.0, 15.0, 1.0
"""Three renewals in a row may fail, and clocks differ by seconds, before another driver may take
over; of two that write at once each reads, a moment later, who came last."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Who may write, and until when (seconds since the epoch)."""

    holder: str
    host: str
    pid: int
    until: float


@contextmanager
def hold_lease(store: Store) -> Iterator[None]:
    """Be the only driver of a dataset while the block runs.

    Raises:
        JobError: another driver is at work, or was killed less than a minute ago.
    """
    me, done = uuid.uuid4().hex, threading.Event()
    _refuse_other(store, me)
    _write(store, me)
    time.sleep(SETTLE_S)
    _refuse_other(store, me)
    renewer = threading.Thread(target=_renew, args=(store, me, done), daemon=True)
    renewer.start()
    try:
        yield
    finally:
        done.set()
        renewer.join()
        _give_back(store, me)


def _refuse_other(store: Store, me: str) -> None:
    lease = _read(store)
    if lease is None or lease.holder == me or lease.until < time.time():
        return
    raise JobError(
        f"sink.uri: {store.root} is in use by process {lease.pid} on {lease.host}, and this store "
        "takes one driver at a time; wait until it ends, or, if it was killed, for "
        f"{lease.until - time.time():.0f} s"
    )


def _give_back(store: Store, me: str) -> None:
    """Remove the lease, as far as the store lets us: what the block did is done all the same."""
    try:
        if (lease := _read(store)) is not None and lease.holder == me:
            store.remove(LEASE_PATH)
    except LdmBatchError as error:
        print(
            f"warning: the lease could not be given back, so the next driver waits for up to "
            f"{LEASE_S:.0f} s: {error}",
            file=sys.stderr,
        )


def _renew(store: Store, me: str, done: threading.Event) -> None:
    while not done.wait(RENEW_S):
        try:
            lease = _read(store)
            if lease is not None and lease.holder != me:
                print(
                    f"warning: {lease.host}, process {lease.pid}, has taken over {store.root}",
                    file=sys.stderr,
                )
                return
            _write(store, me)
        except LdmBatchError as error:
            print(f"warning: the lease could not be renewed: {error}", file=sys.stderr)


def _read(store: Store) -> Lease | None:
    try:
        return Lease(**json.loads(store.read(LEASE_PATH) or b""))
    except (ValueError, TypeError):
        return None


def _write(store: Store, me: str) -> None:
    lease = Lease(me, platform.node(), os.getpid(), time.time() + LEASE_S)
    store.publish(LEASE_PATH, json.dumps(asdict(lease)).encode(), exclusive=False)

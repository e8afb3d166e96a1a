"""Whose trouble it is that one file cannot be read: of whoever names it, or of its store.

The one place where that is ruled, for every kind of storage. Must not know rows, nor any client.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path

from ldm_batch.errors import UnservedError


class Whose(StrEnum):
    """What an error says of the file that was asked for."""

    ABSENT = "absent"
    """It is not there."""
    CLOSED = "closed"
    """It is no file, it is closed to us, or its name is none: so it will be the next time."""
    STORE = "store"
    """Nothing: the store is out of order, or out of reach. A later attempt may find the file."""


ERRNOS = {
    errno.ENOENT: Whose.ABSENT,
    errno.ENOTDIR: Whose.ABSENT,
    errno.EISDIR: Whose.CLOSED,
    errno.EACCES: Whose.CLOSED,
    errno.EPERM: Whose.CLOSED,
    errno.ENAMETOOLONG: Whose.CLOSED,
    errno.EINVAL: Whose.CLOSED,
    errno.EILSEQ: Whose.CLOSED,
}
"""EINVAL and EILSEQ say that a file system has no such names, as Windows' have none with a colon.
All others are the store's: ESTALE, EIO, ENODEV, ETIMEDOUT, EMFILE, ...; ELOOP: see below."""
OS_KINDS = {
    FileNotFoundError: Whose.ABSENT,
    NotADirectoryError: Whose.ABSENT,
    IsADirectoryError: Whose.CLOSED,
    PermissionError: Whose.CLOSED,
}
"""Of errors that clients raise themselves, often without a number."""
STATUSES = {404: Whose.ABSENT, 410: Whose.ABSENT, 400: Whose.CLOSED, 403: Whose.CLOSED}
"""Of HTTP. 401 asks for credentials, 429 and from 500 on is an outage; 414 and others of 4xx speak
of the request."""
PASSING_STATUSES = (401, 407, 408, 425, 429)


def judge_os_error(error: OSError, path: str = "") -> Whose:
    """Judge what the operating system says of a local path.

    ELOOP is the path's own where its links lead in a circle, or through more of them than the
    system follows; else it is a mount that is gone, which automounters tell so, whatever links lead
    there.
    """
    if error.errno == errno.ELOOP:
        return Whose.CLOSED if _leads_in_a_circle(path) else Whose.STORE
    return ERRNOS.get(error.errno or 0, Whose.STORE)


def _leads_in_a_circle(path: str) -> bool:
    """Tell whether links alone keep a path from leading anywhere."""
    target = Path(os.path.realpath(path))  # any number of links followed, a circle left as it is
    if any(os.path.islink(part) for part in (target, *target.parents)):  # raises nothing
        return True
    try:
        os.stat(target)
    except OSError as error:
        return error.errno != errno.ELOOP
    return True


def judge_status(status: int) -> Whose:
    """Judge the status of an answer of HTTP that is an error."""
    is_of_request = 400 <= status < 500 and status not in PASSING_STATUSES
    return STATUSES.get(status, Whose.CLOSED if is_of_request else Whose.STORE)


def judge(error: BaseException) -> Whose:
    """Judge what any client of fsspec's raises: what the store answered counts before what the
    client made of it, as some call every failure a missing file."""
    kind = next((OS_KINDS[k] for k in OS_KINDS if isinstance(error, k)), None)
    for cause in _chain(error):
        if (status := _status(cause)) is not None:
            return judge_status(status)
        if cause is not error and not isinstance(cause, (LookupError, *OS_KINDS)):
            return Whose.STORE
    return kind or Whose.STORE


def unserved(place: str, whose: Whose, why: object) -> UnservedError:
    """The error that tells so of a file."""
    return UnservedError(f"{place}: {why}", is_absent=whose is Whose.ABSENT)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _status(error: BaseException) -> int | None:
    """The status of an answer, where an error holds one, however its client calls it."""
    response = getattr(error, "response", None)
    held = response.get("ResponseMetadata", {}) if isinstance(response, Mapping) else {}
    found = (getattr(error, "status", None), getattr(error, "status_code", None))
    numbers = [n for n in (*found, held.get("HTTPStatusCode")) if type(n) is int and n >= 400]
    return numbers[0] if numbers else None

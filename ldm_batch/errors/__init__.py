"""The exceptions of ldm_batch, told apart by who has to act.

    LdmBatchError
    ├── JobError        the job cannot run or go on; the user must act (exit code 2)
    │   ├── AccessError     storage will not serve us, whoever asks and however often
    │   ├── TryLaterError   the cluster cannot be had for now (exit code 75)
    │   └── UnforeseenError a library raised what nobody foresaw, in a worker (exit code 70)
    ├── ShardError      one shard could not be made; tried again, then recorded (exit code 1)
    │   └── FinalShardError as it is, each attempt comes to the same: not tried again
    └── StorageError    storage did not do what was asked: a job error where the driver meets it,
        │               a shard error where a worker does
        ├── UnservedError   the store is there, and one file is not to be had: the trouble of the
        │                   row that names it
        └── NoRoomError     a disk, or a quota, is full: every shard that follows would be lost, so
                            a job stops (exit code 75)

A bad row is not an exception but a value: `ldm_batch.records.Rejection`. Messages hold no secrets:
what libraries say of URLs is cleaned when an error is made.
"""

from __future__ import annotations

import errno

from ldm_batch.errors.redact import tellable


class LdmBatchError(Exception):
    """Base of all errors that ldm_batch raises on purpose; the message is for the user."""

    def __init__(self, message: object = "") -> None:
        """Say what is wrong, where, and what to do."""
        super().__init__(tellable(str(message)))


class JobError(LdmBatchError):
    """The job cannot run: bad configuration, no input, a model that does not load, other plan."""


class AccessError(JobError):
    """Storage refuses for a reason that no retry mends: credentials, rights, a missing bucket."""


class TryLaterError(JobError):
    """The cluster is away, full, or lost its head: the same command may work later."""


class UnforeseenError(JobError):
    """A worker met what is no error of ours before its first shard: the traceback goes along."""

    def __init__(self, message: object = "", report: str = "") -> None:
        """Keep the traceback of where it happened beside the message."""
        super().__init__(message)
        self.report = tellable(report)

    def __reduce__(self) -> tuple[type[UnforeseenError], tuple[str, str]]:
        """Travel between processes whole."""
        return type(self), (str(self), self.report)


class ShardError(LdmBatchError):
    """One shard could not be made: damaged input, out of memory, a pipeline that raised."""


class FinalShardError(ShardError):
    """One shard could not be made, and never will be unless the job is changed as is said."""


class StorageError(LdmBatchError):
    """A file could not be listed, read or written: permissions, a full disk, an outage."""


class UnservedError(StorageError):
    """One file is not there, or is there and not to be had; of its store that says nothing."""

    def __init__(self, message: object = "", *, is_absent: bool = False) -> None:
        """Tell a file that is not there from one that is closed to us, or is none."""
        super().__init__(message)
        self.is_absent = is_absent


class NoRoomError(StorageError):
    """A disk or a quota is full: what is written from here on is lost."""

    def __init__(self, message: object = "", *, is_of_node: bool = False) -> None:
        """Tell a disk of the machine at work, beside which another may have room, from the
        sink's."""
        super().__init__(message)
        self.is_of_node = is_of_node


def is_no_room(error: OSError) -> bool:
    """Tell whether the operating system has no room left, on a disk or in a quota."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def one_line(error: object, max_chars: int = 500) -> str:
    """What a library says of an error, on one line and cut."""
    return " ".join(str(error).split())[:max_chars]

"""The exceptions of ldm_batch, told apart by who has to act.

    LdmBatchError
    ├── JobError        the job cannot run or go on; the user must act (exit code 2)
    │   ├── AccessError     storage will not serve us, whoever asks and however often
    │   └── TryLaterError   the cluster cannot be had for now (exit code 75)
    ├── ShardError      one shard could not be made; tried again, then recorded (exit code 1)
    └── StorageError    storage did not do what was asked: a job error where the driver meets it,
                        a shard error where a worker does

A bad row is not an exception but a value: `ldm_batch.records.Rejection`.
"""


class LdmBatchError(Exception):
    """Base of all errors that ldm_batch raises on purpose; the message is for the user."""


class JobError(LdmBatchError):
    """The job cannot run: bad configuration, no input, a model that does not load, other plan."""


class AccessError(JobError):
    """Storage refuses for a reason that no retry mends: credentials, rights, a missing bucket."""


class TryLaterError(JobError):
    """The cluster is away, full, or lost its head: the same command may work later."""


class ShardError(LdmBatchError):
    """One shard could not be made: damaged input, out of memory, a pipeline that raised."""


class StorageError(LdmBatchError):
    """A file could not be listed, read or written: permissions, a full disk, an outage."""

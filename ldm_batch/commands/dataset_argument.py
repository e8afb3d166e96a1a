"""What the operator's commands have in common: which dataset, and how to reach it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from typing import Any

from ldm_batch.config import S3Config
from ldm_batch.config.bounds import refuse
from ldm_batch.config.s3 import check_s3
from ldm_batch.config.storage import StorageAccess, check_storage
from ldm_batch.config.validate import find_forbidden
from ldm_batch.dataset import find_sink
from ldm_batch.errors import JobError
from ldm_batch.storage import Store, absolute

FLAGS = {"true": True, "false": False}
MAX_LISTED = 20
"""Lines of one kind that a command prints for people; `--json` has all."""


def add_sink(parser: argparse.ArgumentParser) -> None:
    """Add the dataset and the options of its store to a command line."""
    parser.add_argument("sink", help="the dataset: a folder, or s3://bucket/prefix, gs://...")
    parser.add_argument(
        "--storage",
        action="append",
        metavar="NAME=VALUE",
        default=[],
        help="an option of the store, as sink.storage takes it",
    )
    s3 = parser.add_argument_group("S3", "credentials come from the standard chain")
    s3.add_argument("--endpoint", metavar="URL", help="another store than AWS")
    s3.add_argument("--region")
    s3.add_argument("--anonymous", action="store_true", help="send no credentials")
    s3.add_argument("--path-style", action=argparse.BooleanOptionalAction, default=None)
    s3.add_argument("--ca-bundle", metavar="FILE", help="certificates to trust")


def named_s3(options: argparse.Namespace) -> S3Config:
    """How the parsed command line wants S3 to be reached.

    Raises:
        JobError: an option's value is none, or holds a secret.
    """
    s3 = S3Config(
        endpoint=options.endpoint,
        region=options.region,
        anonymous=options.anonymous,
        path_style=options.path_style,
        ca_bundle=options.ca_bundle,
    )
    problems = [*check_s3("", s3), *(f"{path}: refused, {why}" for path, why in find_forbidden(s3))]
    refuse(f"--{problem.replace('_', '-', 1)}" for problem in problems)
    return s3


def named_storage(options: argparse.Namespace, s3: S3Config) -> dict[str, Any]:
    """The options of a store that the parsed command line sets.

    Raises:
        JobError: one is no option of such a store, has a bad value, or is a secret.
    """
    storage: dict[str, Any] = {}
    for word in options.storage:
        name, equals, text = word.partition("=")
        if not equals:
            raise JobError(f"--storage: {name!r} is no NAME=VALUE, as project=my-project is")
        storage[name] = FLAGS.get(text, text)
        if name == "retry_s" and text.isdecimal():
            storage[name] = int(text)
    refuse(_storage_problems("--storage ", storage, s3, options.sink))
    return storage


def checked_access(s3: S3Config, storage: Mapping[str, Any], sink: str) -> StorageAccess:
    """How a dataset's store is reached, as Python names it.

    Raises:
        JobError: an option is none of such a store, has a bad value, or is a secret.
    """
    refuse(check_s3("", s3))
    refuse(f"{path}: refused, {why}" for path, why in find_forbidden(s3))
    refuse(_storage_problems("storage.", storage, s3, sink))
    return StorageAccess(s3, dict(storage))


def _storage_problems(
    path: str, storage: Mapping[str, Any], s3: S3Config, sink: str
) -> Iterator[str]:
    """Problems of the options of a dataset's store, a line each."""
    yield from check_storage(path, storage, s3, [sink])
    forbidden = find_forbidden(dict(storage), "storage")
    yield from (f"{name}: refused, {why}" for name, why in forbidden)


def named_sink(options: argparse.Namespace) -> Store:
    """The store that the parsed command line names.

    Raises:
        JobError: it names none: nothing at all, or a file.
    """
    if not options.sink:
        raise JobError("SINK: empty; name the dataset's folder, or s3://bucket/prefix")
    if "://" not in options.sink and os.path.isfile(place := absolute(options.sink)):
        raise JobError(f"{place}: is a file; name the dataset's folder")
    s3 = named_s3(options)
    return find_sink(options.sink, StorageAccess(s3, named_storage(options, s3)))

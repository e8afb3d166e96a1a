"""What the operator's commands have in common: which dataset, and how to reach it."""

from __future__ import annotations

import argparse
import os

from ldm_batch.config import S3Config
from ldm_batch.config.bounds import refuse
from ldm_batch.config.s3 import check_s3
from ldm_batch.config.validate import find_forbidden
from ldm_batch.dataset import find_sink
from ldm_batch.errors import JobError
from ldm_batch.storage import Store, absolute

MAX_LISTED = 20
"""Lines of one kind that a command prints for people; `--json` has all."""


def add_sink(parser: argparse.ArgumentParser) -> None:
    """Add the dataset and the options of its store to a command line."""
    parser.add_argument("sink", help="the dataset: a folder, or s3://bucket/prefix")
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


def named_sink(options: argparse.Namespace) -> Store:
    """The store that the parsed command line names.

    Raises:
        JobError: it names none: nothing at all, or a file.
    """
    if not options.sink:
        raise JobError("SINK: empty; name the dataset's folder, or s3://bucket/prefix")
    if "://" not in options.sink and os.path.isfile(place := absolute(options.sink)):
        raise JobError(f"{place}: is a file; name the dataset's folder")
    return find_sink(options.sink, named_s3(options))

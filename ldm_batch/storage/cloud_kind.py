"""A cloud as a kind of storage: what its URLs name is listed, opened and read, and holds datasets.

Must not know any one cloud: who opens a bucket is an argument.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import BinaryIO

from ldm_batch.errors import AccessError, StorageError, UnservedError
from ldm_batch.storage.bucket import Held, OpenBucket
from ldm_batch.storage.cloud import CloudFolder
from ldm_batch.storage.files import fixed_prefix, glob_matcher
from ldm_batch.storage.place import Access, Kind, Place, SourceFile


def cloud_kind(open_bucket: OpenBucket) -> Kind:
    """The kind of storage whose buckets are opened so."""
    return Kind(
        partial(_list_files, open_bucket),
        partial(_open_for_reading, open_bucket),
        partial(_read_start, open_bucket),
        partial(_prove_folder, open_bucket),
        open_place=partial(_open_place, open_bucket),
    )


def _open_place(open_bucket: OpenBucket, root: str, access: Access) -> Place:
    """The folder of a URL `s3://bucket/prefix`."""
    bucket, key = open_bucket(root, access)
    return CloudFolder(bucket, key.strip("/"))


def _open_for_reading(open_bucket: OpenBucket, url: str, access: Access) -> BinaryIO:
    """Open an object for random reading, every read one range request."""
    bucket, key = open_bucket(url, access)
    return CloudFolder(bucket, "").open(key)


def _read_start(open_bucket: OpenBucket, url: str, max_bytes: int, access: Access) -> bytes:
    """The first bytes of an object; what its cloud says against it alone is told apart."""
    bucket, key = open_bucket(url, access)
    try:
        found = CloudFolder(bucket, "").read_start(key, max_bytes)
    except (AccessError, StorageError) as error:
        cause = error.__cause__
        if isinstance(cause, Exception) and bucket.is_of_object(cause):
            raise UnservedError(error) from cause
        raise
    if found is None:
        raise UnservedError(f"{url}: No such file", is_absent=True)
    return found


def _prove_folder(open_bucket: OpenBucket, url: str, access: Access) -> None:
    """Ask for a prefix; one below which nothing stands answers, too."""
    bucket, key = open_bucket(url, access)
    CloudFolder(bucket, "").prove(f"{key.strip('/')}/".lstrip("/"))


def _list_files(open_bucket: OpenBucket, url: str, access: Access) -> list[SourceFile]:
    """The files that a key, a glob or a prefix names, of a prefix all that is below it; empty where
    there is nothing. One pass."""
    bucket, path = open_bucket(url, access)
    root = path.rstrip("/")
    folder = CloudFolder(bucket, "")
    if root == path and root and (found := folder.head(root)) is not None:
        return [_source_file(bucket.url, found, root.rpartition("/")[0])]
    files = [
        replace(_source_file(bucket.url, held, root), is_found=True)
        for held in folder.objects(f"{root}/" if root else "")
        if not held.key.endswith("/")
    ]
    fixed = fixed_prefix(root)
    if files or fixed == root:
        return files
    is_match = glob_matcher(root)
    return [
        _source_file(bucket.url, held, fixed)
        for held in folder.objects(f"{fixed}/" if fixed else "")
        if is_match(held.key) and not held.key.endswith("/")
    ]


def _source_file(url: str, held: Held, root: str) -> SourceFile:
    name = held.key.removeprefix(root).lstrip("/")
    return SourceFile(name, f"{url}/{held.key}", held.size_bytes, held.version)

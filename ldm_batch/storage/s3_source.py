"""Input in S3: objects listed, and opened or read by those who name one.

Must not know how objects are written.
"""

from __future__ import annotations

from dataclasses import replace
from typing import BinaryIO

from ldm_batch.config import S3Config
from ldm_batch.errors import AccessError, StorageError, UnservedError
from ldm_batch.storage.files import fixed_prefix, glob_matcher
from ldm_batch.storage.place import Access, Kind, SourceFile
from ldm_batch.storage.s3 import S3Folder, open_folder, split_url
from ldm_batch.storage.s3_client import Client, Reply, connect, is_of_object


def open_for_reading(url: str, s3: Access) -> BinaryIO:
    """Open an object for random reading, every read one range request."""
    bucket, key = split_url(url)
    return S3Folder(bucket, "", *_connection(s3)).open(key)


def read_start(url: str, max_bytes: int, s3: Access) -> bytes:
    """The first bytes of an object."""
    bucket, key = split_url(url)
    folder = S3Folder(bucket, "", *_connection(s3))
    try:
        try:
            found = folder.read_start(key, max_bytes)
        except (AccessError, StorageError) as error:
            if is_of_object(error):
                folder.ask_why(key)
            raise
    except (AccessError, StorageError) as error:
        raise UnservedError(error) if is_of_object(error) else error from error.__cause__
    if found is None:
        raise UnservedError(f"{url}: No such file", is_absent=True)
    return found


def prove_folder(url: str, s3: Access) -> None:
    """Raise what keeps objects below a prefix from being asked for, all of them alike."""
    bucket, prefix = split_url(url)
    S3Folder(bucket, "", *_connection(s3)).prove(f"{prefix.strip('/')}/".lstrip("/"))


def list_files(url: str, s3: Access) -> list[SourceFile]:
    """The files that a key, a glob or a prefix names, of a prefix all that is below it; empty where
    there is nothing. One pass."""
    bucket, path = split_url(url)
    root = path.rstrip("/")
    folder = S3Folder(bucket, "", *_connection(s3))
    if root == path and root and (found := folder.head(root)) is not None:
        info = {"Key": root, "Size": found["ContentLength"], "ETag": found["ETag"]}
        return [_source_file(bucket, info, root.rpartition("/")[0])]
    files = [
        replace(_source_file(bucket, info, root), is_found=True)
        for info in folder.objects(f"{root}/" if root else "")
        if not info["Key"].endswith("/")
    ]
    fixed = fixed_prefix(root)
    if files or fixed == root:
        return files
    is_match = glob_matcher(root)
    return [
        _source_file(bucket, info, fixed)
        for info in folder.objects(f"{fixed}/" if fixed else "")
        if is_match(info["Key"]) and not info["Key"].endswith("/")
    ]


def _connection(s3: Access) -> tuple[Client, float]:
    s3 = s3 or S3Config()
    return connect(s3), s3.retry_s


def _source_file(bucket: str, info: Reply, root: str) -> SourceFile:
    key = str(info["Key"])
    name = key.removeprefix(root).lstrip("/")
    return SourceFile(name, f"s3://{bucket}/{key}", int(info["Size"]), str(info["ETag"]).strip('"'))


S3 = Kind(list_files, open_for_reading, read_start, prove_folder, open_place=open_folder)

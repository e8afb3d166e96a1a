"""Whole objects in an S3 bucket: one conditional request each, read by range requests.

An object is created by one PUT that the store refuses where there is an object already. It carries
the attempt that made it and the SHA-256 of its bytes, so that a writer whose reply was lost knows
its own object when it asks again.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import BinaryIO

from ldm_batch.config import S3Config
from ldm_batch.errors import JobError, StorageError
from ldm_batch.storage.local import SCRATCH_FOLDER
from ldm_batch.storage.place import (
    Access,
    Creation,
    Leftover,
    content_digest,
)
from ldm_batch.storage.s3_client import (
    Answer,
    Client,
    Missing,
    Reply,
    Taken,
    Unsupported,
    connect,
    persist,
)
from ldm_batch.storage.s3_file import RangeFile, read_body

MAX_VANISHED = 5
"""An object may be removed between the refusal of ours and the look at it; not again and again."""


def open_folder(root: str, s3: Access) -> S3Folder:
    """The folder of a URL `s3://bucket/prefix`."""
    s3 = s3 or S3Config()
    bucket, prefix = split_url(root)
    return S3Folder(bucket, prefix.strip("/"), connect(s3), retry_s=s3.retry_s)


def split_url(url: str) -> tuple[str, str]:
    """Bucket and key of an S3 URL."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not bucket or not url.startswith("s3://"):
        raise JobError(f"{url}: not an S3 URL; s3://bucket/path is one")
    return bucket, key


class S3Folder:
    """A `Place` below a prefix of a bucket."""

    keys_per_page = 1000
    """How much of a listing is asked for at once; stores answer with no more than this."""

    def __init__(self, bucket: str, prefix: str, client: Client, retry_s: float = 60.0) -> None:
        """Name a folder; `client` is a botocore client, or behaves like one."""
        self._bucket, self._prefix = bucket, f"{prefix}/" if prefix else ""
        self._client, self._retry_s = client, retry_s

    def names(self, folder: str) -> set[str]:
        """Names directly below a folder; empty where the folder is not there."""
        prefix = self._key(f"{folder}/" if folder else "")
        pages = list(self._pages(Prefix=prefix, Delimiter="/"))
        keys = [info["Key"] for page in pages for info in page.get("Contents", [])]
        keys += [info["Prefix"] for page in pages for info in page.get("CommonPrefixes", [])]
        return {key.removeprefix(prefix).rstrip("/") for key in keys} - {""}

    def modified_at(self, folder: str) -> dict[str, float]:
        """When each object directly below a folder was put there, by name, in seconds since the
        epoch; empty where the folder is not there."""
        prefix = self._key(f"{folder}/" if folder else "")
        pages = self._pages(Prefix=prefix, Delimiter="/")
        found = [info for page in pages for info in page.get("Contents", [])]
        times = {info["Key"].removeprefix(prefix): info["LastModified"] for info in found}
        return {name: time.timestamp() for name, time in times.items() if name}

    def has(self, path: str) -> bool:
        """Tell whether an object is there."""
        return self.head(path) is not None

    def open(self, path: str) -> BinaryIO:
        """Open an object for random reading, every read one range request."""
        found = self.head(path)
        if found is None:
            raise StorageError(f"{self._name(path)}: No such file")
        size, etag = int(found["ContentLength"]), str(found["ETag"])
        return RangeFile(partial(self._read_range, path, etag), size).as_file()

    def read(self, path: str) -> bytes | None:
        """All bytes of an object, or None where it is not there."""
        try:
            return self._ask(path, lambda: read_body(self._client.get_object(**self._at(path))))
        except Missing:
            return None

    def read_start(self, path: str, max_bytes: int) -> bytes | None:
        """The first bytes of an object, or None where it is not there."""
        found = self.head(path)
        if found is None:
            return None
        stop = min(int(found["ContentLength"]), max_bytes)
        return self._read_range(path, str(found["ETag"]), 0, stop) if stop else b""

    def ask_why(self, path: str) -> None:
        """Ask for a byte of an object that was refused to HEAD, whose answer cannot say why; raises
        that."""
        with suppress(Missing, Taken):
            request = {**self._at(path), "Range": "bytes=0-0"}
            self._ask(path, lambda: read_body(self._client.get_object(**request)))

    def prove(self, prefix: str) -> None:
        """Ask for a prefix; one below which nothing stands answers, too."""
        request = {"Bucket": self._bucket, "Prefix": self._key(prefix), "MaxKeys": 1}
        self._ask(prefix, partial(self._client.list_objects_v2, **request))

    def create(self, path: str, content: BinaryIO) -> Creation:
        """Make an object appear whole, unless there is one already: one conditional PUT."""
        attempt, digest = uuid.uuid4().hex, content_digest(content)
        for _ in range(MAX_VANISHED):
            try:
                self._put(path, content, attempt, digest, IfNoneMatch="*")
                return Creation.WON
            except Unsupported:
                self._put(path, content, attempt, digest)
                return Creation.WON
            except Taken:
                found = self.head(path)
            if found is not None:
                return self._whose(path, found, attempt, digest)
        raise StorageError(f"{self._name(path)}: appears and vanishes while it is written")

    def compare(self, path: str, content: BinaryIO) -> Creation:
        """Tell whether the object that is there holds these bytes or other ones."""
        return self._whose(path, self.head(path) or {}, None, content_digest(content))

    def replace(self, path: str, content: BinaryIO) -> None:
        """Make an object appear whole, in place of one that is there."""
        self._put(path, content, uuid.uuid4().hex, content_digest(content))

    def remove(self, path: str) -> None:
        """Remove an object; nothing happens where it is not there."""
        try:
            self._ask(path, lambda: self._client.delete_object(**self._at(path)))
        except Missing:
            return

    def remove_empty_folders(self) -> None:
        """There are no folders."""

    def leftovers(self) -> Iterator[Leftover]:
        """Uploads that were never completed, and temporary objects."""
        for info in self.objects(self._key(f"{SCRATCH_FOLDER}/")):
            path = info["Key"].removeprefix(self._prefix)
            yield Leftover(path, info["LastModified"].timestamp())
        with suppress(Unsupported):
            for page in self._pages_of_uploads():
                for upload in page.get("Uploads", []):
                    path = upload["Key"].removeprefix(self._prefix)
                    yield Leftover(path, upload["Initiated"].timestamp(), upload["UploadId"])

    def remove_leftover(self, leftover: Leftover) -> None:
        """Remove a leftover; nothing happens where it is gone."""
        if leftover.upload_id is None:
            return self.remove(leftover.path)
        upload = {**self._at(leftover.path), "UploadId": leftover.upload_id}
        with suppress(Missing):
            self._ask(leftover.path, lambda: self._client.abort_multipart_upload(**upload))
        return None

    def head(self, path: str) -> Reply | None:
        """What the store says of an object, None where it is not there."""
        try:
            return self._ask(path, lambda: self._client.head_object(**self._at(path)))
        except Missing:
            return None

    def objects(self, prefix: str) -> Iterator[Reply]:
        """Every object whose key starts with a prefix, in the order of the keys."""
        for page in self._pages(Prefix=prefix):
            yield from page.get("Contents", [])

    def _whose(self, path: str, found: Reply, attempt: str | None, digest: str) -> Creation:
        """Tell whose object it is that stands where ours was to be."""
        metadata = found.get("Metadata", {})
        if attempt is not None and metadata.get("attempt") == attempt:
            return Creation.WON
        theirs = metadata.get("sha256")
        if theirs is None:
            with self.open(path) as other:
                theirs = content_digest(other)
        return Creation.LOST_TO_SAME if theirs == digest else Creation.LOST_TO_OTHER

    def _put(
        self, path: str, content: BinaryIO, attempt: str, digest: str, **condition: str
    ) -> None:
        checksum = base64.b64encode(bytes.fromhex(digest)).decode()
        metadata = {"attempt": attempt, "sha256": digest}

        def put() -> None:
            content.seek(0)
            self._client.put_object(
                **self._at(path),
                Body=content,
                ChecksumSHA256=checksum,
                Metadata=metadata,
                **condition,
            )

        self._ask(path, put)

    def _read_range(self, path: str, etag: str, start: int, stop: int) -> bytes:
        request = {**self._at(path), "Range": f"bytes={start}-{stop - 1}", "IfMatch": etag}
        try:
            data = self._ask(path, lambda: read_body(self._client.get_object(**request)))
        except (Missing, Taken) as error:
            raise StorageError(f"{self._name(path)}: changed while it was read") from error
        if len(data) != stop - start:
            raise StorageError(f"{self._name(path)}: the store does not serve parts of objects")
        return data

    def _pages(self, **request: str) -> Iterator[Reply]:
        more: dict[str, str] = {}
        while True:
            limit = {"MaxKeys": self.keys_per_page}
            arguments = {"Bucket": self._bucket, **limit, **request, **more}
            page = self._ask("", partial(self._client.list_objects_v2, **arguments))
            yield page
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def _pages_of_uploads(self) -> Iterator[Reply]:
        more: dict[str, str] = {}
        while True:
            arguments = {"Bucket": self._bucket, "Prefix": self._prefix, **more}
            page = self._ask("", partial(self._client.list_multipart_uploads, **arguments))
            yield page
            if not page.get("IsTruncated"):
                return
            more = {
                "KeyMarker": page["NextKeyMarker"],
                "UploadIdMarker": page["NextUploadIdMarker"],
            }

    def _ask(self, path: str, request: Callable[[], Answer]) -> Answer:
        return persist(request, self._name(path), self._retry_s)

    def _at(self, path: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._key(path)}

    def _key(self, path: str) -> str:
        return f"{self._prefix}{path}"

    def _name(self, path: str) -> str:
        return f"s3://{self._bucket}/{self._key(path)}"

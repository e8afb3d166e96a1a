"""S3 through s3fs: a bucket whose every call is one request.

The only user of s3fs and botocore. Credentials come from the standard chain where the call is
made; they are never stored, shown or sent to another process.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, BinaryIO

from ldm_batch.storage.bucket import Bucket, Held, ListPage, Stamp, split_url
from ldm_batch.storage.cloud_kind import cloud_kind
from ldm_batch.storage.instance import retry_s_of
from ldm_batch.storage.place import Access
from ldm_batch.storage.s3_client import Client, connect, is_of_object, judge


def open_bucket(url: str, access: Access) -> tuple[Bucket, str]:
    """The bucket of a URL, and the key in it."""
    scheme, bucket, key = split_url(url, "an S3 URL")
    return S3Bucket(f"{scheme}://{bucket}", bucket, connect(access), retry_s_of(access)), key


class S3Bucket:
    """A `Bucket` of S3."""

    def __init__(self, url: str, name: str, client: Client, retry_s: float = 60.0) -> None:
        """Name a bucket; `client` has the calls of S3's own reference."""
        self.url, self.retry_s = url, retry_s
        self._name, self._client = name, client

    def head(self, key: str) -> Held:
        """Describe an object."""
        found = self._client.head_object(Bucket=self._name, Key=key)
        return Held(
            key,
            int(found["ContentLength"]),
            str(found["ETag"]).strip('"'),
            metadata=found.get("Metadata", {}),
        )

    def read(self, key: str, version: str = "", start: int = 0, stop: int | None = None) -> bytes:
        """Bytes of an object: all, or some of that version of it."""
        request = {"Bucket": self._name, "Key": key}
        if stop is not None:
            request["Range"] = f"bytes={start}-{stop - 1}"
        if version:
            request["IfMatch"] = f'"{version}"'
        body: bytes = self._client.get_object(**request)["Body"]
        return body

    def put(self, key: str, body: BinaryIO, stamp: Stamp, *, is_exclusive: bool) -> None:
        """Store an object, where asked by a request that the store refuses if there is one."""
        self._client.put_object(
            Bucket=self._name,
            Key=key,
            Body=body,
            ChecksumSHA256=base64.b64encode(bytes.fromhex(stamp.sha256)).decode(),
            Metadata=stamp.as_metadata(),
            **({"IfNoneMatch": "*"} if is_exclusive else {}),
        )

    def delete(self, key: str) -> None:
        """Remove an object."""
        self._client.delete_object(Bucket=self._name, Key=key)

    def list_page(self, prefix: str, more: str | None, limit: int, *, is_deep: bool) -> ListPage:
        """A page of the objects whose keys begin so."""
        page = self._client.list_objects_v2(
            Bucket=self._name,
            Prefix=prefix,
            MaxKeys=limit,
            **({} if is_deep else {"Delimiter": "/"}),
            **({"ContinuationToken": more} if more else {}),
        )
        return ListPage(
            [_held(info) for info in page.get("Contents", [])],
            [str(info["Prefix"]) for info in page.get("CommonPrefixes", [])],
            str(page["NextContinuationToken"]) if page.get("IsTruncated") else None,
        )

    def list_uploads(self, prefix: str, more: str | None) -> ListPage:
        """A page of uploads that were not completed; `more` is a key and an id."""
        marker, _, upload_id = (more or "").rpartition(" ")
        page = self._client.list_multipart_uploads(
            Bucket=self._name,
            Prefix=prefix,
            **({"KeyMarker": marker, "UploadIdMarker": upload_id} if more else {}),
        )
        uploads = [
            Held(
                str(info["Key"]),
                version=str(info["UploadId"]),
                modified_at=info["Initiated"].timestamp(),
            )
            for info in page.get("Uploads", [])
        ]
        is_last = not page.get("IsTruncated")
        following = None if is_last else f"{page['NextKeyMarker']} {page['NextUploadIdMarker']}"
        return ListPage(uploads, more=following)

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Drop an upload that was not completed."""
        self._client.abort_multipart_upload(Bucket=self._name, Key=key, UploadId=upload_id)

    def judge(self, error: Exception, place: str) -> Exception | None:
        """What an error means; None where a later attempt may succeed."""
        return judge(error, place)

    def is_of_object(self, error: Exception) -> bool:
        """Tell whether an error may speak of the one object that was asked for."""
        return is_of_object(error)


def _held(info: Mapping[str, Any]) -> Held:
    modified_at = info["LastModified"].timestamp()
    return Held(
        str(info["Key"]),
        int(info.get("Size", 0)),
        str(info.get("ETag", "")).strip('"'),
        modified_at,
    )


KIND = cloud_kind(open_bucket)

"""Google Cloud Storage through gcsfs: a bucket whose every call is one request.

The only user of gcsfs. An object is created with `ifGenerationMatch=0`, which the server holds to.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from types import MethodType
from typing import Any, BinaryIO

import aiohttp
import gcsfs.core
import google.auth.exceptions
import requests.exceptions
from gcsfs import retry as gcsfs_retry
from gcsfs.retry import ChecksumError, HttpError

from ldm_batch.errors import AccessError, LdmBatchError, StorageError
from ldm_batch.storage import retry
from ldm_batch.storage.bucket import Bucket, Held, ListPage, Stamp, split_url
from ldm_batch.storage.cloud_kind import cloud_kind
from ldm_batch.storage.instance import FIXED, call, instance, options_of, retry_s_of
from ldm_batch.storage.place import COPY_BYTES, Access, brief
from ldm_batch.storage.retry import Empty, Missing, Taken
from ldm_batch.storage.unserved import Whose, judge_status

PASSING = (
    ChecksumError,
    aiohttp.ClientError,
    requests.exceptions.RequestException,
    google.auth.exceptions.TransportError,
    json.JSONDecodeError,
    ConnectionError,
    TimeoutError,
)
"""Where a later attempt may succeed: a connection that breaks, a page that is no answer."""
NON_RETRYABLE = tuple(
    kind for kind in (getattr(gcsfs_retry, "NonRetryableError", None),) if kind is not None
)
"""What newer versions raise where no attempt of theirs helps."""
BOUNDARY = "ldm_batch_object"
NO_CREDENTIALS = (
    "no credentials are accepted; run `gcloud auth application-default login`, set "
    "GOOGLE_APPLICATION_CREDENTIALS or use a service account, or storage.token=anon for a public "
    "bucket"
)


def open_bucket(url: str, access: Access) -> tuple[Bucket, str]:
    """The bucket of a URL, and the key in it."""
    scheme, bucket, key = split_url(url, "a URL of Google Cloud Storage")
    fs = instance("gs", _connect, options_of(scheme, access))
    return GoogleBucket(f"{scheme}://{bucket}", bucket, fs, retry_s_of(access)), key


def _connect(options: Mapping[str, Any]) -> gcsfs.core.GCSFileSystem:
    """The class that asks nothing about the kind of a bucket, without its own retries.

    Where a file of credentials is named, it is that or nothing: gcsfs would go on as nobody.
    """
    if os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
        options = {"token": "google_default", **options}
    limits = aiohttp.ClientTimeout(
        total=None, sock_connect=retry.CONNECT_S, sock_read=retry.ANSWER_S
    )
    session = {"trust_env": True}  # proxies by the environment's names
    try:
        fs = gcsfs.core.GCSFileSystem(
            **options, requests_timeout=limits, session_kwargs=session, **FIXED
        )
    except (google.auth.exceptions.GoogleAuthError, ValueError) as error:
        raise AccessError(f"gs: {NO_CREDENTIALS} ({brief(error)})") from error
    fs._request = MethodType(gcsfs.core.GCSFileSystem._request.__wrapped__, fs)
    return fs


class GoogleBucket:
    """A `Bucket` of Google Cloud Storage."""

    def __init__(self, url: str, name: str, fs: gcsfs.core.GCSFileSystem, retry_s: float) -> None:
        """Name a bucket; `fs` reaches it."""
        self.url, self.retry_s = url, retry_s
        self._name, self._fs = name, fs

    def head(self, key: str) -> Held:
        """Describe an object."""
        return _held(self._ask("GET", "b/{}/o/{}", self._name, key))

    def read(self, key: str, version: str = "", start: int = 0, stop: int | None = None) -> bytes:
        """Bytes of an object: all, or some of that generation of it."""
        fs, path = self._fs, f"{self._fs._location}/download/storage/v1/b/{{}}/o/{{}}"
        headers = {} if stop is None else {"Range": f"bytes={start}-{stop - 1}"}
        query = {"alt": "media", "generation": version or None}
        answer = call(fs, lambda: fs._call("GET", path, self._name, key, headers=headers, **query))
        return bytes(answer[1])

    def put(self, key: str, body: BinaryIO, stamp: Stamp, *, is_exclusive: bool) -> None:
        """Store an object, where asked by a request that the store refuses if there is one."""
        fs, size = self._fs, stamp.size_bytes
        about = {
            "name": key,
            "contentType": "application/octet-stream",
            "md5Hash": _md5(body),
            "metadata": stamp.as_metadata(),
        }
        head = (
            f"--{BOUNDARY}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n"
            f"{json.dumps(about)}\r\n--{BOUNDARY}\r\n"
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        tail = f"\r\n--{BOUNDARY}--\r\n".encode()
        headers = {
            "Content-Type": f"multipart/related; boundary={BOUNDARY}",
            "Content-Length": str(len(head) + size + len(tail)),
        }
        query = {"uploadType": "multipart"} | ({"ifGenerationMatch": "0"} if is_exclusive else {})
        path = f"{fs._location}/upload/storage/v1/b/{{}}/o"
        body.seek(0)
        try:
            call(
                fs,
                lambda: fs._call(
                    "POST",
                    path,
                    self._name,
                    headers=headers,
                    data=_parts(head, body, tail),
                    **query,
                ),
                size,
            )
        except FileNotFoundError as error:
            raise AccessError(f"{self.url}/{key}: no such bucket") from error

    def delete(self, key: str) -> None:
        """Remove an object."""
        fs = self._fs
        call(fs, lambda: fs._call("DELETE", "b/{}/o/{}", self._name, key))

    def list_page(self, prefix: str, more: str | None, limit: int, *, is_deep: bool) -> ListPage:
        """A page of the objects whose keys begin so."""
        try:
            page = self._ask(
                "GET",
                "b/{}/o",
                self._name,
                prefix=prefix or None,
                delimiter=None if is_deep else "/",
                maxResults=str(limit),
                pageToken=more,
            )
        except FileNotFoundError as error:
            raise AccessError(f"{self.url}: no such bucket") from error
        held = [_held(info) for info in page.get("items", [])]
        return ListPage(held, page.get("prefixes", []), page.get("nextPageToken") or None)

    def list_uploads(self, prefix: str, more: str | None) -> ListPage:
        """Nothing: objects are sent by one request, which leaves no uploads."""
        return ListPage([])

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Nothing: there are none."""

    def judge(self, error: Exception, place: str) -> Exception | None:
        """What an error means; None where a later attempt may succeed."""
        return judge(error, place)

    def is_of_object(self, error: Exception) -> bool:
        """Tell whether an error may speak of the one object that was asked for."""
        if isinstance(error, HttpError):
            return judge_status(int(error.code or 0)) is Whose.CLOSED
        told = str(error).startswith(("Forbidden", "Bad Request"))  # gcsfs' own of 403 and 400
        return isinstance(error, (OSError, ValueError)) and told

    def _ask(self, method: str, path: str, *parts: str, **query: str | None) -> Mapping[str, Any]:
        fs = self._fs
        answer: Mapping[str, Any] = call(
            fs, lambda: fs._call(method, path, *parts, json_out=True, **query)
        )
        return answer


async def _parts(head: bytes, body: BinaryIO, tail: bytes) -> AsyncIterator[bytes]:
    """A request's body, never whole in memory."""
    yield head
    while block := body.read(COPY_BYTES):
        yield block
    yield tail


def _md5(body: BinaryIO) -> str:
    """The digest by which the server knows that it got all bytes right."""
    digest = hashlib.md5(usedforsecurity=False)
    while block := body.read(COPY_BYTES):
        digest.update(block)
    return base64.b64encode(digest.digest()).decode()


def _held(info: Mapping[str, Any]) -> Held:
    return Held(
        str(info["name"]),
        int(info.get("size", 0)),
        str(info.get("generation", "")),
        datetime.fromisoformat(info["updated"]).timestamp(),
        info.get("metadata") or {},
    )


def judge(error: Exception, place: str) -> Exception | None:
    """What an error of gcsfs means; None where a later attempt may succeed."""
    if isinstance(error, LdmBatchError):
        return error
    if isinstance(error, FileNotFoundError):
        return Missing(place)
    if isinstance(error, FileExistsError):
        return Taken(place)
    if isinstance(error, HttpError):
        return _judge_status(error, place)
    if isinstance(error, aiohttp.ClientSSLError):
        return AccessError(f"{place}: {brief(error)}; are its certificates trusted here?")
    if isinstance(error, PASSING):
        return None
    if isinstance(error, google.auth.exceptions.GoogleAuthError):
        return AccessError(f"{place}: {NO_CREDENTIALS} ({brief(error)})")
    if isinstance(error, OSError) and str(error).startswith("Forbidden"):
        told = "access denied; the credentials in use lack the right to do this"
        return AccessError(f"{place}: {told}")
    if isinstance(error, (OSError, ValueError, *NON_RETRYABLE)):
        return StorageError(f"{place}: {brief(error)}")
    return error


def _judge_status(error: HttpError, place: str) -> Exception | None:
    status = int(error.code or 0)
    if status in (408, 429) or status >= 500:
        return None
    if status == 401:
        return AccessError(f"{place}: {NO_CREDENTIALS} ({brief(error)})")
    if status == 416:
        return Empty(place)
    if status in (304, 412):
        return Taken(place)
    return StorageError(f"{place}: {brief(error)}")


KIND = cloud_kind(open_bucket)

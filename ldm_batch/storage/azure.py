"""Azure Blob Storage through adlfs: a container whose every call is one request.

The only user of adlfs. An object is created with `If-None-Match: *`, which the server holds to.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, BinaryIO, TypeVar

import adlfs
from azure.core import MatchConditions
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    IncompleteReadError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.storage.blob.aio import BlobPrefix

from ldm_batch.errors import AccessError, LdmBatchError, StorageError
from ldm_batch.storage import retry
from ldm_batch.storage.bucket import Bucket, Held, ListPage, Stamp, split_url
from ldm_batch.storage.cloud_kind import cloud_kind
from ldm_batch.storage.instance import FIXED, call, instance, options_of, retry_s_of
from ldm_batch.storage.place import Access, brief
from ldm_batch.storage.retry import Empty, Missing, Taken
from ldm_batch.storage.unserved import Whose, judge_status

Answer = TypeVar("Answer")
HOST_SUFFIXES = (".dfs.core.windows.net", ".blob.core.windows.net")
LARGEST_PUT_BYTES = 256 * 1024 * 1024
"""What is larger is sent in blocks, which one last request, conditional as well, makes an object;
what is smaller is in memory once while it is sent, as the library wants it."""
PASSING = (
    IncompleteReadError,
    ServiceRequestError,
    ServiceResponseError,
    ConnectionError,
    TimeoutError,
)
PASSING_CODES = (
    "ContainerBeingDeleted",
    "InternalError",
    "InvalidBlockList",
    "OperationTimedOut",
    "ServerBusy",
)
"""Codes of errors that a later attempt may not meet: blocks vanish where another writer's are made
an object. So are all answers of 408, 429 and from 500 on."""
TAKEN = ("BlobAlreadyExists", "ConditionNotMet", "UnauthorizedBlobOverwrite")
OF_A_BLOB = ("AuthorizationFailure", "AuthorizationPermissionMismatch")
"""Codes of what no retry mends that may be said of one blob alone."""
UNMENDABLE = {
    "AccountIsDisabled": "this account is disabled",
    "AuthenticationFailed": "the store does not accept these credentials (a wrong or expired key, "
    "or this machine's clock differs too much from the store's)",
    "AuthorizationFailure": "access denied; the credentials in use lack the right to do this",
    "AuthorizationPermissionMismatch": "access denied; the credentials in use lack the right to "
    "do this",
    "ContainerNotFound": "no such container",
    "InvalidAuthenticationInfo": "the credentials have expired or are no credentials; renew them",
    "NoAuthenticationInformation": "access denied without credentials",
    "PublicAccessNotPermitted": "access denied without credentials",
}
NO_CREDENTIALS = (
    "no credentials found; run `az login`, set AZURE_STORAGE_CONNECTION_STRING or another of "
    "Azure's variables, or storage.anon=true for a public container"
)


def open_bucket(url: str, access: Access) -> tuple[Bucket, str]:
    """The container of a URL, and the name in it.

    `az://container/path`, or with its account: `abfs://container@account.dfs.core.windows.net/path`.
    """
    scheme, bucket, key = split_url(url, "a URL of Azure Blob Storage")
    options = options_of(scheme, access)
    container, _, host = bucket.partition("@")
    account = next((host.removesuffix(s) for s in HOST_SUFFIXES if host.endswith(s)), "")
    if account:
        options = {"account_name": account, **options}
    fs = instance("az", _connect, options)
    return AzureContainer(f"{scheme}://{bucket}", container, fs, retry_s_of(access)), key


def _connect(options: Mapping[str, Any]) -> adlfs.AzureBlobFileSystem:
    try:
        fs = adlfs.AzureBlobFileSystem(**options, **FIXED)
    except ValueError as error:
        raise AccessError(
            "azure: no account that can be reached is named; set storage.account_name, "
            "AZURE_STORAGE_ACCOUNT_NAME or AZURE_STORAGE_CONNECTION_STRING, whole and "
            f"unchanged ({brief(error)})"
        ) from error
    fs.service_client._config.max_single_put_size = LARGEST_PUT_BYTES
    return fs


class AzureContainer:
    """A `Bucket` of Azure Blob Storage."""

    def __init__(self, url: str, name: str, fs: adlfs.AzureBlobFileSystem, retry_s: float) -> None:
        """Name a container; `fs` reaches it."""
        self.url, self.retry_s = url, retry_s
        self._name, self._fs = name, fs

    def head(self, key: str) -> Held:
        """Describe a blob."""
        return _held(self._ask(lambda: self._blob(key).get_blob_properties(**_once())))

    def read(self, key: str, version: str = "", start: int = 0, stop: int | None = None) -> bytes:
        """Bytes of a blob: all, or some of that version of it."""
        part: dict[str, Any] = {} if stop is None else {"offset": start, "length": stop - start}
        if version:
            part |= {"etag": f'"{version}"', "match_condition": MatchConditions.IfNotModified}

        async def read() -> bytes:
            stream = await self._blob(key).download_blob(**part, max_concurrency=1, **_once())
            return bytes(await stream.readall())

        return self._ask(read)

    def put(self, key: str, body: BinaryIO, stamp: Stamp, *, is_exclusive: bool) -> None:
        """Store a blob, where asked by a request that the store refuses if there is one."""
        size = stamp.size_bytes
        self._ask(
            lambda: self._blob(key).upload_blob(
                body,
                length=size,
                overwrite=not is_exclusive,
                metadata=stamp.as_metadata(),
                max_concurrency=1,
                **_once(),
            ),
            size,
        )

    def delete(self, key: str) -> None:
        """Remove a blob."""
        self._ask(lambda: self._blob(key).delete_blob(**_once()))

    def list_page(self, prefix: str, more: str | None, limit: int, *, is_deep: bool) -> ListPage:
        """A page of the blobs whose names begin so."""
        container = self._fs.service_client.get_container_client(self._name)
        walk = container.list_blobs if is_deep else container.walk_blobs

        async def read() -> ListPage:
            found = walk(name_starts_with=prefix or None, results_per_page=limit, **_once())
            pages = found.by_page(continuation_token=more)
            listed = [one async for one in await anext(pages)]
            folders = [one.name for one in listed if isinstance(one, BlobPrefix)]
            held = [_held(one) for one in listed if not isinstance(one, BlobPrefix)]
            return ListPage(held, folders, pages.continuation_token or None)

        return self._ask(read)

    def list_uploads(self, prefix: str, more: str | None) -> ListPage:
        """Nothing: blocks that no request made an object are dropped by the store in a week."""
        return ListPage([])

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Nothing: there are none."""

    def judge(self, error: Exception, place: str) -> Exception | None:
        """What an error means; None where a later attempt may succeed."""
        return judge(error, place)

    def is_of_object(self, error: Exception) -> bool:
        """Tell whether an error may speak of the one blob that was asked for."""
        if not isinstance(error, HttpResponseError):
            return False
        code = _code_of(error)
        is_everyones = code in UNMENDABLE and code not in OF_A_BLOB
        return not is_everyones and judge_status(int(error.status_code or 0)) is Whose.CLOSED

    def _blob(self, key: str) -> Any:
        return self._fs.service_client.get_blob_client(self._name, key)

    def _ask(
        self, request: Callable[[], Awaitable[Answer]], num_bytes: int | None = None
    ) -> Answer:
        return call(self._fs, request, num_bytes)


def _once() -> dict[str, Any]:
    """The options of a call that the library does not make again by itself."""
    return {
        "retry_total": 0,
        "connection_timeout": retry.CONNECT_S,
        "read_timeout": retry.ANSWER_S,
    }


def _held(blob: Any) -> Held:
    return Held(
        str(blob.name),
        int(blob.size or 0),
        str(blob.etag or "").strip('"'),
        blob.last_modified.timestamp(),
        blob.metadata or {},
    )


def judge(error: Exception, place: str) -> Exception | None:
    """What an error of adlfs means; None where a later attempt may succeed."""
    if isinstance(error, LdmBatchError):
        return error
    if isinstance(error, HttpResponseError) and error.status_code:
        return _judge_answer(error, place)
    if isinstance(error, ClientAuthenticationError):  # no answer: nothing was asked
        return AccessError(f"{place}: {NO_CREDENTIALS} ({brief(error)})")
    if isinstance(error, ServiceRequestError) and "certificate" in str(error).lower():
        return AccessError(f"{place}: {brief(error)}; are its certificates trusted here?")
    if isinstance(error, PASSING):
        return None
    if isinstance(error, (AzureError, OSError, ValueError)):
        return StorageError(f"{place}: {brief(error)}")
    return error


def _code_of(error: HttpResponseError) -> str:
    """The store's own code of an error; its library makes members of an enumeration of most."""
    code = getattr(error, "error_code", None) or ""
    return str(getattr(code, "value", code))


def _judge_answer(error: HttpResponseError, place: str) -> Exception | None:
    status = int(error.status_code or 0)
    code = _code_of(error)
    if status == 416:
        return Empty(place)
    if code in TAKEN or status == 412:
        return Taken(place)
    if code in UNMENDABLE:
        return AccessError(f"{place}: {UNMENDABLE[code]} ({code})")
    if code in PASSING_CODES or status in (408, 429) or status >= 500:
        return None
    if status == 404:
        return Missing(place)
    if status in (401, 403):
        told = "access denied; the credentials in use lack the right to do this"
        return AccessError(f"{place}: {told} ({code or status})")
    return StorageError(f"{place}: {brief(error)}")


KIND = cloud_kind(open_bucket)

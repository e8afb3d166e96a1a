"""Files of the web: one client per process with a bounded pool, one request for a file's start.

The only user of fsspec's HTTP; listings and tables go the way of every other kind of input. Must
not know what the files are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from http.client import responses
from typing import Any

import aiohttp
from fsspec.implementations.http import HTTPFileSystem

from ldm_batch.errors import AccessError, LdmBatchError, StorageError, UnservedError
from ldm_batch.storage import retry
from ldm_batch.storage.files import FILES
from ldm_batch.storage.instance import FIXED, call, instance, retry_s_of
from ldm_batch.storage.place import COPY_BYTES, Access, brief
from ldm_batch.storage.retry import persist
from ldm_batch.storage.unserved import Whose, judge_status, unserved

MAX_CONNECTIONS = 16
ASKING_STATUS = (401, 407)
"""Answers that say who asks is not known; no later attempt helps."""
LEADS_NOWHERE = (aiohttp.TooManyRedirects, aiohttp.RedirectClientError)
"""Of one address: it sends on in a circle, or to what is not of the web."""


def read_start(url: str, max_bytes: int, access: Access) -> bytes:
    """The first bytes of a file; never takes in more, also of a server that serves no parts.

    Raises:
        UnservedError: its server has none, or none for us.
        StorageError: the server is away, or in trouble.
        AccessError: it asks for credentials.
    """
    fs = instance("http", _connect, {})

    async def read() -> bytes:
        return await _read(fs, url, max_bytes)

    return persist(lambda: call(fs, read, max_bytes), url, retry_s_of(access), judge)


def _connect(_options: Mapping[str, Any]) -> HTTPFileSystem:
    return HTTPFileSystem(get_client=_make_client, **FIXED)


async def _make_client(**_: Any) -> aiohttp.ClientSession:
    limits = aiohttp.ClientTimeout(
        total=None, sock_connect=retry.CONNECT_S, sock_read=retry.ANSWER_S
    )
    pool = aiohttp.TCPConnector(limit=MAX_CONNECTIONS)
    return aiohttp.ClientSession(connector=pool, timeout=limits, trust_env=True)


async def _read(fs: HTTPFileSystem, url: str, max_bytes: int) -> bytes:
    session = await fs.set_session()
    headers = {"Range": f"bytes=0-{max_bytes - 1}", "Accept-Encoding": "identity"}
    async with session.get(fs.encode_url(url), headers=headers) as answer:
        if answer.status == 416:  # an empty file has no first byte
            return b""
        if answer.status >= 400:  # not by `raise_for_status`, which tells the server's own words
            told = _phrase(answer.status)
            raise aiohttp.ClientResponseError(
                answer.request_info, answer.history, status=answer.status, message=told
            )
        parts, size = [], 0
        async for block in answer.content.iter_chunked(COPY_BYTES):
            parts.append(block[: max_bytes - size])
            size += len(parts[-1])
            if size == max_bytes:
                break
        return b"".join(parts)


def judge(error: Exception, place: str) -> Exception | None:
    """What an error means; None where a later attempt may succeed."""
    if isinstance(error, LdmBatchError):
        return error
    if isinstance(error, LEADS_NOWHERE):
        return UnservedError(f"{place}: its server sends on to nowhere ({type(error).__name__})")
    if isinstance(error, aiohttp.ClientResponseError):
        if isinstance(error.__cause__, aiohttp.http.HttpProcessingError):  # a page that is none
            return None
        if error.status in ASKING_STATUS:
            return AccessError(f"{place}: its server asks for credentials ({error.status})")
        whose, why = judge_status(error.status), _phrase(error.status)
        return None if whose is Whose.STORE else unserved(place, whose, why)
    if isinstance(error, aiohttp.ClientSSLError):
        return AccessError(f"{place}: {brief(error)}; are its certificates trusted here?")
    if isinstance(error, aiohttp.InvalidURL):
        return UnservedError(f"{place}: no address")
    if isinstance(error, (aiohttp.ClientError, ConnectionError, TimeoutError)):
        return None
    if isinstance(error, (OSError, ValueError)):
        return StorageError(f"{place}: {brief(error)}")
    return error


def _phrase(status: int) -> str:
    """A status in the words of its standard: a server's own may repeat what was asked for."""
    known = responses.get(status)
    return f"{status} {known}" if known else str(status)


KIND = replace(FILES, read_start=read_start)

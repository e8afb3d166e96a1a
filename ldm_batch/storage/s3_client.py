"""One s3fs per process and options, its calls by S3's own names, and its errors in our words.

Its own retries and botocore's are off. Credentials come from the standard chain where the call is
made; they are never stored, shown or sent to another process.
"""

from __future__ import annotations

import http.client
import os
from collections.abc import Mapping
from typing import Any, Protocol, cast

import aiohttp
import botocore.session
import s3fs
import urllib3.exceptions
from botocore import eventstream, parsers
from botocore import exceptions as aws

from ldm_batch.errors import AccessError, LdmBatchError, StorageError
from ldm_batch.storage import retry
from ldm_batch.storage.instance import FIXED, call, instance, options_of, size_of
from ldm_batch.storage.place import Access, as_access, brief
from ldm_batch.storage.retry import Empty, Missing, Taken, Unsupported
from ldm_batch.storage.unserved import Whose, judge_status

Reply = Mapping[str, Any]
"""Fields of what the store answers, by the names of S3's own reference."""

NO_WHOLE_ANSWER = (
    aws.AwsChunkedWrapperError,
    aws.ConnectionError,
    aws.CredentialRetrievalError,
    aws.FlexibleChecksumError,
    aws.HTTPClientError,
    aws.IncompleteReadError,
    eventstream.ParserError,
    parsers.ResponseParserError,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    aiohttp.ClientError,
    ConnectionError,
    TimeoutError,
)
"""Where a later attempt may succeed: a connection that breaks, bytes that are no answer (a proxy's
page). botocore lets its parsers' errors out as they are, and those of aiohttp from a body."""
MAX_TOLD_CHARS = 300
FOREIGN = (
    *NO_WHOLE_ANSWER,
    aws.BotoCoreError,
    aws.ClientError,
    aws.UndefinedModelAttributeError,
    OSError,
    ValueError,
)
"""All that a request raises; botocore's exceptions have no common base, aiohttp's not either."""
DEFAULT_REGION = "us-east-1"
"""Requests are signed for some region; stores other than AWS take any, and mostly are in this."""
MISSING = ("NoSuchKey", "NoSuchUpload", "NotFound", "404")
TAKEN = ("PreconditionFailed", "412")
PASSING = (
    "BadDigest",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
)
"""Codes of errors that a later attempt may not meet; so are all answers of 429 and from 500 on."""
UNMENDABLE = {
    "AccessDenied": "access denied; the credentials in use lack the right to do this",
    "AllAccessDisabled": "access to this bucket is disabled",
    "AuthorizationHeaderMalformed": "wrong region; set it with the option s3.region",
    "ExpiredToken": "the credentials have expired; renew them and run the same command again",
    "ExpiredTokenException": "the credentials have expired; renew them and run it again",
    "Forbidden": "access denied; the credentials in use lack the right to do this",
    "IllegalLocationConstraintException": "wrong region; set it with the option s3.region",
    "InvalidAccessKeyId": "the store does not know these credentials",
    "InvalidToken": "the store does not accept these credentials",
    "NoSuchBucket": "no such bucket",
    "PermanentRedirect": "wrong region or endpoint; set s3.region or s3.endpoint",
    "RequestTimeTooSkewed": "this machine's clock differs too much from the store's",
    "SignatureDoesNotMatch": "the store does not accept these credentials (wrong secret?)",
}
OF_AN_OBJECT = ("AccessDenied", "Forbidden")
"""Of these, what may be said of one object alone: its own policy, its key; see `is_of_object`."""
FORBIDDEN_STATUS = {301: "PermanentRedirect", 401: "AccessDenied", 403: "AccessDenied"}


class Client(Protocol):
    """The calls of S3 that are made here, each one request; a `Body` that is answered is bytes."""

    def get_object(self, **request: object) -> Reply:
        """Serve an object, or a range of its bytes."""

    def head_object(self, **request: object) -> Reply:
        """Describe an object."""

    def put_object(self, **request: object) -> Reply:
        """Store an object."""

    def delete_object(self, **request: object) -> Reply:
        """Remove an object."""

    def list_objects_v2(self, **request: object) -> Reply:
        """List a page of objects."""

    def list_multipart_uploads(self, **request: object) -> Reply:
        """List a page of uploads that were not completed."""

    def abort_multipart_upload(self, **request: object) -> Reply:
        """Drop an upload that was not completed."""


class _Calls:
    """Every call of S3 by its name, through one s3fs; safe in many threads."""

    def __init__(self, fs: s3fs.S3FileSystem) -> None:
        self._fs = fs

    def __getattr__(self, name: str) -> Any:
        def make(**request: Any) -> Reply:
            body = request.get("Body")
            num_bytes = len(body) if isinstance(body, bytes) else body and size_of(body)
            return call(self._fs, lambda: _ask(self._fs, name, request), num_bytes)

        return make


async def _ask(fs: s3fs.S3FileSystem, name: str, request: Mapping[str, Any]) -> Reply:
    """Make one request and read all of its answer; raises what botocore does."""
    try:
        answer = await fs._call_s3(name, **request)
        if "Body" in answer:
            body = answer["Body"]  # not by `with`, which hands out what checks no length
            try:
                answer["Body"] = await body.read()
            finally:
                body.close()
    except OSError as error:  # s3fs puts its own in place of botocore's, which says more
        if isinstance(error.__cause__, aws.ClientError):
            raise error.__cause__ from None
        raise
    return cast(Reply, answer)


def connect(access: Access) -> Client:
    """The calls, reached so: one s3fs per process, safe in many threads, never inherited.

    Raises:
        AccessError: it cannot be set up.
    """
    s3 = as_access(access).s3
    section = {
        "endpoint_url": s3.endpoint,
        "anon": s3.anonymous,
        "region": s3.region,
        "path_style": s3.path_style,
        "ca_bundle": s3.ca_bundle,
    }
    return instance("s3", _connect, section | options_of("s3", access))


def _connect(options: Mapping[str, Any]) -> Client:
    profile, endpoint = options.get("profile"), options["endpoint_url"]
    session = botocore.session.Session(profile=profile)
    region = options["region"] or session.get_config_variable("region") or DEFAULT_REGION
    named = (endpoint, *map(os.environ.get, ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")))
    in_path = any(named) if options["path_style"] is None else options["path_style"]
    fs = s3fs.S3FileSystem(
        anon=options["anon"],
        endpoint_url=endpoint,
        requester_pays=options.get("requester_pays", False),
        client_kwargs={"region_name": region, "verify": options["ca_bundle"]},
        config_kwargs={
            "connect_timeout": retry.CONNECT_S,
            "read_timeout": retry.ANSWER_S,
            "retries": {"mode": "standard", "total_max_attempts": 1},
            "max_pool_connections": retry.MAX_CONNECTIONS,
            "s3": {"addressing_style": "path" if in_path else "auto"},
        },
        cache_regions=False,
        **({"profile": profile} if profile else {}),
        **FIXED,
    )
    fs.retries = 1
    fs.connect()
    return cast(Client, _Calls(fs))


def judge(error: Exception, place: str) -> Exception | None:
    """What an error means; None where a later attempt may succeed."""
    if isinstance(error, LdmBatchError) or not isinstance(error, FOREIGN):
        return error
    if isinstance(error, aws.ClientError):
        return _judge_answer(error, place)
    if isinstance(error, (aws.NoCredentialsError, aws.PartialCredentialsError)):
        return AccessError(
            f"{place}: no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a "
            "profile or a role, or s3.anonymous=true for a public bucket"
        )
    if isinstance(error, aws.ParamValidationError):  # whose first line names nothing
        return AccessError(f"{place}: {' '.join(str(error).split())[:MAX_TOLD_CHARS]}")
    if isinstance(error, aws.SSLError):
        return AccessError(f"{place}: {brief(error)}; is s3.ca_bundle needed?")
    if isinstance(error, NO_WHOLE_ANSWER):
        return None
    if isinstance(error, OSError):
        return StorageError(f"{place}: {error.strerror or brief(error)}")
    return AccessError(f"{place}: {brief(error)}")


def _judge_answer(error: aws.ClientError, place: str) -> Exception | None:
    status, code = _status_and_code(error)
    if code in MISSING:
        return Missing(place)
    if status == 416:
        return Empty(place)
    if code in TAKEN or status == 412:
        return Taken(place)
    if code == "NotImplemented" or status == 501:
        return Unsupported(place)
    if code in PASSING or status == 429 or status >= 500:
        return None
    known = UNMENDABLE.get(code) or UNMENDABLE.get(FORBIDDEN_STATUS.get(status, ""))
    if known:
        return AccessError(f"{place}: {known} ({code or status})")
    return StorageError(f"{place}: {brief(error)}")


def is_of_object(error: Exception) -> bool:
    """Tell of what botocore raised whether the store may have meant the one object that was asked
    for, and not the bucket, the credentials or the region."""
    if not isinstance(error, aws.ClientError):
        return False
    status, code = _status_and_code(error)
    is_everyones = code in UNMENDABLE and code not in OF_AN_OBJECT
    return not is_everyones and judge_status(status) is Whose.CLOSED


def _status_and_code(error: aws.ClientError) -> tuple[int, str]:
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return status, str(error.response.get("Error", {}).get("Code", ""))

"""One connection to S3 per process and one layer of retries, with errors in our own words.

The only user of botocore. Its own retries are off: layers multiply, and a job must know how long a
call can take. Credentials come from the standard chain where the call is made; they are never
stored, shown or sent to another process.
"""

from __future__ import annotations

import http.client
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Protocol, TypeVar, cast

import botocore.session
import urllib3.exceptions
from botocore import UNSIGNED, eventstream, parsers
from botocore import exceptions as aws
from botocore.config import Config

from ldm_batch.config import S3Config
from ldm_batch.errors import AccessError, StorageError
from ldm_batch.storage.place import brief
from ldm_batch.storage.unserved import Whose, judge_status

Answer = TypeVar("Answer")
Reply = Mapping[str, Any]
"""Fields of what the store answers, by the names of S3's own reference."""

CONNECT_S, ANSWER_S = 10, 30
"""Longest wait for a connection, and for the next bytes on one: a store that is silent costs an
attempt, not the job, and another one fits into `retry_s`, 60 s by default."""
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
    ConnectionError,
    TimeoutError,
)
"""Where a later attempt may succeed: a connection that breaks, bytes that are no answer (a proxy's
page). botocore lets its parsers' errors out as they are, and those of urllib3 from a body."""
FOREIGN = (
    *NO_WHOLE_ANSWER,
    aws.BotoCoreError,
    aws.ClientError,
    aws.UndefinedModelAttributeError,
    OSError,
    ValueError,
)
"""All that a request raises; botocore's exceptions have no common base, urllib3's not either."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 8.0
"""Upper ends of the pauses, which double from the first: about 20 attempts in 60 s."""
MAX_CONNECTIONS = 32
"""Twice the 16 threads that read footers or receipts; with botocore's 10 the rest would open a new
connection for every request."""
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
    """The calls of botocore's client of S3 that are made here: botocore builds their methods when a
    client is made, from descriptions of the service, and so has no types for them."""

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


class Missing(Exception):
    """The object is not there."""


class Taken(Exception):
    """The condition of a conditional request does not hold: the object is there, or another."""


class Unsupported(Exception):
    """The store says itself that it does not know this kind of request."""


def connect(s3: S3Config) -> Client:
    """A client for these options: one per process, safe in many threads, never inherited."""
    with _connecting:
        return _connect(
            s3.endpoint, s3.region, s3.anonymous, s3.path_style, s3.ca_bundle, os.getpid()
        )


_connecting = threading.Lock()


@lru_cache(maxsize=16)
def _connect(
    endpoint: str | None,
    region: str | None,
    anonymous: bool,
    path_style: bool | None,
    ca_bundle: str | None,
    _pid: int,
) -> Client:
    named = (endpoint, *map(os.environ.get, ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")))
    in_path = any(named) if path_style is None else path_style
    session = botocore.session.Session()
    config = Config(
        connect_timeout=CONNECT_S,
        read_timeout=ANSWER_S,
        retries={"mode": "standard", "total_max_attempts": 1},
        max_pool_connections=MAX_CONNECTIONS,
        s3={"addressing_style": "path" if in_path else "auto"},
        **({"signature_version": UNSIGNED} if anonymous else {}),
    )
    try:
        made: object = session.create_client(
            "s3",
            endpoint_url=endpoint,
            region_name=region or session.get_config_variable("region") or DEFAULT_REGION,
            verify=ca_bundle,
            config=config,
        )
    except FOREIGN as error:
        raise AccessError(f"s3: cannot be set up: {brief(error)}") from error
    return cast(Client, made)


def persist(
    request: Callable[[], Answer],
    place: str,
    retry_s: float,
    *,
    pause: Callable[[float], None] = time.sleep,
) -> Answer:
    """Make a request until it succeeds; the one layer of retries.

    Pauses grow and are drawn at random, so that many workers do not come back at once. No new
    attempt starts after `retry_s` seconds.

    Raises:
        Missing: the object is not there.
        Taken: a condition does not hold.
        Unsupported: the store does not know such requests.
        AccessError: no retry could mend it.
        StorageError: it failed until the time was up.
    """
    give_up, longest = time.monotonic() + retry_s, FIRST_PAUSE_S
    while True:
        try:
            return request()
        except FOREIGN as error:
            trouble = _judge(error, place)
            if trouble is not None:
                raise trouble from error
            seconds = random.uniform(0, longest)
            if time.monotonic() + seconds > give_up:
                message = f"{place}: {brief(error)} (tried for {retry_s:g} s)"
                raise StorageError(message) from error
        pause(seconds)
        longest = min(2 * longest, LONGEST_PAUSE_S)


def is_of_object(error: BaseException) -> bool:
    """Tell of what `persist` raised whether the store may have meant the one object that was asked
    for, and not the bucket, the credentials or the region."""
    cause = error.__cause__
    if not isinstance(cause, aws.ClientError):
        return False
    status, code = _status_and_code(cause)
    is_everyones = code in UNMENDABLE and code not in OF_AN_OBJECT
    return not is_everyones and judge_status(status) is Whose.CLOSED


def _judge(error: Exception, place: str) -> Exception | None:
    """What an error means; None where a later attempt may succeed."""
    if isinstance(error, aws.ClientError):
        return _judge_answer(error, place)
    if isinstance(error, (aws.NoCredentialsError, aws.PartialCredentialsError)):
        return AccessError(
            f"{place}: no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a "
            "profile or a role, or s3.anonymous=true for a public bucket"
        )
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


def _status_and_code(error: aws.ClientError) -> tuple[int, str]:
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return status, str(error.response.get("Error", {}).get("Code", ""))

"""What a bucket of any cloud can be asked, each by one request, and how its objects are named.

The words that the clouds share; must not know any one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

from ldm_batch.errors import JobError
from ldm_batch.storage.place import Access


@dataclass(frozen=True, slots=True)
class Held:
    """What a store says of an object, or of an upload under way."""

    key: str
    size_bytes: int = 0
    version: str = ""
    """Of these bytes, by the store's own words; of an upload its id."""
    modified_at: float = 0.0
    """Seconds since the epoch, by the store's own clock."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What its writer said of it; empty in a listing."""


@dataclass(frozen=True, slots=True)
class ListPage:
    """A part of a listing."""

    objects: Sequence[Held]
    folders: Sequence[str] = ()
    """Keys up to the next slash, where a listing is not deep."""
    more: str | None = None
    """Where the next page begins; None: this is the last."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What is known of an object that is to be: who makes it, the SHA-256 (hexadecimal) of its
    bytes, and how many these are."""

    attempt: str
    sha256: str
    size_bytes: int

    def as_metadata(self) -> dict[str, str]:
        """What is stored beside the object, by the names that every cloud stores it under."""
        return {"attempt": self.attempt, "sha256": self.sha256}


class Bucket(Protocol):
    """A bucket, or container. Every method makes one request, and raises what its library does."""

    @property
    def url(self) -> str:
        """`s3://bucket`."""

    @property
    def retry_s(self) -> float:
        """How long a failing request is made again."""

    def head(self, key: str) -> Held:
        """Describe an object."""

    def read(self, key: str, version: str = "", start: int = 0, stop: int | None = None) -> bytes:
        """Bytes of an object: all, or some of that version of it."""

    def put(self, key: str, body: BinaryIO, stamp: Stamp, *, is_exclusive: bool) -> None:
        """Store an object, where asked only if there is none: the store itself holds to that."""

    def delete(self, key: str) -> None:
        """Remove an object."""

    def list_page(self, prefix: str, more: str | None, limit: int, *, is_deep: bool) -> ListPage:
        """A page of the objects whose keys begin so."""

    def list_uploads(self, prefix: str, more: str | None) -> ListPage:
        """A page of uploads that were not completed."""

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Drop an upload that was not completed."""

    def judge(self, error: Exception, place: str) -> Exception | None:
        """What an error means; None where a later attempt may succeed."""

    def is_of_object(self, error: Exception) -> bool:
        """Tell of what its library raised whether the store may have meant the one object that was
        asked for, and not the bucket, the credentials or the region."""


OpenBucket = Callable[[str, Access], tuple[Bucket, str]]
"""(URL, how it is reached) -> its bucket, and the key in it."""


def split_url(url: str, known: str) -> tuple[str, str, str]:
    """The scheme, bucket and key of a URL of a cloud.

    Args:
        url: `s3://bucket/path`; its scheme may be written large.
        known: what to call such a URL, `an S3 URL`.

    Raises:
        JobError: it names no bucket.
    """
    scheme, separator, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    if not bucket or not separator:
        raise JobError(f"{url}: not {known}; {scheme.lower()}://bucket/path is one")
    return scheme.lower(), bucket, key

"""An S3 store in memory that does to requests what a script says; it behaves as a client does."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from botocore.exceptions import ClientError, ConnectionClosedError

Object = tuple[bytes, dict[str, str]]


class Crash(BaseException):
    """The process that makes a request dies."""


def refusal(code: str, status: int) -> ClientError:
    """An answer that is an error."""
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "Request")


@dataclass
class MemoryS3:
    """Objects by key, and the script of what happens to the next requests.

    `ok`, `500`, `409` (a conflict, where the request is conditional), `lost` (done, but the reply
    is lost), `late` (not done, no reply; it may still arrive at any time), `crash before` and
    `crash after`, `other` (another driver does all its work first).
    """

    objects: dict[str, Object] = field(default_factory=dict)
    script: deque[str] = field(default_factory=deque)
    late: list[Callable[[], Any]] = field(default_factory=list)
    other: Callable[[], None] = lambda: None
    num_others: int = 0
    stale: set[str] | None = None
    """Keys that a listing shows, if it is to show an old state."""

    def put_object(
        self, Key: str, Body: Any, Metadata: dict[str, str], IfNoneMatch: str = "", **_: Any
    ) -> None:
        content = Body.read()

        def put() -> None:
            if IfNoneMatch and Key in self.objects:
                raise refusal("PreconditionFailed", 412)
            self.objects[Key] = (content, Metadata)

        self._do(put, is_conditional=bool(IfNoneMatch), may_be_late=True)

    def head_object(self, Key: str, **_: Any) -> dict[str, Any]:
        return self._do(lambda: self._describe(Key))

    def get_object(self, Key: str, Range: str = "", **_: Any) -> dict[str, Any]:
        def get() -> dict[str, Any]:
            answer = self._describe(Key)
            content = self.objects[Key][0]
            if Range:
                start, _, last = Range.removeprefix("bytes=").partition("-")
                content = content[int(start) : int(last) + 1]
            return {**answer, "Body": content}

        return self._do(get)

    def list_objects_v2(self, Prefix: str, **_: Any) -> dict[str, Any]:
        def listing() -> dict[str, Any]:
            keys = set(self.objects) if self.stale is None else self.stale
            found = [key for key in sorted(keys) if key.startswith(Prefix)]
            return {"Contents": [{"Key": key, "LastModified": datetime.now(UTC)} for key in found]}

        return self._do(listing)

    def list_multipart_uploads(self, **_: Any) -> dict[str, Any]:
        return self._do(dict)

    def delete_object(self, Key: str, **_: Any) -> None:
        self._do(lambda: self.objects.pop(Key, None))

    def _describe(self, key: str) -> dict[str, Any]:
        if key not in self.objects:
            raise refusal("404", 404)
        content, metadata = self.objects[key]
        now = datetime.now(UTC)
        return {
            "ContentLength": len(content),
            "ETag": f'"{hash(content)}"',
            "Metadata": metadata,
            "LastModified": now,
        }

    def _do(
        self,
        request: Callable[[], Any],
        *,
        is_conditional: bool = False,
        may_be_late: bool = False,
    ) -> Any:
        event = self.script.popleft() if self.script else "ok"
        if event == "other":
            rest, self.script = self.script, deque()
            self.num_others += 1
            self.other()
            self.script = rest
        if event == "crash before":
            raise Crash
        if event == "500" or (event == "late" and not may_be_late):
            raise refusal("InternalError", 500)
        if event == "409" and is_conditional:
            raise refusal("ConditionalRequestConflict", 409)
        if event == "late":
            self.late.append(request)
            raise ConnectionClosedError(endpoint_url="memory")
        answer = request()
        if event == "lost":
            raise ConnectionClosedError(endpoint_url="memory")
        if event == "crash after":
            raise Crash
        return answer

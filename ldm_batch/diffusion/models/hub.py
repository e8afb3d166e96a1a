"""How we ask a model hub: no request waits for ever, and what went wrong is said in our words.

Must not know what is asked for (fetch.py does).
"""

from __future__ import annotations

import errno
import os
import random
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ldm_batch.errors import JobError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

REQUEST_TIMEOUT_S = 60.0
"""For requests to which the hub's client gives no time limit: it lists files without one."""
RATE_LIMIT_S = 900.0
"""How long a fetch may wait, in all, for a hub that limits requests (its window is 300 s)."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_RIGHT = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def bounded_requests(failed: str) -> Iterator[None]:
    """Within, no request waits for ever, and a rate limit is waited for up to `RATE_LIMIT_S`.

    The hub's client retries by itself, a few times; but it waits as long as it is told to, and
    every node of a cluster that is told the same comes back in the same second.

    Raises:
        JobError: the hub asks to wait for longer.
    """
    from huggingface_hub import get_session

    client, deadline = get_session(), float("inf")
    jitter = random.Random()  # not the global one: whoever seeds that wakes all nodes at once

    def limit_time(request: Any) -> None:
        limits = request.extensions.get("timeout", {})
        request.extensions["timeout"] = {k: v or REQUEST_TIMEOUT_S for k, v in limits.items()}

    def wait_apart(response: Any) -> None:
        nonlocal deadline
        if response.status_code != 429:
            return
        now, asked = time.monotonic(), _asked_wait(response.headers)
        deadline = min(deadline, now + RATE_LIMIT_S)
        if now + asked > deadline:
            raise JobError(f"{failed}the hub limits our requests (HTTP 429) {_limit_advice(asked)}")
        time.sleep(jitter.uniform(0, 1 + asked / 4))

    hooks = client.event_hooks
    client.event_hooks = {
        "request": [*hooks.get("request", []), limit_time],
        "response": [*hooks.get("response", []), wait_apart],
    }
    try:
        yield
    finally:
        client.event_hooks = hooks


def _asked_wait(headers: Mapping[str, str]) -> float:
    """Seconds that an answer asks to wait for."""
    spent = re.search(r"\br=0;\s*t=(\d+)", headers.get("RateLimit", ""))
    asked = spent[1] if spent else headers.get("Retry-After", "").strip()
    return float(asked) if asked.isdigit() else 0.0


def _limit_advice(asked_s: float = 0) -> str:
    wait = f"for another {asked_s:.0f} s" if asked_s else "after several retries"
    return (
        f"{wait}; run the same command again later, set HF_TOKEN in the environment of every node "
        "(limits are wider with one), or let the nodes share one HF_HOME"
    )


def is_outage(error: BaseException) -> bool:
    """Tell whether the hub answered that it has trouble of its own."""
    cause = _cause(error)
    return getattr(getattr(cause, "response", None), "status_code", 0) >= 500


def _cause(error: BaseException) -> BaseException:
    """What the client met before it looked for a cached file in vain."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    while isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def reason(error: BaseException, revision: str) -> str:
    """Why a fetch failed and what to do, in our words."""
    from huggingface_hub import constants, errors

    error = _cause(error)
    cache = constants.HF_HUB_CACHE
    if isinstance(error, errors.OfflineModeIsEnabled):
        return (
            f"HF_HUB_OFFLINE is set and {cache} does not hold it whole; unset it, fetch on a "
            "machine with a network into an HF_HOME that this one sees, or name a folder as "
            "model.path"
        )
    if isinstance(error, errors.HfHubHTTPError):
        return _refusal(error, revision)
    number = error.errno if isinstance(error, OSError) else None
    if number in NO_ROOM:
        return f"no room for it in {cache}; free some, or set HF_HOME to a folder on a larger disk"
    if number in NO_RIGHT:
        return f"no right to read or write in {cache}; set HF_HOME to a folder that may be written"
    return (
        f"no whole answer from {_hub()} ({type(error).__name__}); run the same command again, "
        "check the network, proxy and HF_ENDPOINT of this node, or fetch elsewhere into an HF_HOME "
        "that it sees"
    )


def _hub() -> str:
    """The hub's host, without the password that its address may hold."""
    from huggingface_hub import constants

    try:
        return urlsplit(constants.ENDPOINT).hostname or "the hub"
    except ValueError:
        return "the hub"


def _refusal(error: HfHubHTTPError, revision: str) -> str:
    """What an HTTP status means for the user."""
    from huggingface_hub import errors

    status = error.response.status_code
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"the repository has no commit {revision} (HTTP {status}); copy model.revision from "
            "its list of commits, or set model.revision=null for what its main is today"
        )
    if status in (401, 403, 404):
        token = "was refused" if os.environ.get("HF_TOKEN") else "is not set here"
        return (
            f"HTTP {status}: the repository does not exist, is private, or its licence was not "
            "accepted; check model.repo_id, accept the licence on its page, and set HF_TOKEN in "
            f"the environment of every node (HF_TOKEN {token})"
        )
    if status == 429:
        return f"the hub limits our requests (HTTP 429) {_limit_advice()}"
    return f"the hub answers HTTP {status}; run the same command again later"

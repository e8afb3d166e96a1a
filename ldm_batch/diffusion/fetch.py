"""Bring a pinned revision of a hub repository to this node, once, and know that it is whole.

Must not know what the files mean: which ones are wanted is an argument (files.py reads them).
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import re
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ldm_batch.errors import JobError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.hf_api import RepoFile, RepoFolder

REQUEST_TIMEOUT_S = 60.0
"""For requests to which the hub's client gives no time limit: it lists files without one."""
RATE_LIMIT_S = 900.0
"""How long a fetch may wait, in all, for a hub that limits requests (its window is 300 s)."""
PAUSES_S = (3.0, 10.0)
"""Longest wait before each new start, with what is still missing, after an outage of the hub."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_RIGHT = (errno.EACCES, errno.EPERM, errno.EROFS)


def fetch_snapshot(repo_id: str, revision: str, *, patterns: Sequence[str]) -> Path:
    """Return the folder of a hub repository's revision, fetched if this node lacks a part of it.

    A cache that holds it whole is used without a request and without writing a byte, so it may be
    read-only. Otherwise one process of all that share the cache folder fetches, the others wait.

    Args:
        revision: full commit sha; what it names never changes.
        patterns: which files are wanted, as in `fnmatch`.

    Raises:
        JobError: the revision is not whole here and cannot be fetched; names the node.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError

    failed = f"model.repo_id={repo_id}: cannot fetch {revision} on {socket.gethostname()}: "
    try:
        if folder := _whole_snapshot(repo_id, revision, patterns):
            return folder
        name = f"models--{repo_id.replace('/', '--')}"
        lock = Path(constants.HF_HUB_CACHE) / ".locks" / name / f"snapshot-{revision}.lock"
        with _sole_fetcher(lock):
            folder = _whole_snapshot(repo_id, revision, patterns)
            return folder or _fetch(repo_id, revision, patterns, failed)
    except HFValidationError as error:
        raise JobError(f"model.repo_id={repo_id}: {error}") from error
    except JobError:
        raise
    except Exception as error:  # of many kinds; their texts may hold signed addresses
        raise JobError(failed + _reason(error, revision)) from None


def _whole_snapshot(repo_id: str, revision: str, patterns: Sequence[str]) -> Path | None:
    """The revision's folder in the cache if every wanted file is known to be there; no request.

    The hub's client alone is not enough: it gives out any folder of which it has no list of files.
    """
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                repo_id, revision=revision, allow_patterns=list(patterns), local_files_only=True
            )
        )
        wanted = _wanted(get_cached_repo_tree(repo_id, revision=revision), patterns)
    except (LocalEntryNotFoundError, CachedRepoTreeNotFoundError):
        return None
    return folder if wanted and not _unlike(folder, wanted) else None


def _fetch(repo_id: str, revision: str, patterns: Sequence[str], failed: str) -> Path:
    """Fetch what is missing, check that nothing is then, and return the revision's folder."""
    with _bounded_requests(failed):
        for pause_s in (*PAUSES_S, None):
            try:
                folder, listing = _download(repo_id, revision, patterns)
                break
            except Exception as error:
                if pause_s is None or not _is_outage(error):
                    raise
                time.sleep(random.Random().uniform(1, pause_s))
    wanted = _wanted(listing, patterns)
    if not wanted:
        raise JobError(f"{failed}it has none of the files of a diffusers pipeline")
    if unlike := _unlike(folder, wanted):
        raise JobError(
            f"{failed}{folder / unlike} is not of the size that the hub names, so the cache is "
            f"damaged; delete the folder {folder.parents[1]} and run the same command again"
        )
    return folder


def _download(
    repo_id: str, revision: str, patterns: Sequence[str]
) -> tuple[Path, Sequence[RepoFile | RepoFolder]]:
    """Fetch what is missing; the folder and the hub's list of the files that belong there."""
    from huggingface_hub import HfApi, get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    folder = snapshot_download(repo_id, revision=revision, allow_patterns=list(patterns))
    try:
        listing = get_cached_repo_tree(repo_id, revision=revision)
    except CachedRepoTreeNotFoundError:  # it gave out an old folder because the hub did not answer
        return Path(folder), [*HfApi().list_repo_tree(repo_id, revision=revision, recursive=True)]
    return Path(folder), listing


def _wanted(listing: Iterable[RepoFile | RepoFolder], patterns: Sequence[str]) -> dict[str, int]:
    """`{path: bytes}` of the wanted files of a listing."""
    from huggingface_hub.hf_api import RepoFile

    sizes = {entry.path: entry.size for entry in listing if isinstance(entry, RepoFile)}
    return {
        path: size
        for path, size in sizes.items()
        if any(fnmatch(path, pattern) for pattern in patterns)
    }


def _unlike(folder: Path, wanted: dict[str, int]) -> str | None:
    """The first file that is missing or not of its size, if there is one."""
    for path, size in wanted.items():
        try:
            if (folder / path).stat().st_size != size:
                return path
        except OSError:
            return path
    return None


@contextmanager
def _sole_fetcher(lock: Path) -> Iterator[None]:
    """Let one process at a time in; the lock ends with its holder, however that dies.

    Where the folder takes no lock (no rights, a network file system without locks) all go ahead:
    the hub's client puts whole files in place by renaming, so this costs requests, not truth.
    """
    descriptor = -1
    with suppress(OSError):
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


@contextmanager
def _bounded_requests(failed: str) -> Iterator[None]:
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


def _is_outage(error: BaseException) -> bool:
    """Tell whether the hub answered that it has trouble of its own."""
    cause = _cause(error)
    return getattr(getattr(cause, "response", None), "status_code", 0) >= 500


def _cause(error: BaseException) -> BaseException:
    """What the client met before it looked for a cached file in vain."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    while isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _reason(error: BaseException, revision: str) -> str:
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
            "its list of commits"
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

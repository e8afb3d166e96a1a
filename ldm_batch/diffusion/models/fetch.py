"""Bring a pinned revision of a hub repository to this node, once, and know that it is whole.

Must not know what the files mean: which ones are wanted is an argument (files.py reads them).
"""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ldm_batch.config.model import is_commit_sha
from ldm_batch.diffusion.models.cache import sole_process
from ldm_batch.diffusion.models.hub import bounded_requests, is_outage, reason
from ldm_batch.errors import JobError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile, RepoFolder

MAIN = "main"
Answer = TypeVar("Answer")
PAUSES_S = (3.0, 10.0)
"""Longest wait before each new start, with what is still missing, after an outage of the hub."""


def fetch_snapshot(
    repo_id: str,
    revision: str,
    *,
    patterns: Sequence[str],
    field: str = "model.repo_id",
    what: str = "the files of a diffusers pipeline",
) -> Path:
    """Return the folder of a hub repository's revision, fetched if this node lacks a part of it.

    A cache that holds it whole is used without a request and without writing a byte, so it may be
    read-only. Otherwise one process of all that share the cache folder fetches, the others wait.

    Args:
        revision: full commit sha; what it names never changes.
        patterns: which files are wanted, as in `fnmatch`.
        field: that names the repository, for messages.
        what: the files are, for messages.

    Raises:
        JobError: the revision is not whole here and cannot be fetched; names the node.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError

    failed = f"{field}={repo_id}: cannot fetch {revision} on {socket.gethostname()}: "
    try:
        if folder := _whole_snapshot(repo_id, revision, patterns):
            return folder
        name = f"models--{repo_id.replace('/', '--')}"
        lock = Path(constants.HF_HUB_CACHE) / ".locks" / name / f"snapshot-{revision}.lock"
        with sole_process(lock):
            folder = _whole_snapshot(repo_id, revision, patterns)
            return folder or _fetch(repo_id, revision, patterns, failed, what)
    except HFValidationError as error:
        raise JobError(f"{field}={repo_id}: {error}") from error
    except JobError:
        raise
    except Exception as error:  # of many kinds; their texts may hold signed addresses
        raise JobError(failed + reason(error, revision)) from None


def resolve_revision(repo_id: str) -> str:
    """Return the full sha of the commit that a hub repository's `main` names today.

    Where HF_HUB_OFFLINE is set: that of the last time that `main` was fetched here.

    Raises:
        JobError: the hub does not say; names the node.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError

    failed = (
        f"model.repo_id={repo_id}: cannot ask what its main is on {socket.gethostname()} (a run "
        "with model.revision=<full commit sha> need not ask): "
    )
    try:
        if constants.HF_HUB_OFFLINE and (known := _last_main(repo_id)):
            return known
        with bounded_requests(failed):
            sha = _patiently(lambda: HfApi().model_info(repo_id, revision=MAIN).sha)
    except HFValidationError as error:
        raise JobError(f"model.repo_id={repo_id}: {error}") from error
    except JobError:
        raise
    except Exception as error:  # of many kinds; their texts may hold signed addresses
        raise JobError(failed + reason(error, MAIN)) from None
    if not is_commit_sha(sha):
        raise JobError(f"{failed}the hub names no commit")
    return str(sha)


def _last_main(repo_id: str) -> str | None:
    """The commit that `main` was when the hub's client last fetched by that name."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{repo_id.replace('/', '--')}"
    try:
        sha = (folder / "refs" / MAIN).read_text().strip()
    except (OSError, ValueError):
        return None
    return sha if is_commit_sha(sha) else None


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


def _fetch(repo_id: str, revision: str, patterns: Sequence[str], failed: str, what: str) -> Path:
    """Fetch what is missing, check that nothing is then, and return the revision's folder."""
    with bounded_requests(failed):
        folder, listing = _patiently(lambda: _download(repo_id, revision, patterns))
    wanted = _wanted(listing, patterns)
    if not wanted:
        raise JobError(f"{failed}it has none of {what}")
    if unlike := _unlike(folder, wanted):
        raise JobError(
            f"{failed}{folder / unlike} is not of the size that the hub names, so the cache is "
            f"damaged; delete the folder {folder.parents[1]} and run the same command again"
        )
    return folder


def _patiently(ask: Callable[[], Answer]) -> Answer:
    """Ask the hub, and ask again after an outage."""
    for pause_s in PAUSES_S:
        try:
            return ask()
        except Exception as error:
            if not is_outage(error):
                raise
            time.sleep(random.Random().uniform(1, pause_s))
    return ask()


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

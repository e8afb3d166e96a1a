"""Bring a pinned revision of a hub repository to this node, once, and know that it is whole.

Must not know what the files mean: which ones are wanted is an argument (files.py reads them).
"""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from ldm_batch.diffusion.cache import sole_process
from ldm_batch.diffusion.hub import bounded_requests, is_outage, reason
from ldm_batch.errors import JobError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile, RepoFolder

PAUSES_S = (3.0, 10.0)
"""Longest wait before each new start, with what is still missing, after an outage of the hub."""


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
        with sole_process(lock):
            folder = _whole_snapshot(repo_id, revision, patterns)
            return folder or _fetch(repo_id, revision, patterns, failed)
    except HFValidationError as error:
        raise JobError(f"model.repo_id={repo_id}: {error}") from error
    except JobError:
        raise
    except Exception as error:  # of many kinds; their texts may hold signed addresses
        raise JobError(failed + reason(error, revision)) from None


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
    with bounded_requests(failed):
        for pause_s in (*PAUSES_S, None):
            try:
                folder, listing = _download(repo_id, revision, patterns)
                break
            except Exception as error:
                if pause_s is None or not is_outage(error):
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

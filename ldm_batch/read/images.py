"""The image cell of a row -> what the image is, with its bytes in a spool until it is enlarged.

Every image is decoded once to know that it can be, and dropped; must not know models or shards of
the output.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldm_batch.config import UPSCALE, JobConfig
from ldm_batch.config.upscale import parse_colour
from ldm_batch.read.decode import DecodedImage, ImageLimits, decode_image, flatten
from ldm_batch.records import Fault, InputImage, Reason, Shard
from ldm_batch.storage import read_file
from ldm_batch.write.encode import MAX_SIDES, sha256
from ldm_batch.write.spool import Spool

LOCAL = "file://"
ESCAPE = re.compile(rb"%[0-9A-Fa-f]{2}")
READ_AHEAD = 8
"""Files of images that are read at once, which waits for the store and not for a CPU, and that are
in memory at most: 256 MiB where each has the largest `source.max_image_bytes` by default."""


class InputImages:
    """The images of one shard: checked as rows are read, decoded again when they are enlarged."""

    def __init__(self, job: JobConfig, shard: Shard, spool: Spool) -> None:
        self._spool, self._access = spool, job.source.access
        self._root = _plain(job.source.image_root or _folder_of(shard.file.uri))
        self._keeps_alpha = job.upscale.alpha == "keep"
        self._background = parse_colour(job.upscale.background)
        self._limits = ImageLimits(
            max_bytes=job.source.max_image_bytes,
            max_pixels=job.source.max_image_pixels,
            max_side=MAX_SIDES[job.image.format] // UPSCALE,
        )

    def keep(self, slot: int, cell: Mapping[str, Any] | None) -> InputImage | Fault:
        """Check the image of a row and keep its bytes.

        Args:
            slot: the row's place in the shard.
            cell: `bytes` (of a whole file), or `path` (UTF-8, below the image root), or both.

        Raises:
            StorageError: a file is there but cannot be read.
        """
        cell = cell or {}
        path = cell.get("path")
        name = path.decode("utf-8", "backslashreplace") if path else None
        data = cell["found"] if "found" in cell else self._fetch(cell)
        if isinstance(data, Fault):
            return data
        image = decode_image(data, self._limits)
        if isinstance(image, Fault):
            return image
        assert data is not None
        self._spool.add(slot, data)
        _, applied = self._apply_alpha(image)
        height, width, _ = image.pixels.shape
        return InputImage(
            sha256=sha256(data),
            path=name,
            format=image.format,
            mode=image.mode,
            height=height,
            width=width,
            conversions=(*image.conversions, *applied),
        )

    def read_ahead(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """The rows in their order, with the files that they name read ahead, a few at a time.

        Raises:
            StorageError: a file is there but cannot be read.
        """
        with ThreadPoolExecutor(READ_AHEAD, thread_name_prefix="fetch") as pool:
            pending: deque[tuple[Mapping[str, Any], Future[bytes | Fault | None]]] = deque()
            for row in rows:
                pending.append((row, pool.submit(self._fetch, row.get("image") or {})))
                if len(pending) == READ_AHEAD:
                    yield _with_found(*pending.popleft())
            while pending:
                yield _with_found(*pending.popleft())

    def load(self, slot: int) -> NDArray[np.uint8]:
        """The pixels of an image that was kept: `[h, w, 3]`, or `[h, w, 4]` with its alpha."""
        image = decode_image(self._spool.get(slot), self._limits)
        assert isinstance(image, DecodedImage)
        return self._apply_alpha(image)[0]

    def _apply_alpha(self, image: DecodedImage) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
        if image.alpha is None:
            return image.pixels, ()
        if self._keeps_alpha:
            return np.dstack([image.pixels, image.alpha]), ()
        return flatten(image.pixels, image.alpha, self._background), ("alpha_flattened",)

    def _fetch(self, cell: Mapping[str, Any]) -> bytes | Fault | None:
        """The bytes of a row's image: its own, or those of the file that it names."""
        data, path = cell.get("bytes"), cell.get("path")
        return self._read(path) if data is None and path else data

    def _read(self, path: bytes) -> bytes | Fault:
        """Read the file that a row names, one byte past the limit at most."""
        try:
            uri = resolve_path(path.decode("utf-8"), self._root)
        except UnicodeDecodeError:
            return Fault(Reason.UNREADABLE_IMAGE, "its path is not UTF-8")
        if uri is None:
            return Fault(Reason.UNREADABLE_IMAGE, _why_refused(path, self._root))
        if leads_out(uri, self._root):
            told = f"a link at its path leads out of {self._root} (source.image_root)"
            return Fault(Reason.UNREADABLE_IMAGE, told)
        data = read_file(uri, self._limits.max_bytes + 1, self._access)
        return Fault(Reason.UNREADABLE_IMAGE, _why_missing(path)) if data is None else data


def _with_found(row: Mapping[str, Any], found: Future[bytes | Fault | None]) -> Mapping[str, Any]:
    return {**row, "image": {**(row.get("image") or {}), "found": found.result()}}


def resolve_path(path: str, root: str) -> str | None:
    """Where a path of the input points to, or None if that is not below `root`.

    Args:
        path: relative to the root, or absolute, or a URI.
        root: a local folder or a URI; empty: none.
    """
    if "\0" in path or "::" in path:
        return None
    if not root:
        return None
    path, root = _plain(path), _plain(root).rstrip("/")
    is_absolute = path.startswith("/") or "://" in path
    scheme, separator, place = (path if is_absolute else f"{root}/{path}").rpartition("://")
    resolved = scheme + separator + posixpath.normpath(place)
    return resolved if resolved.startswith(f"{root}/") else None


def leads_out(uri: str, root: str) -> bool:
    """Tell whether links of a local disk lead from below a folder to outside of it."""
    if "://" in uri:
        return False
    target, place = os.path.realpath(uri), os.path.realpath(root)
    return os.path.commonpath([target, place]) != place


def _folder_of(uri: str) -> str:
    """The folder of an input file, whose images stand below it unless the job names another; none
    where that would be the whole disk."""
    folder = posixpath.dirname(_plain(uri))
    return "" if folder == "/" else folder


def _why_refused(path: bytes, root: str) -> str:
    if not root:
        return "its path is below no folder: the input stands in /; set source.image_root"
    if b"\0" in path:
        return "its path holds a null character"
    if b"::" in path:
        return "its path holds '::', which chains one file system to another: rename the file"
    return f"its path does not stand below {root} (source.image_root)"


def _why_missing(path: bytes) -> str:
    if not (escape := ESCAPE.search(path)):
        return "no file at its path"
    return (
        f"no file at its path, in which {escape[0].decode()} stands for itself: paths and URIs are "
        "taken as they are, without percent-encoding"
    )


def _plain(uri: str) -> str:
    return uri.removeprefix(LOCAL)

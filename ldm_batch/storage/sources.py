"""The files of an input, on whatever kind of storage their URLs name: opened and read.

Knows URLs and bytes; must not know shards, plans or Parquet.
"""

from __future__ import annotations

from typing import BinaryIO

from ldm_batch.storage.files import absolute, protocol_of
from ldm_batch.storage.kinds import kind_of
from ldm_batch.storage.place import Access


def open_file(uri: str, access: Access = None) -> BinaryIO:
    """Open a file for random reading; in a cloud, every read is one range request.

    Raises:
        StorageError: it cannot be opened.
    """
    return kind_of(uri).open_for_reading(uri, access)


def read_file(uri: str, max_bytes: int, access: Access = None) -> bytes:
    """The first `max_bytes` bytes of a file.

    Raises:
        UnservedError: it is not there, is no file, or is closed to us.
        StorageError: the store is out of order, or out of reach.
        AccessError: the store lets nobody in with what it was given.
    """
    return kind_of(uri).read_start(_plain(uri), max_bytes, access)


def prove_folder(uri: str, access: Access = None) -> None:
    """Ask for the folder that files stand below: where it answers, a file that is not to be had is
    that file's trouble.

    Raises:
        StorageError: it cannot be reached now.
        AccessError: it is closed to us.
    """
    kind_of(uri).prove_folder(_plain(uri), access)


def _plain(uri: str) -> str:
    """A local path without its scheme; a URL as it is."""
    return absolute(uri.removeprefix("file://")) if protocol_of(uri) == "file" else uri


def is_text(place: str) -> bool:
    """Tell whether a place can be written in UTF-8; the name of a file may hold any bytes."""
    try:
        place.encode()
    except UnicodeEncodeError:
        return False
    return True

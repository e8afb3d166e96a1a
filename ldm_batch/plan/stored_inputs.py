"""Where text files that were converted stand in the sink, and how their rows are read there.

Must not know how text is converted, nor plans or workers.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace

from ldm_batch import identity
from ldm_batch.config import SourceConfig
from ldm_batch.records import InputFile, Shard
from ldm_batch.storage import Store

UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\%:*?"<>|#\[\]]')
"""In a name of a text file, where it becomes the name of one object."""
MAX_NAME_BYTES, KEPT_NAME_BYTES = 200, 100


def stored_path(name: str) -> str:
    """Where a text file of this name is stored as Parquet, below the sink."""
    safe = UNSAFE.sub(lambda found: f"%{ord(found[0]):02X}", name)
    if len(safe.encode()) > MAX_NAME_BYTES:
        digest = hashlib.sha256(name.encode()).hexdigest()
        safe = f"{safe.encode()[-KEPT_NAME_BYTES:].decode(errors='ignore')}-{digest}"
    return f"{identity.INPUT_FOLDER}/{safe}.parquet"


def stored_paths(store: Store) -> set[str]:
    """What stands in the sink."""
    folder = identity.INPUT_FOLDER
    return {f"{folder}/{name}" for name in store.names(folder)}


def as_stored(file: InputFile, store: Store) -> InputFile:
    """The file whose rows are read: of a text file, the one that is stored in the sink."""
    if file.stored is None:
        return file
    return replace(file, uri=store.uri(file.stored.path), size_bytes=file.stored.size_bytes)


def where_to_read(shard: Shard, source: SourceConfig, store: Store) -> tuple[Shard, SourceConfig]:
    """A shard and its source as its rows are read: those of a text file, in the sink."""
    if shard.file.stored is None:
        return shard, source
    file = as_stored(shard.file, store)
    return replace(shard, file=file), replace(
        source, s3=store.access.s3, storage=dict(store.access.options)
    )

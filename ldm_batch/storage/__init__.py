"""Files and URLs: list, open, and publish whole objects, exclusively where asked.

The seam to storage: what the rest of the program uses of it stands here, but for lease.py.
"""

from ldm_batch.storage.files import absolute, would_list
from ldm_batch.storage.listing import Listing, Omissions, list_source, was_listed_before
from ldm_batch.storage.place import (
    COPY_BYTES,
    Access,
    Creation,
    Leftover,
    SourceFile,
    is_parquet_name,
)
from ldm_batch.storage.range_file import RangeFile
from ldm_batch.storage.sources import is_text, open_file, prove_folder, read_file
from ldm_batch.storage.store import Store, open_sink
from ldm_batch.storage.tables import TextFormat, text_format

__all__ = [
    "COPY_BYTES",
    "Access",
    "Creation",
    "Leftover",
    "Listing",
    "Omissions",
    "RangeFile",
    "SourceFile",
    "Store",
    "TextFormat",
    "absolute",
    "is_parquet_name",
    "is_text",
    "list_source",
    "open_file",
    "open_sink",
    "prove_folder",
    "read_file",
    "text_format",
    "was_listed_before",
    "would_list",
]

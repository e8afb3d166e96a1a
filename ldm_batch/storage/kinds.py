"""Which kind of storage a URL names: a local disk, a cloud or, for input, whatever fsspec knows."""

from __future__ import annotations

from importlib import import_module

from ldm_batch.errors import JobError
from ldm_batch.storage.files import FILES, protocol_of
from ldm_batch.storage.local import LOCAL
from ldm_batch.storage.place import Kind

CLOUDS = {
    **dict.fromkeys(("s3", "s3a"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gcs"),
    **dict.fromkeys(("az", "abfs", "abfss"), "azure"),
}
"""Scheme of a URL -> the module of its cloud, whose library sends the condition of a create to the
server; no other scheme can hold a dataset."""
WEB = ("http", "https")
EXTRAS = ("gcs", "azure")
"""Modules whose library comes with an extra of that name; that of the others always."""


def kind_of(uri: str) -> Kind:
    """The kind of storage that a URL names; that of a cloud is imported where it is first named.

    Raises:
        JobError: its library is not installed.
    """
    scheme = protocol_of(uri)
    if scheme == "file":
        return LOCAL
    module = "web" if scheme in WEB and "::" not in uri else CLOUDS.get(scheme)
    if module is None:
        return FILES
    try:
        kind: Kind = import_module(f"ldm_batch.storage.{module}").KIND
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        wanted = f"'ldm-batch[{module}]'" if module in EXTRAS else missing
        raise JobError(
            f"{uri}: {scheme}:// needs {missing}, which is not installed here; pip install {wanted}"
        ) from error
    return kind

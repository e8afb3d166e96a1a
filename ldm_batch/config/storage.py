"""How to reach a store of any kind: fsspec's options that a job may set, and the checks of that.

Credentials never stand here: they come from each cloud's own chain, where a worker runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ldm_batch.config.bounds import suggest, within
from ldm_batch.config.s3 import S3Config
from ldm_batch.errors.redact import WAYS_TO_CREDENTIALS, is_secret_name

ALIASES = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az", "https": "http"}
"""Schemes that another one's options and library are for."""
OPTIONS: Mapping[str, Mapping[str, type]] = {
    "s3": {
        "anon": bool,
        "endpoint_url": str,
        "profile": str,
        "requester_pays": bool,
        "retry_s": float,
    },
    "gs": {
        "endpoint_url": str,
        "project": str,
        "requester_pays": bool,
        "retry_s": float,
        "token": str,
    },
    "az": {
        "account_host": str,
        "account_name": str,
        "anon": bool,
        "client_id": str,
        "retry_s": float,
        "tenant_id": str,
    },
    "hf": {"endpoint": str},
}
"""Scheme -> the options that a job may set, by fsspec's names, and their types; `retry_s` is ours:
seconds after which no new attempt at a failing request starts. Of other schemes: none."""
S3_NAMES = {"endpoint_url": "endpoint", "anon": "anonymous"}
"""fsspec's name of an option -> the field of the section `s3` that says the same."""
SECRETS = ("account_key", "connection_string", "key", "username")
"""Options of the libraries that are credentials, beside those whose names say so."""


@dataclass(frozen=True, slots=True)
class StorageAccess:
    """How a source or a sink is reached."""

    s3: S3Config = field(default_factory=S3Config)
    options: Mapping[str, Any] = field(default_factory=dict)
    """Checked by `check_storage`; each library gets those that are its own."""


def library_of(scheme: str) -> str:
    """The scheme by which the options of a URL's scheme are listed."""
    return ALIASES.get(scheme.lower(), scheme.lower())


def check_storage(
    path: str, options: Mapping[str, Any], s3: S3Config, uris: Sequence[Any]
) -> Iterator[str]:
    """Problems of a section `storage`, a line each.

    Args:
        path: before their names, `sink.storage.`.
        options: what it sets.
        s3: the section beside it.
        uris: the places that are reached so.
    """
    schemes = {library_of(str(uri).partition("://")[0]) for uri in uris if "://" in str(uri)}
    known: dict[str, type] = {}
    for scheme in schemes:
        known |= OPTIONS.get(scheme, {})
    for name, value in options.items():
        where = f"{path}{name}"
        if name in SECRETS:
            yield f"{where}: refused, a secret; credentials come from the cloud's own chain"
        elif name not in known and not is_secret_name(name):
            what = " and ".join(sorted(f"{scheme}://" for scheme in schemes)) or "a local path"
            meant = suggest(name, list(known)) if known else ", which takes none"
            yield f"{where}: no option of {what}{meant}"
        elif name in known:
            yield from _check_value(where, name, value, known[name])
        field_name = S3_NAMES.get(name)
        if field_name and getattr(s3, field_name) not in (None, False):
            yield f"{where}: s3.{field_name} says the same; keep one of them"


def _check_value(where: str, name: str, value: Any, kind: type) -> Iterator[str]:
    if name == "retry_s" and isinstance(value, int | float) and not isinstance(value, bool):
        yield from within(where, value, 0, 3600)
    elif name == "token" and value not in WAYS_TO_CREDENTIALS:
        yield f"{where}: refused, a secret; it may be {', '.join(WAYS_TO_CREDENTIALS)}"
    elif not isinstance(value, kind) or value == "":
        words = {bool: "true or false", str: "a text", float: "a number of seconds"}
        yield f"{where}: {value!r} must be {words[kind]}"
    elif name in ("endpoint_url", "endpoint") and not str(value).startswith(
        ("http://", "https://")
    ):
        yield f"{where}: {value!r} is not a URL like https://host:port"

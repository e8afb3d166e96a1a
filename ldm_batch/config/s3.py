"""How to reach an S3 store, and the checks of that; credentials never stand here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ldm_batch.config.bounds import within
from ldm_batch.config.places import PLACE


@dataclass
class S3Config:
    """How to reach an S3 store; credentials come from its standard chain, never from here."""

    endpoint: str | None = None
    """URL of another store than AWS, e.g. `https://minio.example:9000`; null: AWS, or what the
    environment's AWS_ENDPOINT_URL_S3 names."""
    region: str | None = None
    """Region of the bucket; null: the standard chain's, else `us-east-1`."""
    anonymous: bool = False
    """Send no credentials: for public buckets."""
    path_style: bool | None = None
    """Bucket in the path, not in the host name; null: where an endpoint is named."""
    ca_bundle: str | None = field(default=None, metadata=PLACE)
    """File with the certificates to trust; null: the system's, or AWS_CA_BUNDLE."""
    retry_s: float = 60.0
    """Seconds after which no new attempt at a failing request starts."""


def check_s3(path: str, s3: S3Config) -> Iterator[str]:
    """Problems of the section at `path`, a line each; of a section without one, of its fields."""
    path = f"{path}." if path else ""
    if s3.endpoint is not None and not s3.endpoint.startswith(("http://", "https://")):
        yield f"{path}endpoint: {s3.endpoint!r} is not a URL like https://host:port"
    if s3.ca_bundle is not None and not Path(s3.ca_bundle).expanduser().is_file():
        yield f"{path}ca_bundle: there is no file {s3.ca_bundle}; name one with certificates (PEM)"
    yield from within(f"{path}retry_s", s3.retry_s, 0, 3600)

"""What Python gives where a command line has options: checked, or a JobError that names it.

Must not know datasets, nor what is done with a value.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from operator import index

from ldm_batch.config import S3Config
from ldm_batch.config.bounds import refuse
from ldm_batch.config.s3 import check_s3
from ldm_batch.config.validate import find_forbidden
from ldm_batch.errors import JobError


def sink_of(sink: object) -> str:
    """The folder or URL of a dataset."""
    if not isinstance(sink, str | os.PathLike):
        raise JobError(f"sink: {type(sink).__name__}; must be a folder or s3://bucket/prefix")
    return os.fspath(sink)


def s3_of(
    *,
    endpoint: str | None,
    region: str | None,
    anonymous: bool,
    path_style: bool | None,
    ca_bundle: str | None,
) -> S3Config:
    """How S3 is reached; see `S3Config` for what each may be."""
    texts = {"endpoint": endpoint, "region": region, "ca_bundle": ca_bundle}
    for name, text in texts.items():
        if not isinstance(text, str | None):
            raise JobError(f"{name}: {type(text).__name__}; must be a text, or None")
    for name, flag in {"anonymous": anonymous, "path_style": path_style}.items():
        if not isinstance(flag, bool) and (flag is not None or name == "anonymous"):
            raise JobError(f"{name}={flag!r}: must be True or False")
    s3 = S3Config(
        endpoint=endpoint,
        region=region,
        anonymous=anonymous,
        path_style=path_style,
        ca_bundle=ca_bundle,
    )
    refuse(check_s3("", s3))
    refuse(f"{path}: refused, {why}" for path, why in find_forbidden(s3))
    return s3


def names_of(columns: object) -> list[str] | None:
    """Names of columns as a caller gives them, each once; None: all."""
    if columns is None:
        return None
    if isinstance(columns, str | bytes) or not isinstance(columns, Iterable):
        raise JobError(f"columns={columns!r}: must be a list of columns, or None for all")
    names = list(columns)
    for name in names:
        if not isinstance(name, str):
            raise JobError(f"columns: {name!r} is no name of a column")
    return [*dict.fromkeys(names)]


def number_of(image_index: object) -> int:
    """Number of an image among those of its row, from 0."""
    try:
        number = -1 if isinstance(image_index, bool) else index(image_index)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    if number < 0:
        raise JobError(f"image_index={image_index!r}: must be a whole number from 0")
    return number


def folder_of(model_path: object) -> str | None:
    """A model's folder; None: where it was."""
    folder = os.fspath(model_path) if isinstance(model_path, os.PathLike) else model_path
    if isinstance(folder, str | None):
        return folder
    raise JobError(f"model_path: {type(model_path).__name__}; must be a folder, or None")


def files_of(lora_paths: object) -> list[str]:
    """Files of LoRAs, in the order that they were given."""
    if isinstance(lora_paths, Iterable) and not isinstance(lora_paths, str | bytes):
        files = [os.fspath(p) if isinstance(p, os.PathLike) else p for p in lora_paths]
        if all(isinstance(file, str) for file in files):
            return files
    raise JobError(f"lora_paths={lora_paths!r}: must be a list of files")

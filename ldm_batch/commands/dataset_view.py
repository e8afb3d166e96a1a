"""A dataset as a notebook looks at it: what `status`, `verify` and `sheet` see, as Python's values.

Changes nothing. Must not know how images are made, nor how a dataset is stored.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from PIL import Image

from ldm_batch import identity
from ldm_batch.columns import IMAGE
from ldm_batch.commands.dataset_argument import checked_access
from ldm_batch.commands.python_arguments import (
    files_of,
    folder_of,
    names_of,
    number_of,
    s3_of,
    sink_of,
)
from ldm_batch.commands.status import Status, read_status
from ldm_batch.commands.verify.again import NotMade, planned_rows
from ldm_batch.commands.verify.regenerate import Again, load_again, mean_levels
from ldm_batch.config import JobConfig
from ldm_batch.config.bounds import suggest
from ldm_batch.config.job import IMAGE_FORMATS
from ldm_batch.dataset import Dataset, find_sink, object_rows, open_object
from ldm_batch.dataset import open_dataset as open_stored
from ldm_batch.errors import JobError
from ldm_batch.records import Fault, Made, Shard
from ldm_batch.storage import Store


@dataclass(frozen=True, slots=True)
class ImageAgain:
    """An image of a dataset, made again."""

    key: str
    image_index: int
    image: Image.Image | None
    """What came out, RGB or RGBA; None: it could not be made, see `problem`."""
    is_equal: bool
    """Whether it is the same bytes as the stored one, encoded."""
    mean_levels: float
    """How far it is from the stored one on the mean, in levels of 255; 0.0: the same bytes."""
    problem: str
    """Why it could not be made; empty where it could."""


class DatasetView:
    """One dataset, looked at anew by each call; `open_dataset` makes one."""

    def __init__(self, store: Store) -> None:
        """Look at the dataset of a store.

        Raises:
            JobError: it holds none, or its plan or an object is damaged.
        """
        self._store = store
        self._seen = read_status(store)
        self._again: dict[tuple[object, ...], Again] = {}

    def __repr__(self) -> str:
        seen = self._seen
        shards = f"shards={seen.num_done} of {seen.num_shards} done"
        return f"{type(self).__name__}({self._store.root}, {shards}, images={seen.num_images})"

    def status(self) -> Status:
        """How far the dataset is by now: what `python -m ldm_batch status` tells.

        Raises:
            JobError: its plan or an object is damaged.
        """
        self._seen = read_status(self._store)
        return self._seen

    @property
    def job(self) -> JobConfig:
        """The job that the dataset was planned with, its `batch_size` settled; a copy.

        Of call arguments it says the defaults: those of an image stand in its row.

        Raises:
            JobError: its plan is damaged.
        """
        dataset = open_stored(self._store)
        return replace(dataset.job, batch_size=planned_rows(dataset.plan))

    def rows(self, columns: Iterable[str] | None = None) -> Iterator[dict[str, Any]]:
        """The rows of all shards that are done by now, one image each, in the order of the plan.

        A few stand in memory at a time.

        Args:
            columns: only these; None: all. `image` is a dict of the encoded `bytes` and a `path`.

        Raises:
            JobError: there is no such column, before the first row is asked for; or an object is
                damaged.
        """
        done, wanted = open_stored(self._store).done, names_of(columns)
        if wanted and done:
            _check_first(self._store, done[0], wanted)
        return (row for shard in done for row in _rows_of(self._store, shard, wanted))

    def images(self, columns: Iterable[str] | None = None) -> Iterator[dict[str, Any]]:
        """As `rows`, with `image` decoded: a PIL image, RGB or RGBA.

        Args:
            columns: only these, and `image`; None: all.

        Raises:
            JobError: there is no such column, before the first row is asked for; or an object or an
                image is damaged.
        """
        names = names_of(columns)
        wanted = None if names is None else [*dict.fromkeys([IMAGE, *names])]
        return self._decoded(self.rows(wanted))

    def _decoded(self, rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for number, row in enumerate(rows):
            try:
                yield {**row, IMAGE: _decode(row[IMAGE]["bytes"])}
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                name = f"{self._store.root}: image {number} of {IMAGE!r}, from 0,"
                raise JobError(f"{name} cannot be decoded: {error}") from error

    def regenerate(
        self,
        key: str,
        image_index: int = 0,
        *,
        model_path: str | os.PathLike[str] | None = None,
        lora_paths: Iterable[str | os.PathLike[str]] = (),
    ) -> ImageAgain:
        """Make one image again as it was made, and compare it with what is stored.

        The models are loaded for the first image and kept. Of an image that was made from an image
        the input is read again, and must be what it was.

        Args:
            key: of its row, the column `key`.
            image_index: which of the row's images, the column `image_index`.
            model_path: where the planned model is now; None: where it was.
            lora_paths: where planned LoRAs are now, in any order; others: where they were.

        Raises:
            JobError: there is no such image, its object is damaged, or a model does not load or is
                not the planned one.
            StorageError: an object or an input image cannot be read.
        """
        image_index, folder = number_of(image_index), folder_of(model_path)
        loras = files_of(lora_paths)
        dataset = open_stored(self._store)
        shard, place = _find(dataset, str(key), image_index)
        with _reading(self._store, identity.data_path(f"{shard:05d}")):
            [row] = dataset.rows_at(shard, [place])
        named = (dataset.plan.fingerprint, folder, *loras)
        if named not in self._again:
            self._again[named] = load_again(dataset, folder, loras)
        again = self._again[named]
        [(_, made)] = again.maker.make(shard, [row])
        if isinstance(made, NotMade | Fault):
            problem = made.why if isinstance(made, NotMade) else made.message
            return ImageAgain(str(key), image_index, None, False, 255.0, problem)
        levels = mean_levels(row, made, again.job)
        image = Image.fromarray(made.pixels if isinstance(made, Made) else made)
        return ImageAgain(str(key), image_index, image, levels == 0, levels, "")


def open_dataset(
    sink: str | os.PathLike[str],
    *,
    endpoint: str | None = None,
    region: str | None = None,
    anonymous: bool = False,
    path_style: bool | None = None,
    ca_bundle: str | None = None,
    storage: Mapping[str, Any] | None = None,
) -> DatasetView:
    """Open a dataset from Python: its status, its rows and images, one of them made again.

    Args:
        sink: the dataset's folder, or `s3://bucket/prefix`, ...; the others but `storage` are S3's,
            as the commands take them. Credentials come from the standard chain.
        endpoint: URL of another store than AWS.
        region: of the bucket.
        anonymous: send no credentials.
        path_style: bucket in the path, not in the host name; None: where an endpoint is named.
        ca_bundle: file with the certificates to trust.
        storage: options of the store, as `sink.storage` takes them.

    Raises:
        JobError: there is no dataset, or its plan or an object is damaged.
        StorageError: it cannot be reached.
    """
    s3 = s3_of(
        endpoint=endpoint,
        region=region,
        anonymous=anonymous,
        path_style=path_style,
        ca_bundle=ca_bundle,
    )
    place = sink_of(sink)
    return DatasetView(find_sink(place, checked_access(s3, storage or {}, place)))


def _find(dataset: Dataset, key: str, image_index: int) -> tuple[int, int]:
    """Shard and place in its object of an image; a JobError where there is none."""
    for shard in dataset.done:
        names = _rows_of(dataset.store, shard, ["key", "image_index"])
        for place, row in enumerate(names):
            if (row["key"], row["image_index"]) == (key, image_index):
                return shard.index, place
    with _reading(dataset.store, identity.REJECTED_FOLDER):
        rejected = next((row for row in dataset.rejections() if row["key"] == key), None)
    why = "see the column `key`"
    if rejected:
        why = f"its row was rejected: {rejected['message']}"
    elif dataset.undone:
        num_shards = len(dataset.plan.shards)
        why = f"the dataset is unfinished, {len(dataset.done)} of {num_shards} shards are done"
    raise JobError(f"{dataset.store.root}: no image {image_index} of {key!r}; {why}")


def _rows_of(store: Store, shard: Shard, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    """The rows of a shard's object, a few at a time; a JobError where it is damaged."""
    path = identity.data_path(shard.id)
    with _reading(store, path), store.open(path) as file:
        parquet = open_object(file)
        _check_ours(store.uri(path), parquet.schema_arrow.names)
        _check_columns(columns or (), parquet.schema_arrow.names)
        yield from map(dict, object_rows(parquet, columns))


def _check_first(store: Store, shard: Shard, columns: Sequence[str]) -> None:
    """Refuse columns that a shard's object has not; no row is read."""
    path = identity.data_path(shard.id)
    with _reading(store, path), store.open(path) as file:
        names = open_object(file).schema_arrow.names
        _check_ours(store.uri(path), names)
        _check_columns(columns, names)


@contextmanager
def _reading(store: Store, path: str) -> Iterator[None]:
    """What shows a file to be damaged, as a JobError."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise JobError(f"{store.uri(path)}: cannot be read: {error}") from error


def _check_ours(uri: str, names: Sequence[str]) -> None:
    if IMAGE not in names:
        raise JobError(f"{uri}: cannot be read: it has no images of ours; see `verify`")


def _check_columns(columns: Sequence[str], known: Sequence[str]) -> None:
    for name in columns:
        if name not in known:
            raise JobError(f"columns: no column {name!r}{suggest(str(name), known)}")


def _decode(content: bytes) -> Image.Image:
    """An image of one of the formats that datasets hold."""
    formats = [name.upper() for name in IMAGE_FORMATS]
    image = Image.open(io.BytesIO(content), formats=formats)
    image.load()
    return image

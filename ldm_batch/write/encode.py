"""Pixels -> bytes: lossless WebP, PNG or JPEG, and their digests, in threads beside the device.

Pillow releases the GIL while it encodes, so threads are enough. Must not know rows or shards.
"""

from __future__ import annotations

import hashlib
import io
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm_batch.config import ImageConfig
from ldm_batch.config.job import ImageFormat
from ldm_batch.records import Fault, Slot
from ldm_batch.write.spool import Spool

ENCODE_THREADS = 2
"""One keeps up: lossless WebP takes a core 5 ms (PNG 10 ms) for 256 x 256 pixels of a photograph,
and an H100, by reckoning, 36 ms to make it in 20 steps. The second is for larger images."""
MAX_PENDING_BATCHES = 2
"""One is being encoded while the device makes the next."""
MAX_PENDING_BYTES = 256 * 1024 * 1024
"""Two batches of large images would not fit: 16 of 4096 x 4096 pixels are 768 MiB."""
MAX_PART_BYTES = 16 * 1024 * 1024
"""Of pixels that a thread encodes before they are spooled; small images share a part: to hand each
one over costs more than to hash it."""

XMP_TRAINED_MODEL = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
    b'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    b'Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/'
    b'trainedAlgorithmicMedia"/></rdf:RDF></x:xmpmeta>'
)
"""IPTC's mark of media made by a trained model, as an XMP packet."""

MAX_SIDES: Mapping[str, int] = {"webp": 16383, "png": 2**20, "jpeg": 65500}
"""Longest side in pixels that a format, or sense, allows."""
SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "webp": {"format": "WEBP", "lossless": True, "exact": True, "method": 0},
    "png": {"format": "PNG", "compress_level": 1},
    "jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
}


def encode_image(
    pixels: NDArray[np.uint8], image_format: ImageFormat, *, mark: bool = True
) -> bytes:
    """Encode one image; the same pixels give the same bytes within one version of Pillow.

    Args:
        pixels: uint8, height x width x 3, RGB; or x 4 with alpha, not for JPEG.
        image_format: `webp` (lossless, method 0), `png` (level 1) or `jpeg` (quality 95, 4:4:4).
        mark: add IPTC's DigitalSourceType `trainedAlgorithmicMedia` as XMP metadata.
    """
    options = dict(SAVE_OPTIONS[image_format])
    if mark and image_format == "png":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", XMP_TRAINED_MODEL.decode())
        options["pnginfo"] = info
    elif mark:
        options["xmp"] = XMP_TRAINED_MODEL
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, **options)
    return buffer.getvalue()


def sha256(data: bytes | NDArray[np.uint8]) -> str:
    """SHA-256 (hexadecimal) of bytes, or of an image's pixels in row-major order."""
    raw = data if isinstance(data, bytes) else np.ascontiguousarray(data).data
    return hashlib.sha256(raw).hexdigest()


Drawn = NDArray[np.uint8] | Fault | Mapping[str, Any]
"""Pixels `[H, W, 3]`, or why there are none, or columns that were measured of them."""


class Encoded(NamedTuple):
    """What became of the images of a shard, whose bytes are in the spool."""

    digests: dict[Slot, tuple[str, str]]
    """SHA-256 (hexadecimal) of the bytes and of the pixels."""
    faults: dict[int, Fault]
    """By number of the image."""
    measured: dict[int, Mapping[str, Any]]
    """Columns, by number of the image."""


class Encoders:
    """Threads that encode the images of shards while the device makes the next ones."""

    def __init__(self, image: ImageConfig, batch_size: int) -> None:
        self._format, self._mark = cast(ImageFormat, image.format), image.mark
        self._max_pending = MAX_PENDING_BATCHES * batch_size
        self._pool = ThreadPoolExecutor(ENCODE_THREADS, thread_name_prefix="encode")

    def begin(self, spool: Spool) -> Encoding:
        """Begin with the images of one shard, whose bytes go into a spool."""
        return Encoding(self._submit, self._max_pending, spool)

    def _submit(self, pictures: Sequence[NDArray[np.uint8]]) -> Future[list[EncodedImage]]:
        return self._pool.submit(lambda: [self._encode(pixels) for pixels in pictures])

    def _encode(self, pixels: NDArray[np.uint8]) -> EncodedImage:
        data = encode_image(pixels, self._format, mark=self._mark)
        return EncodedImage(data, sha256(data), sha256(pixels))


class Encoding:
    """The images of one shard on their way into its spool: at most two batches, and of large
    images 256 MiB, wait in memory."""

    def __init__(self, submit: Submit, max_pending: int, spool: Spool) -> None:
        self._submit, self._max_pending, self._spool = submit, max_pending, spool
        self._encoded = Encoded({}, {}, {})
        self._pending: deque[EncodingPart] = deque()
        self._num_pending = self._pending_bytes = 0

    def add(self, drawn: Sequence[tuple[Slot, Drawn]]) -> None:
        """Take what became of one batch; wait for earlier images, where there are many."""
        pictures: list[tuple[Slot, NDArray[np.uint8]]] = []
        for slot, made in drawn:
            if isinstance(made, Fault):
                self._encoded.faults[slot[0]] = made
            elif isinstance(made, Mapping):
                self._encoded.measured[slot[0]] = made
            else:
                pictures.append((slot, made))
        for part in _parts(pictures):
            slots, images = zip(*part, strict=True)
            num_bytes = sum(pixels.nbytes for pixels in images)
            self._pending.append(EncodingPart(slots, num_bytes, self._submit(images)))
            self._num_pending += len(slots)
            self._pending_bytes += num_bytes
            while self._num_pending > self._max_pending or self._pending_bytes > MAX_PENDING_BYTES:
                self._spool_oldest()

    def finish(self) -> Encoded:
        """What became of all images, when the last one is in the spool."""
        while self._pending:
            self._spool_oldest()
        return self._encoded

    def _spool_oldest(self) -> None:
        slots, num_bytes, future = self._pending.popleft()
        self._num_pending -= len(slots)
        self._pending_bytes -= num_bytes
        images = dict(zip(slots, future.result(), strict=True))
        for slot, image in images.items():
            self._encoded.digests[slot] = (image.sha256, image.pixel_sha256)
        self._spool.add_all([(slot, image.data) for slot, image in images.items()])


class EncodedImage(NamedTuple):
    """The bytes of an image's file, and their SHA-256 and its pixels' (hexadecimal)."""

    data: bytes
    sha256: str
    pixel_sha256: str


Submit = Callable[[Sequence[NDArray[np.uint8]]], Future[list[EncodedImage]]]
"""Has pictures encoded in another thread."""


class EncodingPart(NamedTuple):
    """Images that one thread encodes: whose they are, and how many bytes their pixels have."""

    slots: Sequence[Slot]
    num_bytes: int
    encoded: Future[list[EncodedImage]]


def _parts(
    pictures: Sequence[tuple[Slot, NDArray[np.uint8]]],
) -> Iterator[list[tuple[Slot, NDArray[np.uint8]]]]:
    """Share a batch out to the threads, at most 16 MiB to a part."""
    most = -(-len(pictures) // ENCODE_THREADS)
    part: list[tuple[Slot, NDArray[np.uint8]]] = []
    num_bytes = 0
    for slot, pixels in pictures:
        if part and (len(part) == most or num_bytes + pixels.nbytes > MAX_PART_BYTES):
            yield part
            part, num_bytes = [], 0
        part.append((slot, pixels))
        num_bytes += pixels.nbytes
    if part:
        yield part

"""Pixels -> bytes: lossless WebP, PNG or JPEG, and their digests, in threads beside the device.

Pillow releases the GIL while it encodes, so threads are enough. Must not know rows or shards.
"""

from __future__ import annotations

import hashlib
import io
from collections import deque
from collections.abc import Iterable, Mapping
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
    """Threads that encode images while the device makes the next ones."""

    def __init__(self, image: ImageConfig, batch_size: int) -> None:
        self._format, self._mark = cast(ImageFormat, image.format), image.mark
        self._max_pending = MAX_PENDING_BATCHES * batch_size
        self._pool = ThreadPoolExecutor(ENCODE_THREADS, thread_name_prefix="encode")

    def spool_images(self, made: Iterable[tuple[Slot, Drawn]], spool: Spool) -> Encoded:
        """Encode images as they come and spool them; at most two batches, and of large images
        256 MiB, wait in memory.
        """
        digests: dict[Slot, tuple[str, str]] = {}
        faults: dict[int, Fault] = {}
        measured: dict[int, Mapping[str, Any]] = {}
        pending: deque[tuple[Slot, int, Future[tuple[bytes, str]]]] = deque()

        def drain(limit: int) -> None:
            while len(pending) > limit or sum(p[1] for p in pending) > MAX_PENDING_BYTES:
                slot, _, future = pending.popleft()
                data, pixel_sha256 = future.result()
                digests[slot] = (sha256(data), pixel_sha256)
                spool.add(slot, data)

        for slot, pixels in made:
            if isinstance(pixels, Fault):
                faults[slot[0]] = pixels
            elif isinstance(pixels, Mapping):
                measured[slot[0]] = pixels
            else:
                pending.append((slot, pixels.nbytes, self._pool.submit(self._encode, pixels)))
            drain(self._max_pending)
        drain(0)
        return Encoded(digests, faults, measured)

    def _encode(self, pixels: NDArray[np.uint8]) -> tuple[bytes, str]:
        return encode_image(pixels, self._format, mark=self._mark), sha256(pixels)

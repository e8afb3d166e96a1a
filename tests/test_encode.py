"""Pixels to bytes: lossless where promised, the same bytes each time, marked as synthetic."""

import io
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image

from ldm_batch.config import ImageConfig
from ldm_batch.config.job import IMAGE_FORMATS
from ldm_batch.records import Fault, Reason, Slot
from ldm_batch.write.encode import Drawn, Encoded, Encoders, encode_image, sha256
from ldm_batch.write.spool import Spool

Pixels = NDArray[np.uint8]
PICTURES = arrays.arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(3)))


def picture(seed: int, side: int = 16) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def decode(data: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)))


class Kept(dict[int, bytes]):
    """A spool in memory."""

    def add_all(self, files: Sequence[tuple[int, bytes]]) -> None:
        self.update(files)


@pytest.mark.parametrize("image_format", ["webp", "png"])
@given(pixels=PICTURES)
def test_lossless_formats_give_the_pixels_back(image_format: str, pixels: Pixels) -> None:
    assert np.array_equal(decode(encode_image(pixels, image_format)), pixels)


def test_jpeg_comes_close() -> None:
    """Of a smooth picture; 4:4:4, so colour keeps its place."""
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    pixels = np.stack(np.meshgrid(ramp, ramp, ramp[:1], indexing="ij"), -1)[:, :, 0]
    decoded = decode(encode_image(pixels, "jpeg"))
    assert np.abs(decoded.astype(int) - pixels).max() <= 6


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_the_same_pixels_give_the_same_bytes(image_format: str) -> None:
    one, same = encode_image(picture(0), image_format), encode_image(picture(0), image_format)
    assert one == same != encode_image(picture(1), image_format)


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_the_mark_changes_no_pixel_and_can_be_read(image_format: str) -> None:
    marked = encode_image(picture(0), image_format)
    plain = encode_image(picture(0), image_format, mark=False)
    assert np.array_equal(decode(marked), decode(plain))
    assert b"trainedAlgorithmicMedia" in marked
    assert b"trainedAlgorithmicMedia" not in plain
    assert b"trainedAlgorithmicMedia" in Image.open(io.BytesIO(marked)).info["xmp"]


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_a_file_is_what_it_is_called(image_format: str) -> None:
    image = Image.open(io.BytesIO(encode_image(picture(0), image_format)))
    assert (image.format, image.size, image.mode) == (image_format.upper(), (16, 16), "RGB")


def test_a_digest_is_of_the_pixels_in_their_order() -> None:
    pixels = picture(0)
    assert sha256(pixels) == sha256(pixels.tobytes())
    assert sha256(pixels[:, ::-1]) == sha256(pixels[:, ::-1].tobytes()) != sha256(pixels)


def test_images_are_spooled_with_their_digests() -> None:
    pictures = {(number, "image"): picture(number) for number in (5, 0, 3)}
    spool = Kept()
    digests, faults, _ = encode(ImageConfig("png"), 2, [[*pictures.items()]], spool)
    assert {slot: decode(data).tolist() for slot, data in spool.items()} == {
        slot: pixels.tolist() for slot, pixels in pictures.items()
    }
    assert faults == {}
    assert digests == {s: (sha256(spool[s]), sha256(pictures[s])) for s in pictures}


def test_faults_pass_by() -> None:
    fault = Fault(Reason.NOT_FINITE, "not finite")
    spool = Kept()
    good = {(n, "image"): picture(n) for n in (0, 2)}
    made = [*good.items(), ((1, "image"), fault)]
    digests, faults, _ = encode(ImageConfig(), 2, [made[:1], made[1:]], spool)
    assert (faults, set(digests), set(spool)) == ({1: fault}, good.keys(), good.keys())


def test_no_images_are_no_trouble() -> None:
    assert encode(ImageConfig(), 2, [], Kept()) == ({}, {}, {})
    assert encode(ImageConfig(), 2, [[]], Kept()) == ({}, {}, {})


def test_few_images_wait_in_memory() -> None:
    """Two batches at most stand between the pipeline and the spool when the next one begins."""
    spool, waiting = Kept(), []

    def made() -> Iterator[list[tuple[Slot, Pixels]]]:
        for start in range(0, 100, 4):
            waiting.append(start - len(spool))
            yield [((slot, "image"), picture(slot)) for slot in range(start, start + 4)]

    encode(ImageConfig("png"), 4, made(), spool)
    assert max(waiting) <= 2 * 4
    assert list(spool) == [(number, "image") for number in range(100)]


def test_an_image_that_cannot_be_encoded_is_an_error() -> None:
    too_wide = np.zeros((1, 20_000, 3), np.uint8)
    with pytest.raises(ValueError, match="encoding error 5"):
        encode(ImageConfig("webp"), 2, [[((0, "image"), too_wide)]], Kept())


def test_large_images_are_encoded_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm_batch.write.encode.MAX_PART_BYTES", 2 * picture(0).nbytes)
    monkeypatch.setattr("ldm_batch.write.encode.MAX_PENDING_BYTES", 3 * picture(0).nbytes)
    spool = Kept()
    encoding = Encoders(ImageConfig("png"), 100).begin(spool)
    encoding.add([((number, "image"), picture(number)) for number in range(9)])
    assert len(spool) >= 6
    encoding.finish()
    assert list(spool) == [(number, "image") for number in range(9)]


def encode(
    image: ImageConfig,
    batch_size: int,
    batches: Iterable[Sequence[tuple[Slot, Drawn]]],
    spool: Spool,
) -> Encoded:
    encoding = Encoders(image, batch_size).begin(spool)
    for drawn in batches:
        encoding.add(drawn)
    return encoding.finish()

"""Image files and ICC profiles built from numbers, where Pillow does not write them."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageCms

SIGNATURE = b"\x89PNG\r\n\x1a\n"
D50 = (0.9642, 1.0, 0.8249)


def chunk(kind: bytes, body: bytes) -> bytes:
    framed = kind + body
    return struct.pack(">I", len(body)) + framed + struct.pack(">I", zlib.crc32(framed))


def make_png(
    samples: np.ndarray, bits: int, colour_type: int, **chunks: bytes | tuple[int, ...]
) -> bytes:
    """A PNG of samples `[h, w, bands]` of any depth; chunks before the pixels, by name."""
    height, width, _ = samples.shape
    rows = b""
    for row in samples.reshape(height, -1):
        if bits == 16:
            packed = row.astype(">u2").tobytes()
        elif bits == 8:
            packed = row.astype(np.uint8).tobytes()
        else:
            shifts = np.arange(bits - 1, -1, -1)
            packed = np.packbits((row[:, None] >> shifts) & 1).tobytes()
        rows += b"\0" + packed
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    before = b"".join(
        chunk(
            name.encode(), body if isinstance(body, bytes) else struct.pack(f">{len(body)}I", *body)
        )
        for name, body in chunks.items()
    )
    return b"".join(
        [
            SIGNATURE,
            chunk(b"IHDR", header),
            before,
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        ]
    )


def with_chunks(png: bytes, **chunks: bytes | tuple[int, ...]) -> bytes:
    """A PNG with chunks put behind its header."""
    made = b"".join(
        chunk(
            name.encode(), body if isinstance(body, bytes) else struct.pack(f">{len(body)}I", *body)
        )
        for name, body in chunks.items()
    )
    return png[:33] + made + png[33:]


def encode(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped_profile() -> bytes:
    """The profile of a display on which red and green changed places."""
    data = bytearray(srgb_profile())
    places = {bytes(data[i : i + 4]): i for i in range(132, 132 + 12 * data[131], 12)}
    red, green = places[b"rXYZ"], places[b"gXYZ"]
    data[red : red + 4], data[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(data).replace("sRGB".encode("utf-16-be"), "Swap".encode("utf-16-be"))


def make_profile(name: str, gamma: float, columns: dict[str, tuple[float, ...]] | None) -> bytes:
    """A display's profile: a gamma, and the columns of its matrix to XYZ (D50); grey without."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    text = name.encode() + b"\0"
    described = b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78)
    parts = {b"desc": described, b"wtpt": _xyz(D50), b"cprt": b"text" + bytes(4) + b"none\0"}
    if columns is None:
        parts[b"kTRC"] = curve
    for letter, column in (columns or {}).items():
        parts[letter.encode() + b"XYZ"] = _xyz(column)
        parts[letter.encode() + b"TRC"] = curve
    directory, content = b"", b""
    start = 128 + 4 + 12 * len(parts)
    for tag, body in parts.items():
        body += bytes(-len(body) % 4)
        directory += tag + struct.pack(">II", start + len(content), len(body))
        content += body
    space = b"RGB " if columns else b"GRAY"
    rest = struct.pack(">I", len(parts)) + directory + content
    header = struct.pack(
        ">I4sI4s4s4s", 128 + len(rest), b"lcms", 0x02400000, b"mntr", space, b"XYZ "
    )
    header += bytes(12) + b"acsp" + bytes(28) + b"".join(_fixed(v) for v in D50)
    return header.ljust(128, b"\0") + rest


SRGB_COLUMNS = {
    "r": (0.4360747, 0.2225045, 0.0139322),
    "g": (0.3850649, 0.7168786, 0.0971045),
    "b": (0.1430804, 0.0606169, 0.7141733),
}
"""Of sRGB's primaries, adapted to D50."""
P3_COLUMNS = {
    "r": (0.5151187, 0.2411892, -0.0010505),
    "g": (0.2919778, 0.6922441, 0.0418791),
    "b": (0.1571035, 0.0665668, 0.7840713),
}
"""Of Display P3's primaries, adapted to D50."""


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(_fixed(value) for value in values)

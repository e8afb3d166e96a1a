"""One object per shard: readable by everyone, the same bytes each time, damage never in silence."""

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm_batch.generate.text_to_image import COLUMNS, TEXT_TO_IMAGE
from ldm_batch.records import Call, PlannedImage, PromptCount, Reason, Rejection, Row
from ldm_batch.write.parquet import object_schema, written_object
from ldm_batch.write.record import Origin, make_record
from ldm_batch.write.rejections import rejections_bytes
from ldm_batch.write.spool import Spool

ORIGIN = Origin("ddim", "model", "0" * 64, "webp", "f" * 64)
CARRIED = [("tags", pa.list_(pa.string())), ("at", pa.timestamp("ns"))]


def record(number: int, carry: Mapping[str, Any] | None = None) -> dict[str, Any]:
    call = Call(num_inference_steps=50, guidance_scale=2.0, eta=0.0, height=64, width=64)
    row = Row(
        index=number,
        input_row=number,
        key=f"key-{number}",
        inputs={"prompt": f"prompt {number % 7}", "negative_prompt": ""},
        call=call,
        seed=None,
        carry=carry or {},
    )
    image = PlannedImage(row, 0, 2**64 - 1 - number)
    return make_record(
        image,
        origin=ORIGIN,
        input_file="a.parquet",
        digests=("1" * 64, "2" * 64),
        of_task=TEXT_TO_IMAGE.record(image, PromptCount(5, False), None),
    )


def content(slot: int) -> bytes:
    return np.random.default_rng(slot).bytes(300 + slot % 13)


def write(
    num_images: int, carried: Sequence[tuple[str, Any]] = (), carry: Mapping[str, Any] | None = None
) -> bytes:
    """The object of a shard whose images came in reverse order."""
    columns = COLUMNS.of_dataset(2, {name: str(kind) for name, kind in carried})
    schema = object_schema(columns, dict(carried), {"shard": "00017", "num_rows": num_images})
    with Spool() as spool:
        for slot in reversed(range(num_images)):
            spool.add((slot, "image"), content(slot))
        records = [(slot, record(slot, carry)) for slot in range(num_images)]
        with written_object(records, spool, schema=schema, extension="webp") as file:
            file.seek(0)
            return file.read()


def read(data: bytes) -> Any:
    return pq.read_table(pa.BufferReader(data), page_checksum_verification=True)


def test_an_object_holds_images_and_records_in_order() -> None:
    table = read(write(250))
    assert table["image"].to_pylist() == [
        {"bytes": content(i), "path": f"00017-{i:06d}.webp"} for i in range(250)
    ]
    recorded = [{name: record(i)[name] for name in COLUMNS.recorded} for i in range(250)]
    assert table.drop(["image"]).to_pylist() == recorded


def test_the_image_column_is_what_readers_expect() -> None:
    schema = read(write(1)).schema
    assert schema.names == ["image", *COLUMNS.recorded]
    assert schema.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    assert json.loads(schema.metadata[b"huggingface"]) == {
        "info": {"features": {"image": {"_type": "Image"}}}
    }


def test_an_object_says_which_shard_it_is() -> None:
    metadata = pq.read_metadata(pa.BufferReader(write(3))).metadata
    assert json.loads(metadata[b"ldm_batch"]) == {"shard": "00017", "num_rows": 3}


@pytest.mark.parametrize(
    ("num_images", "groups"), [(0, []), (1, [1]), (100, [100]), (201, [100, 100, 1])]
)
def test_row_groups_have_100_images(num_images: int, groups: list[int]) -> None:
    metadata = pq.read_metadata(pa.BufferReader(write(num_images)))
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert sizes == groups


def test_images_are_not_compressed_again_and_all_else_is() -> None:
    group = pq.read_metadata(pa.BufferReader(write(100, CARRIED, cells(1)))).row_group(0)
    codecs = {group.column(i).path_in_schema: group.column(i).compression for i in range(24)}
    assert codecs.pop("image.bytes") == "UNCOMPRESSED"
    assert set(codecs.values()) == {"ZSTD"}


def cells(value: int) -> dict[str, Any]:
    return {"tags": pa.array([["x", None]], CARRIED[0][1]), "at": pa.array([value], CARRIED[1][1])}


def test_carried_columns_follow_with_their_types() -> None:
    table = read(write(3, CARRIED, cells(1767323045678901234)))
    assert table.schema.names == ["image", *COLUMNS.recorded, "tags", "at"]
    assert [table.schema.field(name).type for name, _ in CARRIED] == [kind for _, kind in CARRIED]
    assert table["tags"].to_pylist() == [["x", None]] * 3
    assert table["at"].cast(pa.int64()).to_pylist() == [1767323045678901234] * 3


def test_the_schema_does_not_depend_on_the_rows() -> None:
    none, some = (read(write(n, CARRIED, cells(1))).schema for n in (0, 2))
    assert none.remove_metadata() == some.remove_metadata()


def test_the_same_shard_gives_the_same_bytes() -> None:
    assert write(130, CARRIED, cells(1)) == write(130, CARRIED, cells(1))


@given(st.integers(0, 20))
def test_any_number_of_images_comes_back(num_images: int) -> None:
    keys = read(write(num_images))["key"].to_pylist()
    assert keys == [f"key-{i}" for i in range(num_images)]


def test_no_flipped_bit_passes_in_silence() -> None:
    """Everywhere but in the footer, which no checksum holds."""
    whole = write(120)
    table, random = read(whole), np.random.default_rng(0)
    end_of_pages = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for place in random.integers(4, end_of_pages, 300):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << random.integers(8)
        with contextlib.suppress(pa.ArrowException, OSError):
            assert read(bytes(damaged)).equals(table)


def test_a_cut_object_cannot_be_read() -> None:
    whole = write(3)
    for length in range(0, len(whole), 97):
        with pytest.raises((pa.ArrowInvalid, OSError)):
            read(whole[:length])


def test_a_spool_gives_back_what_it_was_given() -> None:
    with Spool() as spool:
        spool.add(7, b"seven")
        spool.add(1, b"")
        assert spool.get(7) == b"seven"
        spool.add(3, b"three")
        assert [spool.get(slot) for slot in (3, 1, 7)] == [b"three", b"", b"seven"]


def test_rejections_are_stored_in_input_order() -> None:
    rejections = [
        Rejection("b", 7, Reason.NOT_FINITE, "image 0, seed 1: not finite"),
        Rejection("a", 2, Reason.NULL_PROMPT, "the prompt is null"),
    ]
    table = pq.read_table(io.BytesIO(rejections_bytes(rejections, "a.parquet")))
    assert table.to_pylist() == [
        {
            "key": rejection.key,
            "input_file": "a.parquet",
            "input_row": rejection.input_row,
            "reason": rejection.reason.value,
            "message": rejection.message,
        }
        for rejection in reversed(rejections)
    ]

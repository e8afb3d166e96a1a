"""Keys, seeds, fingerprints and names: a function of plan and row, the same for ever."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm_batch.identity import (
    data_path,
    derive_key,
    differing_fields,
    failure_path,
    fingerprint,
    image_seed,
    receipt_path,
    rejected_path,
    shard_index,
)

NO_SHARDS = [
    "17.parquet",
    "000017.parquet",
    "00017.parquet.tmp",
    "x00017.parquet",
    "00017",
    ".parquet",
    "00017.PARQUET",
    "00017.parquet\n",
    "-00017.parquet",
    "0001\u0667.parquet",
]
KEYS = st.text(max_size=20)
NAMES = st.sampled_from(["a", "b", "ü"])
VALUES = st.none() | st.booleans() | st.integers(-2, 2) | st.text(max_size=2)
JSON = VALUES | st.lists(VALUES, max_size=2) | st.dictionaries(NAMES, VALUES, max_size=2)
DOCUMENTS = st.dictionaries(NAMES, JSON, max_size=3)


def test_objects_of_a_shard_have_fixed_places() -> None:
    places = [data_path, receipt_path, rejected_path, failure_path]
    assert [place("00017") for place in places] == [
        "data/00017.parquet",
        ".ldm_batch/receipts/00017.json",
        ".ldm_batch/rejected/00017.parquet",
        ".ldm_batch/failures/00017.json",
    ]


@given(st.integers(0, 10**7))
def test_an_object_name_tells_its_shard(index: int) -> None:
    assert shard_index(data_path(f"{index:05d}").removeprefix("data/")) == index


@pytest.mark.parametrize("name", NO_SHARDS)
def test_other_names_are_no_shard(name: str) -> None:
    assert shard_index(name) is None


def test_a_key_is_a_place_in_the_input() -> None:
    assert derive_key("a/prompts.parquet", 17) == "a/prompts.parquet#17"


def test_seeds_never_change() -> None:
    """Numbers that every later version has to give, or no image could be made again."""
    assert image_seed(0, "prompts.parquet#0", 0) == 4213725861822439833
    assert image_seed(7, "schlüssel", 3) == 7864525711273102946
    assert image_seed(0, "any", 2, row_seed=40) == 42


@given(st.integers(0, 2**63 - 1), KEYS, st.integers(0, 999))
def test_a_seed_has_64_bits_and_depends_on_each_part(seed: int, key: str, k: int) -> None:
    here = image_seed(seed, key, k)
    assert 0 <= here < 2**64
    assert len({here, image_seed(seed + 1, key, k), image_seed(seed, key, k + 1)}) == 3
    assert image_seed(seed, key + "x", k) != here


@given(st.integers(0, 2**63 - 1), st.integers(0, 999))
def test_a_rows_own_seed_wins(row_seed: int, k: int) -> None:
    assert image_seed(1, "a", k, row_seed) == image_seed(2, "b", k, row_seed) == row_seed + k


def test_the_last_seed_wraps() -> None:
    assert image_seed(0, "a", 2, 2**64 - 1) == 1


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 9), KEYS), unique=True, max_size=9))
def test_seeds_of_different_images_differ(images: list[tuple[int, int, str]]) -> None:
    assert len({image_seed(seed, key, k) for seed, k, key in images}) == len(images)


def test_a_fingerprint_never_changes() -> None:
    document = {"b": [1, 2.5, None], "a": {"ü": True}}
    assert fingerprint(document) == (
        "1d44e843f260da50c7436a2f8f04b511003558a7836855e9d615eacf8bc99d3e"
    )


@given(DOCUMENTS)
def test_a_fingerprint_ignores_order(document: dict[str, object]) -> None:
    assert fingerprint(dict(reversed(document.items()))) == fingerprint(document)


@given(DOCUMENTS, DOCUMENTS)
def test_documents_that_differ_are_told_apart(
    one: dict[str, object], two: dict[str, object]
) -> None:
    if one != two:
        assert fingerprint(one) != fingerprint(two)


@given(DOCUMENTS)
def test_equal_documents_have_no_differing_field(document: dict[str, object]) -> None:
    assert differing_fields(document, dict(document)) == []


def test_differing_fields_show_both_values() -> None:
    planned = {"seed": 0, "model": {"files": {"a": "1"}, "dtype": "float32"}, "gone": [1]}
    now = {"seed": 1, "model": {"files": {"a": "1", "b": "2"}, "dtype": "float16"}, "gone": [1]}
    assert differing_fields(planned, now) == [
        "model.dtype: planned float32, now float16",
        "model.files.b: planned nothing, now 2",
        "seed: planned 0, now 1",
    ]


def test_long_values_are_cut_in_messages() -> None:
    [line] = differing_fields({"a": "x" * 1000}, {"a": None})
    assert len(line) < 120
    assert line.endswith("now null")

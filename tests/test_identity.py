"""Keys, seeds, fingerprints and names: a function of plan and row, the same for ever."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm_batch.identity import (
    FORMS,
    Form,
    data_path,
    derive_key,
    differing_fields,
    failure_path,
    fingerprint,
    numbered_seed,
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
    assert rejected_path("00017", "ab12") == ".ldm_batch/rejected/00017-ab12.parquet"


@pytest.mark.parametrize("form", FORMS.values())
@pytest.mark.parametrize("number", [0, 1])
def test_what_is_made_of_an_image_shares_no_noise_with_it(form: Form, number: int) -> None:
    ways = (form.image_seed, form.upscale_seed, form.edit_seed)
    assert len({seed_of(7, "a", number) for seed_of in ways}) == 3
    assert form.edit_seed(7, "a", number, 5) == numbered_seed(5, number)
    assert form.edit_seed(7, "a", number) < 2**63


@pytest.mark.parametrize("form", FORMS.values())
def test_each_of_a_chain_of_edits_has_noise_of_its_own(form: Form) -> None:
    seeds = [form.image_seed(7, "a", 0)]
    for _ in range(3):
        seeds.append(form.edit_seed(7, "a", 0, None, seeds[-1]))
    assert len({*seeds, form.edit_seed(7, "a", 0)}) == 5
    assert form.edit_seed(7, "a", 1, None, 5) == numbered_seed(
        form.edit_seed(7, "a", 0, None, 5), 1
    )
    assert form.edit_seed(7, "a", 0, 9, seeds[-1]) == 9


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
    first, second = FORMS[1], FORMS[2]
    assert first.image_seed(0, "prompts.parquet#0", 0) == 4213725861822439833
    assert first.image_seed(7, "schlüssel", 3) == 7864525711273102946
    assert first.image_seed(0, "any", 2, row_seed=40) == 42
    assert second.image_seed(0, "prompts.parquet#0", 0) == 4535112226489183479
    assert second.image_seed(7, "schlüssel", 3) == 5968230801111893527
    assert second.image_seed(0, "any", 2, row_seed=40) == 6457580072764801241
    assert second.upscale_seed(0, "prompts.parquet#0", 0) == 7377275554704602052
    assert second.upscale_seed(0, "any", 2, row_seed=40) == 6457580072764801241


@pytest.mark.parametrize(("form", "bits"), [(1, 64), (2, 63)])
@given(st.integers(0, 2**63 - 1), KEYS, st.integers(0, 999))
def test_a_seed_has_its_bits_and_depends_on_each_part(
    form: int, bits: int, seed: int, key: str, k: int
) -> None:
    for derive in (FORMS[form].image_seed, FORMS[form].upscale_seed):
        here = derive(seed, key, k)
        assert 0 <= here < 2**bits
        assert len({here, derive(seed + 1, key, k), derive(seed, key, k + 1)}) == 3
        assert derive(seed, key + "x", k) != here


@given(st.integers(0, 2**63 - 1), st.integers(0, 999))
def test_a_rows_own_seed_wins(row_seed: int, k: int) -> None:
    first, second = FORMS[1].image_seed, FORMS[2].image_seed
    assert first(1, "a", k, row_seed) == first(2, "b", k, row_seed) == row_seed + k
    assert second(1, "a", k, row_seed) == second(2, "b", k, row_seed)
    assert second(1, "a", k, row_seed) == numbered_seed(row_seed, k)


def test_the_last_seed_wraps_in_form_1() -> None:
    assert FORMS[1].image_seed(0, "a", 2, 2**64 - 1) == 1


@given(st.integers(0, 2**64 - 1), st.integers(1, 999))
def test_the_first_image_takes_its_rows_seed_and_others_none_of_their_neighbours(
    seed: int, k: int
) -> None:
    assert numbered_seed(seed, 0) == seed
    assert 0 <= numbered_seed(seed, k) < 2**63
    assert numbered_seed(seed, k) != (seed + k) % 2**64


@pytest.mark.parametrize("form", FORMS.values())
@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 9), KEYS), unique=True, max_size=9))
def test_seeds_of_different_images_differ(form: Form, images: list[tuple[int, int, str]]) -> None:
    assert len({form.image_seed(seed, key, k) for seed, k, key in images}) == len(images)


NUMBERED = st.lists(st.sampled_from(["a", "b:1", ":", "0", "7", ":2"]), max_size=4).map("".join)


@given(st.lists(st.tuples(NUMBERED, st.integers(0, 12)), unique=True, max_size=9))
def test_no_two_images_share_a_name(images: list[tuple[str, int]]) -> None:
    assert len({FORMS[2].image_key(key, k) for key, k in images}) == len(images)


def test_an_image_is_named_by_its_number_where_it_could_be_taken_for_another() -> None:
    names = [FORMS[2].image_key(key, k) for key, k in [("a", 0), ("a", 1), ("a:1", 0), ("a:x", 0)]]
    assert names == ["a", "a:1", "a:1:0", "a:x"]
    assert FORMS[1].image_key("a:1", 0) == FORMS[1].image_key("a", 1)


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

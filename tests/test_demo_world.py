"""Captions, their split and the placement of objects."""

import random
from itertools import product

from ldm_batch.demo.prompts import make_demo_prompts
from ldm_batch.demo.world import (
    COLOURS,
    SHAPES,
    caption,
    draw_specs,
    held_out_combinations,
    is_held_out_combination,
    layout,
    spec_of_caption,
)


def test_caption_is_read_back() -> None:
    for spec in draw_specs(0, 500):
        assert spec_of_caption(caption(spec)) == spec


def test_a_caption_in_words() -> None:
    spec = spec_of_caption("An orange star left of a blue circle on a white background.")
    assert spec is not None
    assert caption(spec) == "an orange star left of a blue circle on a white background"


def test_other_text_is_no_caption() -> None:
    assert spec_of_caption("a dog on a skateboard") is None
    assert spec_of_caption("a red circle on a red background") is None
    assert spec_of_caption("") is None


def test_training_captions_hold_no_held_out_combination() -> None:
    for spec in draw_specs(0, 4000, split="train"):
        for found in spec.objects:
            assert not is_held_out_combination(found.colour, found.shape, spec.background)


def test_test_captions_hold_a_held_out_combination() -> None:
    held_out = set(held_out_combinations())
    for spec in draw_specs(0, 200, split="test"):
        assert any((o.colour, o.shape, spec.background) in held_out for o in spec.objects)


def test_every_pair_of_a_held_out_combination_is_trained_on() -> None:
    triples = [t for t in product(COLOURS, SHAPES, COLOURS) if t[0] != t[2]]
    trained = [t for t in triples if not is_held_out_combination(*t)]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        pairs = {(t[first], t[second]) for t in triples}
        assert {(t[first], t[second]) for t in trained} == pairs


def test_objects_stand_on_the_latent_grid_inside_the_scene() -> None:
    rng = random.Random(0)
    for spec in draw_specs(1, 200):
        for place in layout(spec, rng):
            assert (place.x % 8, place.y % 8) == (0, 0)
            assert 1.12 * place.radius < min(place.x, place.y, 64 - place.x, 64 - place.y)


def test_demo_prompts_are_captions_but_for_the_bad_rows() -> None:
    rows = make_demo_prompts(256, seed=0)
    assert len(rows) == 256
    assert rows == make_demo_prompts(256, seed=0)
    assert len({row["id"] for row in rows}) == 255
    good = [row for row in rows if spec_of_caption(row["prompt"] or "")]
    assert len(good) == 252
    assert [row["num_inference_steps"] for row in rows].count(-20) == 1
    assert max(len((row["prompt"] or "").split()) for row in rows) > 77

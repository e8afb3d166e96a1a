"""The judge of pictures: it accepts what is true and rejects what is not."""

import numpy as np
import pytest

from ldm_batch.demo.checker import check, measure
from ldm_batch.demo.measure_checker import measure_checker
from ldm_batch.demo.render import draw_scene
from ldm_batch.demo.world import SceneSpec, draw_specs, spec_of_caption


def _spec(prompt: str) -> SceneSpec:
    spec = spec_of_caption(prompt)
    assert spec is not None
    return spec


def test_true_renders_are_accepted_and_altered_ones_rejected() -> None:
    shares = measure_checker(num_scenes=200)
    assert shares["true_accepted"] >= 0.99
    assert shares["altered_rejected"] >= 0.99


def test_verdict_names_what_is_wrong() -> None:
    image = draw_scene(_spec("a red circle left of a blue star on a white background"), seed=0)
    verdict = check(image, _spec("a red circle right of a blue star on a white background"))
    assert not verdict.relation
    assert verdict.shape
    assert verdict.colour
    assert not verdict.is_right


def test_empty_noisy_and_smeared_pictures_are_rejected() -> None:
    spec = _spec("a large green square on a black background")
    image = np.asarray(draw_scene(spec, seed=1), np.float32)
    noise = np.random.default_rng(0).normal(0, 80, image.shape)
    assert check(image, spec).is_right
    assert not check(np.full_like(image, 25), spec).is_right
    assert not check(np.clip(image + noise, 0, 255), spec).is_right
    assert not check(np.roll(image, 24, axis=1), spec).is_right


def test_measure_finds_place_and_size() -> None:
    found = measure(draw_scene(_spec("a small red circle on a white background"), seed=0))
    assert len(found.objects) == 1
    assert found.objects[0].radius == pytest.approx(10, abs=0.5)
    assert found.objects[0].x in (pytest.approx(24, abs=0.5), pytest.approx(40, abs=0.5))


def test_renders_are_deterministic() -> None:
    spec = draw_specs(3, 1)[0]
    assert draw_scene(spec, 5).tobytes() == draw_scene(spec, 5).tobytes()


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="64 x 64"):
        measure(np.zeros((32, 32, 3)))

"""How good the judge is: on true renders, and on renders of scenes with one attribute changed."""

import random
from dataclasses import replace

from ldm_batch.demo.checker import check
from ldm_batch.demo.render import draw_scene
from ldm_batch.demo.world import (
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    SceneObject,
    SceneSpec,
    draw_spec,
    draw_specs,
    is_valid,
)

ATTRIBUTES = ("background", "colour", "shape", "size", "relation", "count")


def measure_checker(num_scenes: int = 2000, seed: int = 1) -> dict[str, float]:
    """Share of true renders accepted, and of altered ones rejected, in all and per attribute."""
    specs = draw_specs(seed, num_scenes)
    accepted = [check(draw_scene(s, i), s).is_right for i, s in enumerate(specs)]
    rng = random.Random(seed)
    rejected: dict[str, list[bool]] = {attribute: [] for attribute in ATTRIBUTES}
    for index, spec in enumerate(specs):
        attribute = rng.choice(_alterable(spec))
        image = draw_scene(alter(spec, attribute, rng), index)
        rejected[attribute].append(not check(image, spec).is_right)
    every = [is_rejected for found in rejected.values() for is_rejected in found]
    shares = {f"altered_{name}_rejected": _share(found) for name, found in rejected.items()}
    return {"true_accepted": _share(accepted), "altered_rejected": _share(every), **shares}


def alter(spec: SceneSpec, attribute: str, rng: random.Random) -> SceneSpec:
    """Change one attribute of a scene to another value that the world can draw."""
    while True:
        altered = _alter_once(spec, attribute, rng)
        if altered != spec and is_valid(altered):
            return altered


def _alterable(spec: SceneSpec) -> list[str]:
    lacking = "relation" if len(spec.objects) == 1 else "size"
    return [attribute for attribute in ATTRIBUTES if attribute != lacking]


def _alter_once(spec: SceneSpec, attribute: str, rng: random.Random) -> SceneSpec:
    if attribute == "background":
        return replace(spec, background=rng.choice(COLOURS))
    if attribute == "relation":
        return replace(spec, relation=rng.choice(RELATIONS))
    if attribute == "count":
        return _alter_count(spec, rng)
    index = rng.randrange(len(spec.objects))
    values = {"colour": COLOURS, "shape": SHAPES, "size": SIZES}[attribute]
    objects = list(spec.objects)
    objects[index] = _with_attribute(objects[index], attribute, rng.choice(values))
    return replace(spec, objects=tuple(objects))


def _with_attribute(scene_object: SceneObject, attribute: str, value: str) -> SceneObject:
    return replace(scene_object, **{attribute: value})


def _alter_count(spec: SceneSpec, rng: random.Random) -> SceneSpec:
    if len(spec.objects) == 2:
        return replace(spec, objects=(rng.choice(spec.objects),), relation="")
    other = draw_spec(rng, num_objects=1).objects[0]
    pair = tuple(replace(found, size="") for found in (*spec.objects, other))
    return replace(spec, objects=pair, relation=rng.choice(RELATIONS))


def _share(flags: list[bool]) -> float:
    return sum(flags) / len(flags)

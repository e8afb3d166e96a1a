"""Scenes in words: what a picture of the demo world may hold, and its caption, both ways.

A scene is one object of three sizes, or two objects of one size with a relation, on a plain
background. Nothing here knows about pixels, except that `layout` places objects on the 8-pixel
grid of the latents (see README.md for why).
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
SHAPES = ("circle", "square", "triangle", "star", "cross")
SIZES = ("", "small", "large")
RELATIONS = ("left of", "right of", "above", "below")

RADIUS = {"small": 10.0, "": 15.0, "large": 20.0}
PAIR_RADIUS = 13.0
SCENE_EXTENT = 64.0

Split = Literal["train", "test", "all"]


@dataclass(frozen=True)
class SceneObject:
    """One object; `size` is "" (medium, not said in the caption), "small" or "large"."""

    shape: str
    colour: str
    size: str = ""


@dataclass(frozen=True)
class SceneSpec:
    """What a caption says; `relation` is where the first of two objects stands to the second."""

    background: str
    objects: tuple[SceneObject, ...]
    relation: str = ""


@dataclass(frozen=True)
class Placement:
    """Centre and radius of one object in scene units (the scene is 64 x 64, y points down)."""

    x: float
    y: float
    radius: float


def caption(spec: SceneSpec) -> str:
    """Say the scene in words, e.g. "a red circle left of a blue star on a white background"."""
    words = [" ".join(filter(None, (o.size, o.colour, o.shape))) for o in spec.objects]
    phrases = [_with_article(w) for w in words]
    joined = f" {spec.relation} ".join(phrases)
    return f"{joined} on {_with_article(spec.background)} background"


_ONE_OF = {
    "size": "|".join(filter(None, SIZES)),
    "colour": "|".join(COLOURS),
    "shape": "|".join(SHAPES),
    "relation": "|".join(RELATIONS),
}
_OBJECT = "an? (?:({size}) )?({colour}) ({shape})".format(**_ONE_OF)
_CAPTION = re.compile(
    f"{_OBJECT}(?: ({_ONE_OF['relation']}) {_OBJECT})? on an? ({_ONE_OF['colour']}) background"
)


def spec_of_caption(prompt: str) -> SceneSpec | None:
    """Read a caption back; None for any text that is not the caption of a scene of this world."""
    match = _CAPTION.fullmatch(prompt.strip().lower().rstrip("."))
    if match is None:
        return None
    size1, colour1, shape1, relation, size2, colour2, shape2, background = match.groups()
    objects = [SceneObject(shape1, colour1, size1 or "")]
    if relation is not None:
        objects.append(SceneObject(shape2, colour2, size2 or ""))
    spec = SceneSpec(background, tuple(objects), relation or "")
    return spec if is_valid(spec) else None


def is_valid(spec: SceneSpec) -> bool:
    """Whether the world draws it: visible colours, no sizes in pairs, no two equal objects."""
    if any(o.colour == spec.background for o in spec.objects):
        return False
    if len(spec.objects) == 1:
        return spec.relation == ""
    return (
        len(spec.objects) == 2
        and spec.relation in RELATIONS
        and all(o.size == "" for o in spec.objects)
        and spec.objects[0] != spec.objects[1]
    )


def is_held_out_combination(colour: str, shape: str, background: str) -> bool:
    """Whether the triple is kept out of training; every two of the three are trained on."""
    c, s, b = COLOURS.index(colour), SHAPES.index(shape), COLOURS.index(background)
    return (3 * c + 7 * s + 5 * b + c * b) % 10 == 4


def is_held_out(spec: SceneSpec) -> bool:
    """Whether any object of the scene is a held-out combination with its background."""
    return any(is_held_out_combination(o.colour, o.shape, spec.background) for o in spec.objects)


def held_out_combinations() -> list[tuple[str, str, str]]:
    """List every held-out (colour, shape, background), in a fixed order."""
    triples = product(COLOURS, SHAPES, COLOURS)
    return [t for t in triples if t[0] != t[2] and is_held_out_combination(*t)]


def draw_spec(
    rng: random.Random, *, num_objects: int | None = None, split: Split = "all"
) -> SceneSpec:
    """Draw a scene of one split; with `num_objects` None, 45 % of the scenes have one object.

    "train" never holds a held-out combination; "test" always holds at least one.
    """
    while True:
        num = num_objects or (1 if rng.random() < 0.45 else 2)
        background = rng.choice(COLOURS)
        colours = [c for c in COLOURS if c != background]
        objects = tuple(
            SceneObject(
                shape=rng.choice(SHAPES),
                colour=rng.choice(colours),
                size=rng.choice(SIZES) if num == 1 else "",
            )
            for _ in range(num)
        )
        spec = SceneSpec(background, objects, rng.choice(RELATIONS) if num == 2 else "")
        if is_valid(spec) and (split == "all" or is_held_out(spec) == (split == "test")):
            return spec


def draw_specs(
    seed: int, num: int, *, num_objects: int | None = None, split: Split = "all"
) -> list[SceneSpec]:
    """Draw `num` scenes from one seed."""
    rng = random.Random(seed)
    return [draw_spec(rng, num_objects=num_objects, split=split) for _ in range(num)]


def layout(spec: SceneSpec, rng: random.Random) -> tuple[Placement, ...]:
    """Place the objects; centres are multiples of 8 px, so a shape meets the grid in one way."""
    if len(spec.objects) == 1:
        radius = RADIUS[spec.objects[0].size]
        return (Placement(rng.choice((24.0, 40.0)), rng.choice((24.0, 40.0)), radius),)
    return tuple(_pair_placements(spec.relation, rng))


def _pair_placements(relation: str, rng: random.Random) -> Iterator[Placement]:
    along = (16.0, 48.0) if relation in ("left of", "above") else (48.0, 16.0)
    for position in along:
        across = rng.choice((24.0, 40.0))
        if relation in ("left of", "right of"):
            yield Placement(position, across, PAIR_RADIUS)
        else:
            yield Placement(across, position, PAIR_RADIUS)


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"

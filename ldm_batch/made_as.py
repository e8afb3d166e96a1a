"""How an image was really made, where that is otherwise than planned: the names in `made_as`.

Pure. Must not know pipelines or files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ldm_batch.records import Fault, Made

MADE_AS = "made_as"
"""The column; empty in images that were made as planned."""
_SECOND = "upscale:"
_ROWS = re.compile(r"batch_size=([1-9][0-9]{0,8})")


@dataclass(frozen=True, slots=True)
class MadeAs:
    """What was otherwise than planned when an image was made; by default nothing.

    Its text has a name for each, in the order of the fields: `batch_size=4 float32`, and those of a
    second stage after these, each with `upscale:` before it.
    """

    batch_size: int | None = None
    """Rows of the model calls that it came from, where memory did not suffice for as many as
    planned."""
    is_float32: bool = False
    """Whether it was made in float32, after half precision gave no usable picture."""
    upscale: MadeAs | None = None
    """The same of the second stage."""

    def __str__(self) -> str:
        names = [f"batch_size={self.batch_size}"] if self.batch_size is not None else []
        names += ["float32"] if self.is_float32 else []
        names += [f"{_SECOND}{name}" for name in str(self.upscale or "").split()]
        return " ".join(names)


def parse_made_as(text: str, planned_rows: int | None = None) -> MadeAs:
    """What a text of the column says.

    Args:
        planned_rows: of the model calls; an image can only come from fewer. None: not known.

    Raises:
        ValueError: it is none that an image can have.
    """
    names = text.split()
    second = [name.removeprefix(_SECOND) for name in names if name.startswith(_SECOND)]
    found = replace(_parse_stage(names), upscale=_parse_stage(second) if second else None)
    rows = [how.batch_size or 0 for how in (found, found.upscale or found)]
    if str(found) != text or (planned_rows is not None and max(rows) >= planned_rows):
        raise ValueError(f"made_as {text!r} is none that an image can have")
    return found


def _parse_stage(names: Sequence[str]) -> MadeAs:
    rows = [int(match[1]) for name in names if (match := _ROWS.fullmatch(name))]
    return MadeAs(rows[0] if rows else None, "float32" in names)


def how_made(picture: Any) -> MadeAs:
    """How a pipeline says that it made a picture: pixels, `Made` or `Fault`."""
    columns = picture.columns if isinstance(picture, Made) else {}
    return parse_made_as(columns.get(MADE_AS, ""))


def with_made_as(picture: Any, how: MadeAs) -> Any:
    """A picture, pixels or `Made`, with how it was made beside it; a fault as it is."""
    if isinstance(picture, Fault):
        return picture
    made = picture if isinstance(picture, Made) else Made(picture)
    return replace(made, columns={**made.columns, MADE_AS: str(how)})


def in_fewer_rows(pictures: Sequence[Any], rows: int) -> list[Any]:
    """Pictures of model calls of fewer rows than planned, each saying so; one that says already of
    how many, says that still."""
    return [
        with_made_as(p, replace(how, batch_size=how.batch_size or rows))
        for p, how in ((picture, how_made(picture)) for picture in pictures)
    ]


def tried_in_float32(first: Sequence[Any], again: Sequence[Any]) -> list[Any]:
    """Pictures, with those of a second try in float32 where the first gave a fault."""
    return [
        with_made_as(second, replace(how_made(second), is_float32=True))
        if isinstance(one, Fault)
        else one
        for one, second in zip(first, again, strict=True)
    ]


def without_float32(pictures: Sequence[Any]) -> list[Any]:
    """Pictures as half precision made them, the faults telling that there was no memory for another
    try."""
    told = "no memory to try it in float32"
    return [
        replace(one, message=f"{one.message}; {told}") if isinstance(one, Fault) else one
        for one in pictures
    ]


def count_made_as(texts: Iterable[object]) -> Counter[str]:
    """How many images were made in each way that is otherwise than planned.

    Args:
        texts: what stands in the column, one for each image; what no image can have is left out.
    """
    counts = Counter(text for text in texts if isinstance(text, str) and text)
    return Counter({text: count for text, count in counts.items() if _is_made_as(text)})


def describe_made_as(counts: Mapping[str, int]) -> list[str]:
    """What to tell of images that were made otherwise than planned, a line for each way."""
    return [
        f"{count:,} {'image' if count == 1 else 'images'} made as {text}"
        for text, count in sorted(counts.items())
    ]


def _is_made_as(text: str) -> bool:
    try:
        parse_made_as(text)
    except ValueError:
        return False
    return True

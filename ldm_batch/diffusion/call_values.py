"""What the arguments of a call from Python may be, by type: a sentence for whatever else comes.

Must not know ranges or lengths, which call_arguments.py checks.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence, Set
from numbers import Real
from operator import index

import numpy as np
import torch


def whole(name: str, value: object) -> int:
    """A whole number of Python's, numpy's or torch's; True is none.

    Raises:
        ValueError: it is something else.
    """
    try:
        if not isinstance(value, bool | np.bool_):
            return index(value)  # type: ignore[arg-type]
    except TypeError:
        pass
    raise ValueError(f"{_told(name, value)}: must be a whole number")


def number(name: str, value: object) -> float:
    """A real number of Python's or numpy's; True is none.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise ValueError(f"{_told(name, value)}: must be a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{_told(name, value)}: must be a number that a float can hold") from None


def texts(name: str, value: object) -> list[str]:
    """One text or several, as a list.

    Raises:
        ValueError: it is something else, none at all, or half of a character (a lone surrogate).
    """
    if isinstance(value, str):
        return [_text(name, value)]
    found = items(value)
    if found is None:
        raise ValueError(f"{_told(name, value)}: must be a text or a list of texts")
    if not found:
        raise ValueError(f"{name}: must be a text or a list of at least one text")
    return [_text(f"{name}[{i}]", text) for i, text in enumerate(found)]


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{_told(name, value)}: must be a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = ascii(value[error.start])
        raise ValueError(f"{name}: holds {half}, half of a character; must be Unicode") from None
    return str(value)


def seeds(value: object) -> int | list[int]:
    """One seed, or several as a list.

    Raises:
        ValueError: it is something else, or none at all.
    """
    found = items(value)
    if found is not None:
        if not found:
            raise ValueError("seed: must be a whole number, a list of at least one, or None")
        return [whole(f"seed[{i}]", one) for i, one in enumerate(found)]
    try:
        return whole("seed", value)
    except ValueError as error:
        raise ValueError(f"{error}, a list of them, or None") from error


def generators(value: object) -> torch.Generator | list[torch.Generator]:
    """One generator, or several as a list.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, torch.Generator):
        return value
    found = items(value)
    if not found:
        raise ValueError(
            f"{_told('generator', value)}: must be a torch.Generator, a list of them, or None; "
            "a number is given as seed"
        )
    return [_generator(i, one) for i, one in enumerate(found)]


def _generator(place: int, value: object) -> torch.Generator:
    if isinstance(value, torch.Generator):
        return value
    told = _told(f"generator[{place}]", value)
    raise ValueError(f"{told}: must be a torch.Generator; numbers are given as seed")


def latents(value: object) -> torch.Tensor:
    """A tensor of finite floats.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{_told('latents', value)}: must be a tensor [images, C, h, w], or None")
    if not value.is_floating_point():
        raise ValueError(f"latents: dtype {value.dtype}; must be float")
    if not value.isfinite().all():
        raise ValueError("latents: holds values that are not finite; must be standard normal noise")
    return value


def flag(name: str, value: object) -> bool:
    """True or False.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{_told(name, value)}: must be True or False")
    return value


def items(value: object) -> Sequence[object] | None:
    """What is in a list, an array or whatever else has an order; None where a value is none of
    these: a text, a mapping, or a set, whose order is none."""
    if isinstance(value, str | bytes | bytearray | Mapping | Set) or getattr(value, "ndim", 1) == 0:
        return None
    return list(value) if isinstance(value, Iterable) else None


def _told(name: str, value: object) -> str:
    """An argument as a message names it: with its value where that is short, else its type."""
    if value is None or isinstance(value, str | bytes | int | float | complex):
        return f"{name}={reprlib.repr(value)}"
    return f"{name}: {type(value).__name__}"

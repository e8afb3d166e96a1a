"""How a call from Python shows its steps: tqdm's bar, and what it may be told.

The only user of tqdm. Must not know what is computed.
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ldm_batch.config.bounds import suggest
from ldm_batch.diffusion.call_values import whole


def check_bar(config: Mapping[str, Any]) -> None:
    """Try out what a caller says of the bar.

    Raises:
        ValueError: tqdm has no such argument, or none of that value.
    """
    from tqdm.std import tqdm

    parameters = inspect.signature(tqdm.__init__).parameters
    known = sorted(parameters.keys() - {"self", "iterable", "total", "kwargs"})
    for name in config:
        if name not in known:
            raise ValueError(f"{name}: no argument of tqdm's{suggest(name, known)}")
    file = config.get("file")
    if file is not None and not callable(getattr(file, "write", None)):
        raise ValueError(f"file: {type(file).__name__}; must be an open text file, or None")
    if config.get("position") is not None:
        whole("position", config["position"])
    for name, value in config.items():
        try:
            unseen = {"mininterval": 0, name: value, "file": io.StringIO(), "disable": False}
            with tqdm(total=2, **unseen) as bar:
                bar.update()
                bar.refresh()
        except Exception as error:  # of whatever kind, tqdm does not take it
            raise ValueError(f"{name}={value!r}: tqdm does not take it: {error}") from error


@contextmanager
def showing_steps(num_steps: int, config: Mapping[str, Any]) -> Iterator[Callable[[], object]]:
    """Show a bar of so many steps; yields what to call after each."""
    from tqdm.auto import tqdm  # a widget in notebooks, a line in terminals

    with tqdm(total=num_steps, **config) as bar:
        yield bar.update

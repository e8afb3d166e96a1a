"""Render a chat template for some texts, in a process of its own that may neither stay nor grow.

Run as a program: JSON in, JSON out. Imports nothing of this project. Must not know models.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
from typing import Any

MAX_SECONDS = 10
MAX_BYTES = 1024**3
"""Of CPU time, and of address space, of which Python with Jinja takes 25 MB."""


def main() -> None:
    """Read `{template, variables, texts}`; write what the template makes of each text."""
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, MAX_SECONDS))
    with contextlib.suppress(ValueError, OSError):  # macOS takes no limit of this kind
        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    given = json.load(sys.stdin)
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    environment.globals["raise_exception"] = _refuse
    template = environment.from_string(given["template"])
    made = [
        template.render(
            messages=[{"role": "user", "content": text}],
            tools=None,
            documents=None,
            add_generation_prompt=True,
            enable_thinking=True,
            **given["variables"],
        )
        for text in given["texts"]
    ]
    json.dump(made, sys.stdout)


def _refuse(message: Any) -> None:
    raise ValueError(message)


if __name__ == "__main__":
    main()

"""The one door: `python -m ldm_batch COMMAND ...`.

A table of names; a command is imported when it is asked for. Must not know what one does.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import NoReturn

PROGRAM = "python -m ldm_batch"
COMMANDS = {
    "run": ("ldm_batch.run:main", "make a dataset, or what is missing of it; FIELD=VALUE ..."),
    "status": ("ldm_batch.commands.status:main", "how far a dataset is"),
    "verify": (
        "ldm_batch.commands.verify.command:main",
        "prove that a dataset is whole and right, or make images of it again",
    ),
    "sheet": ("ldm_batch.commands.sheet:main", "the first images and their prompts as one picture"),
    "sweep": ("ldm_batch.commands.sweep:main", "remove what crashes left behind"),
    "tradeoff": (
        "ldm_batch.demo.tradeoff:main",
        "schedulers and steps, time against quality, on a job's own prompts",
    ),
    "import": (
        "ldm_batch.commands.import_model:main",
        "make a model's folder of an original checkpoint",
    ),
    "demo": ("ldm_batch.demo.command:main", "256 prompts and the model that ships with ldm_batch"),
}
"""Name -> `module:function`, which reads the rest of the command line itself, and a line on it."""
EXIT_USAGE = 2


def main() -> None:
    """Run the command that the command line names; it exits with that command's code."""
    name, *rest = sys.argv[1:] or [""]
    if name in ("-h", "--help"):
        print(help_text())
        return
    if name not in COMMANDS:
        _refuse(name)
    module, _, function = COMMANDS[name][0].partition(":")
    sys.argv[:] = [f"{PROGRAM} {name}", *rest]
    getattr(importlib.import_module(module), function)()


def help_text() -> str:
    """What there is to ask for, a line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {line}" for name, (_, line) in COMMANDS.items()]
    return "\n".join(
        [
            "Synthetic image datasets with latent diffusion.",
            "",
            f"usage: {PROGRAM} COMMAND ...",
            "",
            *lines,
            "",
            f"{PROGRAM} COMMAND --help explains one.",
        ]
    )


def _refuse(name: str) -> NoReturn:
    close = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    if name.startswith("-"):
        message = f"{name}: no such option; options stand behind a command"
    elif "=" in name:
        message = f"no command; did you mean `{PROGRAM} run {name}`?"
    elif close:
        message = f"{name}: no such command; did you mean {close[0]!r}?"
    else:
        message = f"{name}: no such command" if name else "no command"
    print(f"error: {message}\n\n{help_text()}", file=sys.stderr)
    sys.exit(EXIT_USAGE)


if __name__ == "__main__":
    main()

"""The one door: `python -m ldm_batch COMMAND ...`, where it is installed `ldm-batch COMMAND ...`.

A table of names; a command is imported when it is asked for. Must not know what one does.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from pathlib import Path
from typing import Any, NoReturn

MODULE, SCRIPT = "python -m ldm_batch", "ldm-batch"
COMMANDS = {
    "run": ("ldm_batch.run:main", "make a dataset, or what is missing of it; FIELD=VALUE ..."),
    "status": ("ldm_batch.commands.status:main", "how far a dataset is"),
    "verify": (
        "ldm_batch.commands.verify.command:main",
        "prove that a dataset is whole and right; make images of it again",
    ),
    "sheet": ("ldm_batch.commands.sheet:main", "the first images and their prompts as one picture"),
    "sweep": ("ldm_batch.commands.sweep:main", "remove what crashes left behind"),
    "tradeoff": (
        "ldm_batch.demo.tradeoff:main",
        "schedulers and steps: time against quality on a job's own prompts",
    ),
    "import": (
        "ldm_batch.commands.import_model:main",
        "make a model's folder of an original checkpoint",
    ),
    "init": ("ldm_batch.commands.init:main", "a folder for jobs of your own"),
    "completion": (
        "ldm_batch.commands.completion.command:main",
        "what completes commands and settings in bash, zsh or fish",
    ),
    "demo": ("ldm_batch.demo.command:main", "256 prompts and the model that ships with ldm_batch"),
}
"""Name -> `module:function`, which reads the rest of the command line itself, and a line on it."""
BEFORE = {"run": "ldm_batch.commands.words:before_run"}
"""Name -> what reads its words first, puts them right or answers by itself, without waiting for
what the command imports."""
VERSION = "ldm_batch.versions:version_line"
ENDS = "ldm_batch.commands.ending:ends"
EXIT_USAGE = 2


def main() -> None:
    """Run the command that the command line names; it exits with that command's code."""
    program = program_name()
    name, *rest = sys.argv[1:] or [""]
    if name in ("-h", "--help"):
        _tell(help_text(program))
        return
    if name in ("-V", "--version"):
        _tell(_load(VERSION)())
        return
    if name not in COMMANDS:
        _refuse(name, program)
    sys.argv[:] = [f"{program} {name}", *rest]
    if name in BEFORE:
        _load(BEFORE[name])()
    _load(COMMANDS[name][0])()


def program_name() -> str:
    """How this was called, by the word that the system was given."""
    return SCRIPT if Path(sys.argv[0]).stem == SCRIPT else MODULE


def help_text(program: str = MODULE) -> str:
    """What there is to ask for, a line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {line}" for name, (_, line) in COMMANDS.items()]
    return "\n".join(
        [
            "Synthetic image datasets with latent diffusion.",
            "",
            f"usage: {program} COMMAND ...",
            "",
            *lines,
            "",
            f"{program} COMMAND --help explains one, --version tells versions.",
        ]
    )


def _tell(text: str) -> None:
    _load(ENDS)(print)(text)


def _load(place: str) -> Any:
    module, _, function = place.partition(":")
    return getattr(importlib.import_module(module), function)


def _refuse(name: str, program: str) -> NoReturn:
    close = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    if name.startswith("-"):
        message = f"{name}: no such option; options stand behind a command"
    elif "=" in name:
        message = f"no command; did you mean `{program} run {name}`?"
    elif close:
        message = f"{name}: no such command; did you mean {close[0]!r}?"
    else:
        message = f"{name}: no such command" if name else "no command"
    print(f"error: {message}\n\n{help_text(program)}", file=sys.stderr)
    sys.exit(EXIT_USAGE)


if __name__ == "__main__":
    main()

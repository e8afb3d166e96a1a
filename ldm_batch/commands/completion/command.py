"""`ldm-batch completion bash`: print the script that completes commands and settings in a shell.

In bash: eval "$(ldm-batch completion bash)".
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ldm_batch.commands.completion.answer import SHELLS, answer, has_open_quote, split
from ldm_batch.commands.ending import ends
from ldm_batch.commands.program import program

ABOUT = (
    "Print the script that completes commands, settings and places in a shell; its first line says "
    "where it goes."
)
ANSWER = "answer"
"""What the scripts ask for; not for people."""
SPECIAL = frozenset(" \t\n\\'\"`$&|;<>()[]{}*?!#~")
"""Characters that bash reads itself."""


def for_bash(line: str, word_breaks: str) -> list[str]:
    """What bash puts in place of the word that it has found at the end of a line.

    That begins behind the last of its own breaks, `=` and `:` among them, and not at a space.
    """
    words = split(line)
    current = words[-1] if words else ""
    is_quoted = has_open_quote(line)
    breaks = [current.rfind(sign) for sign in word_breaks if sign in "=:@"]
    start = 0 if is_quoted else max(breaks, default=-1) + 1
    found = [word[start:] for word in answer(line) if "\n" not in word]  # one word is one line
    home = "~" if current[start:].startswith("~") and not is_quoted else ""
    if is_quoted:
        return found
    return [home + _escaped(word.removeprefix(home)) for word in found]


def _escaped(word: str) -> str:
    """A word as bash reads it back; the space at the end of a finished one is no part of it."""
    plain = word.removesuffix(" ")
    return "".join(f"\\{sign}" if sign in SPECIAL else sign for sign in plain) + word[len(plain) :]


@ends
def main(arguments: Sequence[str] | None = None) -> None:
    """Print a script, or the answer to one."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == [ANSWER] and len(words) >= 3:
        shell, line, *breaks = words[1:]
        found = for_bash(line, "".join(breaks)) if shell == "bash" else answer(line)
        for word in found:
            print(word.rstrip(" ") if shell == "fish" else word)
        return
    import argparse  # not needed for an answer, which must be quick

    from ldm_batch.commands.completion.scripts import SCRIPTS

    parser = argparse.ArgumentParser(prog=program("completion"), description=ABOUT)
    parser.add_argument("shell", choices=SHELLS)
    print(SCRIPTS[parser.parse_args(words).shell], end="")

"""How the commands call themselves in their usage lines: as they were called.

Must not know any command. What a dataset records, and what resumes a job, is no usage line: it runs
by `python -m ldm_batch` wherever this does.
"""

from __future__ import annotations

import sys

SCRIPT, MODULE = "ldm-batch", "python -m ldm_batch"


def program(command: str = "") -> str:
    """The words that start a command, e.g. `ldm-batch status`; without one the program's own.

    The door puts its name before the command's in `sys.argv`; whoever calls a command from Python
    has no such word, and is told of the one that always works.
    """
    name = SCRIPT if sys.argv[0].startswith(f"{SCRIPT} ") else MODULE
    return f"{name} {command}".rstrip()

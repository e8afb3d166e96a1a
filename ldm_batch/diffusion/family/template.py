"""A tokenizer's chat template, as text before and after a prompt: rendered once, and never again.

A template is a program that its folder brings. It is run here for a few texts, in a process that is
ended when it stays; what it did to them is what it does to every prompt, or it is refused. Must not
know models.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm_batch.errors import JobError, one_line

PROGRAM = Path(__file__).with_name("render_template.py")
MAX_SECONDS = 60
"""Of the clock: six times the CPU time that the program itself may take, on a busy machine."""
MAX_TEMPLATE, MAX_FRAME = 1_000_000, 100_000
"""Characters of a template, and of what stands around a prompt."""
MARK = "ldm-batch-7c0e"
TEXTS = (MARK, f" {MARK}\n\n Two  words,\n<b>{{{{ 1 }}}} ", "", "Ω" * 2000)
"""What templates are tried with: other lengths, spaces at the ends, signs of their language."""


def freeze_template(tokenizer: Any, folder: Path) -> None:
    """Put in the place of a tokenizer's chat template one that does the same and always ends.

    Raises:
        JobError: it has none, it does not end, or it does more than to put a text before and after
            a prompt; names the folder.
    """
    template = tokenizer.chat_template
    if isinstance(template, Mapping):
        template = template.get("default")
    if not isinstance(template, str):
        raise JobError(f"{folder}: the tokenizer has no chat template, which this model needs")
    if len(template) > MAX_TEMPLATE:
        raise JobError(
            f"{folder}: its chat template has {len(template)} characters; at most {MAX_TEMPLATE} "
            "are taken"
        )
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    tokenizer.chat_template = _frozen(folder, _render(folder, template, special))


def _frozen(folder: Path, rendered: Sequence[str]) -> str:
    """The template of literal text that makes the same of the texts, written so that nothing of it
    is read as more."""
    first, mark, last = rendered[0].partition(MARK)
    if mark and len(first) + len(last) <= MAX_FRAME:
        for change, ending in ((str, ""), (str.strip, " | trim")):
            if [*rendered] == [f"{first}{change(text)}{last}" for text in TEXTS]:
                prompt = f"messages[0]['content']{ending}"
                return f"{{{{ {first!a} }}}}{{{{ {prompt} }}}}{{{{ {last!a} }}}}"
    raise JobError(
        f"{folder}: its chat template does more than to put a text before and after the prompt, "
        "which is all that is taken"
    )


def _render(folder: Path, template: str, special: Mapping[str, str]) -> list[str]:
    given = json.dumps({"template": template, "variables": special, "texts": TEXTS})
    try:
        ended = subprocess.run(
            [sys.executable, "-P", str(PROGRAM)],
            input=given,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=MAX_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise JobError(f"{folder}: its chat template does not end") from error
    if ended.returncode < 0:
        raise JobError(f"{folder}: its chat template does not end")
    if ended.returncode:
        told = one_line(ended.stderr.strip().rpartition("\n")[2])
        raise JobError(f"{folder}: its chat template cannot be rendered: {told}")
    rendered: list[str] = json.loads(ended.stdout)
    return rendered

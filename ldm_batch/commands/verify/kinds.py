"""The problems of a dataset by their kinds: what is wrong, without where, and how often.

Must not know what is a problem.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

PLACE = re.compile(r"^[^ :]+/[^ :]+: ")
"""A path in the sink, before anything that is said of what stands there."""
IMAGE = re.compile(r"^(row \d+, image \d+|.*? #\d+): ")
"""Which row's, and which of its images: by its place, or by its key."""
PARTICULAR = re.compile(r"'[^']*'|\"[^\"]*\"|\b[0-9a-f]{12,}\b(\.\.\.)?|\d+(\.\d+)?(e[+-]?\d+)?")
"""What tells one problem of a kind from another: names, digests, numbers."""
MAX_CHARS = 120


def count_kinds(problems: Iterable[str]) -> list[tuple[str, int]]:
    """Kinds of problems and how many of each there are, the most frequent first."""
    return Counter(map(kind_of, problems)).most_common()


def kind_of(problem: str) -> str:
    """What is wrong, without which place, image, name or number it is about."""
    told = IMAGE.sub("", PLACE.sub("", problem, count=1), count=1)
    told = PARTICULAR.sub("…", told)
    return told if len(told) <= MAX_CHARS else f"{told[:MAX_CHARS]}…"

"""The groups of a configuration and their options: files, found and described without composing.

Must not know what a file sets, but that it begins with a comment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ldm_batch.config.described import job_fields, section_about

JOBS = "conf"
"""The group whose options are jobs."""
ABOUT = {
    JOBS: "A job: a file with all that differs from the defaults.",
    "task": "What rows become images by.",
    "speed": "Fewer steps and less guidance, by what was measured; wins over the job's own.",
}
"""What groups are for that are no section of a job; a section says it itself."""


@dataclass(frozen=True, slots=True)
class Option:
    """One file of a group."""

    name: str
    path: Path

    @property
    def about(self) -> str:
        """The comment that begins its file, without its name, its command and what is for Hydra."""
        text = " ".join(line for line in self.comment if not line.startswith(("@", "python -m ")))
        return text.removeprefix(f"{self.path.parent.name}={self.name}: ")

    @property
    def comment(self) -> list[str]:
        """The lines of the comment that begins its file."""
        lines = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            if not line.startswith("#"):
                break
            lines.append(line.removeprefix("#").strip())
        return lines


def shipped(name: str) -> Path:
    """A folder or file that travels in the package, where it is installed, and stands beside it in
    a checkout."""
    package = Path(__file__).parents[1]
    inside = package / name
    return inside if inside.exists() else package.parent / name


def find_groups(own_folders: Sequence[Path] = ()) -> Mapping[str, list[Option]]:
    """Every group with its options by name, the group of jobs first.

    Args:
        own_folders: of the user, laid out as `conf/` is; what is not there holds nothing.
    """
    found: dict[str, dict[str, Option]] = {}
    for folder in (shipped("conf"), *own_folders):
        for path in sorted(path for path in folder.glob("*/*.yaml") if path.is_file()):
            found.setdefault(path.parent.name, {}).setdefault(path.stem, Option(path.stem, path))
    names = sorted(found, key=lambda name: (name != JOBS, name))
    return {name: [found[name][option] for option in sorted(found[name])] for name in names}


@cache
def group_about(name: str) -> str:
    """What a group is for, in a sentence; nothing of one that a user has made."""
    if name in ABOUT:
        return ABOUT[name]
    return section_about(name) if name in job_fields() else ""

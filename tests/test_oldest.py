"""The oldest versions that are tested are the oldest that the project says it takes."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent


def test_every_floor_is_a_version_that_is_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    floors = {
        needed.name: Version(str(needed.specifier).removeprefix(">="))
        for needed in map(Requirement, project["dependencies"])
    }
    lines = (ROOT / "tests" / "oldest.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert floors == {name: Version(pins[name]) for name in floors}

"""The oldest versions that are tested are the oldest that we say we take; of Ray the newest too."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent


def test_every_floor_is_a_version_that_is_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    floors = {
        needed.name: Version(bound.version)
        for needed in map(Requirement, project["dependencies"])
        for bound in needed.specifier
        if bound.operator == ">="
    }
    lines = (ROOT / "tests" / "oldest.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert floors == {name: Version(pins[name]) for name in floors}


def test_the_newest_ray_is_the_one_that_is_run() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [ray] = [one for one in map(Requirement, project["dependencies"]) if one.name == "ray"]
    [newest] = [Version(bound.version) for bound in ray.specifier if bound.operator == "<"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    [pin] = [Version(line.split("==")[1]) for line in lines if line.startswith("ray==")]
    assert (newest.major, newest.minor) == (pin.major, pin.minor + 1)

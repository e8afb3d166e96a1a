"""The one door to the commands: what there is, what was meant, each command's own exit code; and
the script that an installer makes of it."""

import importlib.metadata
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from commands import Ended, run, write_prompts

import ldm_batch
from ldm_batch.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]


def door(folder: Path, *arguments: str) -> Ended:
    return run(folder, *arguments, module="ldm_batch")


def test_help_lists_every_command(tmp_path: Path) -> None:
    ended = door(tmp_path, "--help")
    assert ended.code == 0
    for name, (_, line) in COMMANDS.items():
        assert f"  {name.ljust(10)}  {line}\n" in ended.out
    assert max(map(len, ended.out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no command"),
        (["statsu"], "statsu: no such command; did you mean 'status'?"),
        (["contact_sheet"], "contact_sheet: no such command; did you mean 'sheet'?"),
        (["frobnicate"], "frobnicate: no such command"),
        (["conf=demo"], "no command; did you mean `python -m ldm_batch run conf=demo`?"),
    ],
)
def test_what_is_no_command_is_told(tmp_path: Path, arguments: list[str], message: str) -> None:
    ended = door(tmp_path, *arguments)
    assert ended.code == 2
    assert ended.err.startswith(f"error: {message}\n")
    assert "usage: python -m ldm_batch COMMAND" in ended.err


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "run"])
def test_a_command_explains_itself_by_its_name_here(tmp_path: Path, name: str) -> None:
    ended = door(tmp_path, name, "--help")
    assert ended.code == 0
    assert ended.out.startswith(f"usage: python -m ldm_batch {name} ")


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_versions_on_a_line(tmp_path: Path, option: str) -> None:
    ended = door(tmp_path, option)
    assert (ended.code, ended.err) == (0, "")
    told = dict(part.split(" ") for part in ended.out.strip().split(", "))
    assert told["ldm_batch"] == ldm_batch.__version__
    assert told["torch"] == importlib.metadata.version("torch")
    assert {"python", "diffusers", "transformers"} < set(told)


def test_versions_wait_for_nothing_that_they_tell_of() -> None:
    code = (
        "import sys\nfrom ldm_batch.__main__ import main\n"
        "sys.argv = ['ldm-batch', '--version']\nmain()\nprint(*sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "diffusers", "transformers"} & set(ended.stdout.split("\n")[1].split())


def test_a_command_calls_itself_as_it_was_called(script: Path, tmp_path: Path) -> None:
    def told(*arguments: str) -> Ended:
        ended = subprocess.run([script, *arguments], capture_output=True, text=True, cwd=tmp_path)
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    assert "usage: ldm-batch COMMAND ..." in told("--help").out
    assert "did you mean `ldm-batch run conf=demo`?" in told("conf=demo").err
    assert told("run", "--help").out.startswith("usage: ldm-batch run ")
    assert told("status", "--help").out.startswith("usage: ldm-batch status ")
    write_prompts(tmp_path, 1, 30)
    job = ("conf=machinery", "cluster=in_process", "source.uri=in", "sink.uri=out")
    assert told("run", *job).code == 0
    assert told("status", "out").code == 0
    plan = json.loads((tmp_path / "out/.ldm_batch/plan.json").read_text())
    assert "ldm-batch" not in plan["environment"]["command"]  # it runs where no script is


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The script that an installer makes of the entry point of pyproject.toml."""
    place = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["ldm-batch"]
    module, _, function = place.partition(":")
    path = tmp_path / "bin/ldm-batch"
    path.parent.mkdir()
    path.write_text(
        f"#!{sys.executable}\nimport sys\nfrom {module} import {function}\n"
        f"if __name__ == '__main__':\n    sys.exit({function}())\n"
    )
    path.chmod(0o755)
    return path


def test_a_dataset_by_the_door_alone(tmp_path: Path) -> None:
    write_prompts(tmp_path, 1, 30)
    job = ("conf=machinery", "cluster=in_process", "source.uri=in", "sink.uri=out")
    assert door(tmp_path, "run", *job, "dry_run=true").code == 0
    assert door(tmp_path, "status", "out").code == 2
    assert door(tmp_path, "run", *job).code == 0
    assert door(tmp_path, "status", "out").code == 0
    assert "right and complete" in door(tmp_path, "verify", "out", "--regenerate", "2").out
    assert door(tmp_path, "sheet", "out", "--output", "sheet.png").code == 0
    assert (tmp_path / "sheet.png").stat().st_size > 0
    assert door(tmp_path, "sweep", "out").code == 0
    refused = door(tmp_path, "run", *job, "seed=1")
    assert (refused.code, refused.out) == (2, "")
    assert "seed: planned 0, now 1" in refused.err

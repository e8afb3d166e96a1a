"""The one door to the commands: what there is, what was meant, and each command's own exit code."""

from pathlib import Path

import pytest
from commands import Ended, run, write_prompts

from ldm_batch.__main__ import COMMANDS


def door(folder: Path, *arguments: str) -> Ended:
    return run(folder, *arguments, module="ldm_batch")


def test_help_lists_every_command(tmp_path: Path) -> None:
    ended = door(tmp_path, "--help")
    assert ended.code == 0
    for name, (_, line) in COMMANDS.items():
        assert f"  {name.ljust(8)}  {line}\n" in ended.out
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

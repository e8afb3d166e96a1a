"""`init`: a folder for jobs of one's own, whole or not at all, whose job really runs."""

import os
import shlex
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from commands import Ended, run

from ldm_batch.commands import init
from ldm_batch.commands.completion import command as completion
from ldm_batch.commands.init import OF_CHECKOUT, make_folder
from ldm_batch.config.groups import shipped
from ldm_batch.demo.world import spec_of_caption
from ldm_batch.errors import JobError


def door(folder: Path, *arguments: str) -> Ended:
    return run(folder, *arguments, module="ldm_batch")


def test_the_job_that_it_writes_runs(tmp_path: Path) -> None:
    made = door(tmp_path, "init", "new/mine")
    assert (made.code, made.err) == (0, "")
    commands = [line.split()[3:] for line in made.out.splitlines() if "python -m" in line]
    assert commands == [
        ["run", "--config-dir", "conf", "conf=my_job", "dry_run=true"],
        ["run", "--config-dir", "conf", "conf=my_job"],
    ]
    folder = tmp_path / "new/mine"
    assert f"  cd {folder}\n" in made.out
    for command in commands:
        assert (
            f"    python -m ldm_batch {' '.join(command)}\n" in (folder / "README.md").read_text()
        )
        ended = door(folder, *command, "cluster=in_process", "call.num_inference_steps=2")
        assert ended.code == 0, ended.err
    table = pq.read_table(folder / "out/my_job/data")
    assert table["prompt"].to_pylist() == list(init.PROMPTS)
    assert set(table["model"].to_pylist()) == {"demo:text_to_image"}
    assert all(spec_of_caption(prompt) for prompt in init.PROMPTS)


def test_the_folder_is_printed_as_a_shell_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where its name begins as an option does, or is of the home folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for words, place in {
        ("--", "-lead"): "-lead",
        ("~/it's",): "home/it's",
        ("./~x",): "~x",
    }.items():
        init.main(words)
        assert f"  cd {shlex.quote(str(tmp_path / place))}\n" in capsys.readouterr().out
        assert (tmp_path / place / "conf/conf/my_job.yaml").is_file()
    with pytest.raises(SystemExit):
        init.main([""])
    assert "FOLDER: empty; name one" in capsys.readouterr().err


@pytest.mark.parametrize("main", [init.main, completion.main])
def test_help_is_for_people(
    main: Callable[[Sequence[str]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert not set(capsys.readouterr().out) & set("`$")


def test_every_line_of_the_job_is_explained(tmp_path: Path) -> None:
    make_folder(tmp_path / "mine", "ldm-batch")
    text = (tmp_path / "mine/conf/conf/my_job.yaml").read_text()
    assert text.startswith("# @package _global_\n")
    lines = text.splitlines()
    for before, line in pairwise(lines):
        is_section = line.endswith(":") and not line.startswith(" ")
        assert before.lstrip().startswith("#") or not line or "#" in line[:3] or is_section, line
    document = yaml.safe_load(text)
    assert document["source"]["uri"] == "prompts.parquet"


def test_scripts_come_along_and_can_be_started(tmp_path: Path) -> None:
    make_folder(tmp_path / "mine", "ldm-batch")
    names = {path.name for path in (tmp_path / "mine/jobs").iterdir()}
    left_out = {path.name for pattern in OF_CHECKOUT for path in shipped("jobs").glob(pattern)}
    assert names == {path.name for path in shipped("jobs").iterdir()} - left_out
    for script in (tmp_path / "mine/jobs").glob("*.sh"):
        assert os.access(script, os.X_OK)
        assert script.read_bytes() == (shipped("jobs") / script.name).read_bytes()
    assert (tmp_path / "mine/constraints.txt").read_text() == shipped("constraints.txt").read_text()


def test_what_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    wanted = "name one that is not there, or an empty one"
    for name, why in {
        "full": "is a folder with something in it",
        "file": "is no folder",
        "link": "is no folder",
    }.items():
        with pytest.raises(JobError, match=f"{name}: {why}; {wanted}"):
            make_folder(tmp_path / name, "ldm-batch")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full", "link"]
    (tmp_path / "empty").mkdir()
    make_folder(tmp_path / "empty", "ldm-batch")
    assert (tmp_path / "empty/conf/conf/my_job.yaml").is_file()


def test_it_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(JobError, match="mine: cannot be written: No space left on device"):
        make_folder(tmp_path / "mine", "ldm-batch")
    assert list(tmp_path.iterdir()) == []

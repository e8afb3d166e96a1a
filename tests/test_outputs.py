"""Commands whose output nobody reads or takes, and names that are no text: a code and a line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import write_prompts

JOB = "run conf=machinery cluster=in_process source.uri=in sink.uri=out"
NOT_UTF8 = os.fsdecode(b"x\xff")


def shell(folder: Path, line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash, `$X` being the program; its exit code is that of the program."""
    program = f"{sys.executable} -m ldm_batch"
    return subprocess.run(
        ["bash", "-c", f"X='{program}'; {line}"],
        cwd=folder,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        env={**os.environ, "PYTHONUNBUFFERED": "", **environment},
        check=False,
    )


@pytest.mark.parametrize(
    ("line", "codes", "err"),
    [
        ("$X --help | head -1; exit ${PIPESTATUS[0]}", (0, 141), ""),
        (f"$X {JOB} | head -1; exit ${{PIPESTATUS[0]}}", (141,), ""),
        (f"$X {JOB} >&-", (0,), ""),
        (f"$X {JOB} <&-", (0,), ""),
        ("$X status nowhere 2>&-", (2,), ""),
        ("$X --version > /dev/full", (2,), "error: standard output: cannot be written: No space"),
        ("$X completion bash > /dev/full", (2,), "error: standard output: cannot be written"),
    ],
)
def test_an_output_that_nobody_takes(
    line: str, codes: tuple[int, ...], err: str, tmp_path: Path
) -> None:
    write_prompts(tmp_path, 1, 10)
    ended = shell(tmp_path, line)
    assert ended.returncode in codes, ended
    assert ended.stderr.startswith(err)
    assert ended.stderr.count("\n") == bool(err)


def test_a_file_whose_name_is_no_text_is_refused(tmp_path: Path) -> None:
    write_prompts(tmp_path, 1, 10)
    (tmp_path / "in" / f"{NOT_UTF8}.parquet").write_bytes((tmp_path / "in/0.parquet").read_bytes())
    ended = shell(tmp_path, f"$X {JOB}")
    assert ended.returncode == 2, ended
    assert "x\\udcff.parquet': its name is no text in UTF-8" in ended.stderr
    assert "rename it" in ended.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_whose_name_is_no_text(tmp_path: Path) -> None:
    folder = tmp_path / NOT_UTF8
    write_prompts(tmp_path, 1, 10)
    shutil.copytree(tmp_path / "in", folder / "in")
    ended = shell(folder, f"$X {JOB}")
    assert ended.returncode == 2, ended
    assert "the path of this folder is no text in UTF-8" in ended.stderr
    assert not (folder / "out").exists()
    assert shell(folder, "$X init jobs").returncode == 0  # which records nothing


@pytest.mark.parametrize("name", ["donn\xe9es", "\u65e5\u672c"])
def test_names_on_terminals_that_lack_their_letters(name: str, tmp_path: Path) -> None:
    for environment in ({"LC_ALL": "C"}, {"PYTHONIOENCODING": "latin-1"}):
        ended = shell(tmp_path, f"$X status '{name}'", **environment)
        assert ended.returncode == 2, ended
        assert ended.stderr.startswith("error: ")
        assert "no dataset here" in ended.stderr

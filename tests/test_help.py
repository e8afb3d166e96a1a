"""`run --help`: groups, sections and fields in words, and without waiting for Hydra."""

import subprocess
import sys
from pathlib import Path

import pytest
from commands import run

from ldm_batch.commands.run_help import WIDTH, help_on
from ldm_batch.config.described import job_fields
from ldm_batch.config.groups import find_groups
from ldm_batch.errors import JobError
from ldm_batch.versions import version_line

COMMAND = "ldm-batch run"
MAX_LINES = 50
"""Of the overview: a screen."""


def test_the_overview_names_everything_on_a_screen() -> None:
    lines = help_on([], COMMAND).splitlines()
    assert lines[0].startswith("usage: ldm-batch run ")
    assert len(lines) <= MAX_LINES
    assert max(map(len, lines)) <= WIDTH
    starts = {word for line in lines if line.startswith("  ") for word in line[:25].split()}
    assert {f"{group}=" for group in find_groups()} < starts
    sections = [f for f in job_fields().values() if f.is_section and not f.section]
    assert {f"{section.path}." for section in sections} < starts
    own = [f.path for f in job_fields().values() if not f.is_section and not f.section]
    flat = " ".join(" ".join(lines).split())
    assert f"Fields of the job itself: {', '.join(own)}." in flat


@pytest.mark.parametrize("group", find_groups())
def test_a_group_names_its_options_and_what_they_are(group: str) -> None:
    text = " ".join(help_on([group], COMMAND).split())
    for option in find_groups()[group]:
        assert option.about
        assert f"{option.name} {' '.join(option.about.split())}" in text


@pytest.mark.parametrize("path", job_fields())
def test_a_field_is_told_with_type_and_default(path: str) -> None:
    field = job_fields()[path]
    text = " ".join(help_on([path], COMMAND).split())
    assert field.about
    assert field.about in text
    assert field.is_section or f"{path}={field.default} ({field.kind})" in text
    in_section = " ".join(help_on([field.section or "job"], COMMAND).split())
    assert field.about in in_section or (field.is_section and not field.section)


def test_topics_by_their_short_names() -> None:
    assert help_on(["batch-size"], COMMAND) == help_on(["batch_size"], COMMAND)
    assert help_on(["source."], COMMAND) == help_on(["source"], COMMAND)
    assert "call.eta=" in help_on(["eta"], COMMAND)
    assert "upscale.eta=" in help_on(["eta"], COMMAND)
    option = help_on(["scheduler=heun"], COMMAND)
    assert help_on(["heun"], COMMAND) == option
    assert option.startswith("scheduler=heun: Heun, second order")
    assert option.endswith("  name: heun\n  settings: {}")
    assert "One of: webp, png, jpeg." in help_on(["image.format"], COMMAND)


def test_groups_of_ones_own_are_told_too(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/cats.yaml").write_text("# @package _global_\n# Cats only.\nname: cats\n")
    assert "cats                   Cats only." in help_on(["conf"], COMMAND, [tmp_path])


def test_what_is_not_there_is_told() -> None:
    with pytest.raises(JobError, match=r"^--help suorce: .*; did you mean source\?$"):
        help_on(["suorce"], COMMAND)
    with pytest.raises(JobError, match="--help alone lists what there is"):
        help_on(["xyzzy"], COMMAND)
    with pytest.raises(
        JobError, match="--help conf=dmo: conf: no option 'dmo'; did you mean 'demo'"
    ):
        help_on(["conf=dmo"], COMMAND)


def test_the_command_answers_and_ends(tmp_path: Path) -> None:
    ended = run(tmp_path, "run", "--help", "sink.uri", module="ldm_batch")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("  sink.uri=null  (text or null)\n")
    ended = run(tmp_path, "run", "-h", "nothing.at.all", module="ldm_batch")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: --help nothing.at.all: no such group")
    assert run(tmp_path, "run", "--version", module="ldm_batch").out == f"{version_line()}\n"


def test_help_waits_for_nothing_that_computes() -> None:
    code = (
        "import atexit, sys\n"
        "sys.argv = ['ldm-batch', 'run', '--help']\n"
        "atexit.register(lambda: print(*sys.modules))\n"
        "from ldm_batch.__main__ import main\nmain()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.startswith("usage: ldm-batch run ")
    loaded = {name.split(".")[0] for name in ended.stdout.splitlines()[-1].split()}
    assert "ldm_batch" in loaded
    assert not loaded & {"hydra", "omegaconf", "torch", "ray", "pyarrow", "numpy"}

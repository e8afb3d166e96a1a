"""What completes a command line: the answer, what it imports, and a real bash that asks for it."""

import importlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin

import pexpect
import pytest

from ldm_batch.__main__ import COMMANDS
from ldm_batch.commands.completion import answer as answers
from ldm_batch.commands.completion import command
from ldm_batch.commands.completion.answer import answer, split
from ldm_batch.commands.completion.scripts import SCRIPTS
from ldm_batch.commands.words import FLAGS, INFO, VALUED
from ldm_batch.config import JobConfig, cluster, job, model, source, upscale
from ldm_batch.config.described import CLOSED, job_fields
from ldm_batch.generate.choose import ENGINES

BREAKS = " \t\n\"'><=;|&(:"
"""bash's own, where nobody has changed them."""
SCRIPT = "import re, sys\nfrom ldm_batch.__main__ import main\nsys.exit(main())\n"
"""What an installer makes of the entry point."""
PROMPT = "ready> "


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with what may be completed in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts/a.parquet").touch()
    (tmp_path / "two words.parquet").touch()
    (tmp_path / "b:c.parquet").touch()
    (tmp_path / ".hidden").touch()
    (tmp_path / "mine/conf").mkdir(parents=True)
    (tmp_path / "mine/conf/cats.yaml").write_text("# @package _global_\nname: cats\n")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("sta", ["status "]),
        ("run con", ["conf="]),
        ("run conf=txt2img_1", ["conf=txt2img_1m "]),
        ("run scheduler=dpmpp", [f"scheduler=dpmpp_{n} " for n in ("2m", "2s", "sde")]),
        ("run so", ["source.", "source="]),
        ("run source.im", ["source.image_root="]),
        ("run model.attention=", ["model.attention=plain ", "model.attention=sdpa "]),
        ("run upscale.model.attention=pl", ["upscale.model.attention=plain "]),
        ("run dry_run=", ["dry_run=false ", "dry_run=true "]),
        ("run ++dry_run=t", ["++dry_run=true "]),
        ("run model.engine=d", ["model.engine=diffusers "]),
        ("run scheduler.name=kdpm2", ["scheduler.name=kdpm2 ", "scheduler.name=kdpm2_a "]),
        ("run seed=", []),
        ("run source.uri=pro", ["source.uri=prompts/"]),
        ("run source.uri=prompts/", ["source.uri=prompts/a.parquet "]),
        ("run source.uri=.h", ["source.uri=.hidden "]),
        ("run 'source.uri=two w", ["source.uri=two words.parquet "]),
        ("run --config-d", ["--config-dir "]),
        ("run --config-dir m", ["mine/"]),
        ("run --config-dir mine conf=ca", ["conf=cats "]),
        ("run --cfg j", ["job "]),
        ("run --help sink.u", ["sink.uri "]),
        ("status --js", ["--json "]),
        ("status pro", ["prompts/"]),
        ("import --tokenizer min", ["mine/"]),
        ("completion f", ["fish "]),
        ("nothing ", []),
    ],
)  # fmt: skip
def test_how_a_line_goes_on(folder: Path, line: str, expected: list[str]) -> None:
    assert answer(f"ldm-batch {line}") == expected
    assert answer(f"{folder}/bin/ldm-batch {line}") == expected


def test_all_commands_groups_and_fields_are_offered() -> None:
    assert {word.strip() for word in answer("ldm-batch ")} == {*COMMANDS, "--help", "--version"}
    assert set(COMMANDS) == set(answers.OPTIONS) == set(answers.COMMANDS)
    assert set(answers.OPTIONS["run"]) < {*FLAGS, *VALUED, *INFO}
    first = answer("ldm-batch run ")
    own = [field for field in job_fields().values() if not field.section]
    assert {f"{f.path}{'.' if f.is_section else '='}" for f in own} < set(first)
    assert {"conf=", "model=", "scheduler=", "speed="} < set(first)
    assert {word.strip() for word in answer("ldm-batch run model.engine=")} == {
        f"model.engine={name}" for name in ENGINES
    }


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "run"])
def test_options_are_those_of_the_commands(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module, _, function = COMMANDS[name][0].partition(":")
    with pytest.raises(SystemExit):
        getattr(importlib.import_module(module), function)(["--help"])
    words = capsys.readouterr().out.replace(",", " ").replace("[", " ").replace("]", " ").split()
    assert {w for w in words if w.startswith("--")} == set(answers.OPTIONS[name])


def test_closed_lists_are_what_a_job_may_say() -> None:
    """Of each field that has one: the default is in it, where it is not null."""
    job = JobConfig()
    for field in job_fields().values():
        value = job
        for name in field.path.split("."):
            value = getattr(value, name)
        if field.values and value is not None:
            assert str(value).lower() in field.values, field.path


def test_every_closed_list_is_completed() -> None:
    modules = (cluster, job, model, source, upscale)
    aliases = [alias for module in modules for alias in vars(module).values()]
    lists = [get_args(alias) for alias in aliases if get_origin(alias) is Literal]
    assert len(lists) >= 9
    assert {*lists} <= {*CLOSED.values()}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ldm-batch ", ["ldm-batch", ""]),
        ("ldm-batch run 'a b", ["ldm-batch", "run", "a b"]),
        ('ldm-batch run "a b', ["ldm-batch", "run", "a b"]),
        (r"ldm-batch a\ b", ["ldm-batch", "a b"]),
        ("ldm-batch it's \"", ["ldm-batch", 'its "']),
    ],
)
def test_words_up_to_the_cursor(line: str, words: list[str]) -> None:
    assert split(line) == words


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("run source.uri=pro", ["prompts/"]),
        ("run source.uri=two", [r"two\ words.parquet "]),
        ("run source.uri=b", ["b:c.parquet "]),
        ("run source.uri=b:", ["c.parquet "]),
        ("run 'source.uri=two", ["source.uri=two words.parquet "]),
        ("run conf=txt2img_1", ["txt2img_1m "]),
        ("run so", ["source.", "source="]),
    ],
)
def test_bash_is_told_what_stands_behind_its_own_breaks(
    folder: Path, line: str, found: list[str]
) -> None:
    assert command.for_bash(f"ldm-batch {line}", BREAKS) == found
    whole = command.for_bash("ldm-batch run conf=txt2img_1", BREAKS.replace("=", ""))
    assert whole == ["conf=txt2img_1m "]


def test_bash_is_told_of_the_home_folder_and_of_names_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder))
    (folder / "two\nlines").mkdir()
    assert command.for_bash("ldm-batch status ~/pro", BREAKS) == ["~/prompts/"]
    assert command.for_bash("ldm-batch run source.uri=~/pro", BREAKS) == ["~/prompts/"]
    assert command.for_bash("ldm-batch status tw", BREAKS) == [r"two\ words.parquet "]
    assert command.for_bash("ldm-batch run --config-dir a --config-dir b conf=", BREAKS) == []


def test_an_answer_waits_for_nothing_that_computes() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['ldm-batch', 'completion', 'answer', 'zsh', 'ldm-batch run conf=']\n"
        "from ldm_batch.__main__ import main\nmain()\nprint(*sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *found, modules = ended.stdout.splitlines()
    assert "conf=txt2img_1m " in found
    loaded = {name.split(".")[0] for name in modules.split()}
    assert not loaded & {
        "hydra",
        "omegaconf",
        "torch",
        "ray",
        "pyarrow",
        "numpy",
        "yaml",
        "argparse",
    }


# Shells


@pytest.fixture
def bash(folder: Path) -> Iterator[pexpect.spawn]:
    """A bash that has read the script, as a user's has."""
    program = folder / "bin/ldm-batch"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\n{SCRIPT}")
    program.chmod(0o755)
    shell = pexpect.spawn("bash", ["--norc", "--noprofile"], encoding="utf-8", timeout=30)
    shell.sendline(
        f"PATH={program.parent}:$PATH; bind 'set enable-bracketed-paste off'; PS1='{PROMPT}'"
    )
    shell.expect(f"\r\n.*{PROMPT}")
    shell.sendline('eval "$(ldm-batch completion bash)"')
    shell.expect(f"\r\n{PROMPT}")
    yield shell
    shell.close(force=True)


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("ldm-batch stat", "ldm-batch status "),
        ("ldm-batch run conf=txt2img_u", "ldm-batch run conf=txt2img_upscaled "),
        ("ldm-batch run sched", "ldm-batch run scheduler"),
        ("ldm-batch run source.uri=two", r"ldm-batch run source.uri=two\ words.parquet "),
        ("ldm-batch run 'source.uri=two", "ldm-batch run 'source.uri=two words.parquet"),
        ("ldm-batch run source.uri=b:", "ldm-batch run source.uri=b:c.parquet "),
        ("ldm-batch run model.dtype=b", "ldm-batch run model.dtype=bfloat16 "),
        ("ldm-batch run --config-dir mine conf=c", "ldm-batch run --config-dir mine conf=cats "),
        ("ldm-batch status prom", "ldm-batch status prompts/"),
    ],
)
def test_bash_completes(bash: pexpect.spawn, typed: str, shown: str) -> None:
    bash.send(f"{typed}\t")
    bash.expect("\x07?".join(map(re.escape, shown)))  # it rings where more than one would do


@pytest.mark.parametrize("shell", SCRIPTS)
def test_a_shell_can_read_its_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    command.main([shell])
    script = capsys.readouterr().out
    assert script == SCRIPTS[shell]
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "-n", "/dev/stdin"], input=script, text=True, check=True)

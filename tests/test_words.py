"""The words after `run` that are no settings: what was meant, before anything is composed."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from commands import run

from ldm_batch.commands import sheet, status, sweep
from ldm_batch.commands.verify import command as verify
from ldm_batch.commands.words import DEMO_PROMPTS, before_run, check_words, own_folders
from ldm_batch.config.fields import no_such_field
from ldm_batch.config.groups import shipped
from ldm_batch.errors import JobError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with files that somebody may name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "mine/conf").mkdir(parents=True)
    for name in ("prompts.parquet", "two words.parquet", "job.yaml", "mine/conf/cats.yaml"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("in out", "in: is no setting; did you mean source.uri=in sink.uri=out?"),
        ("prompts.parquet", "is no setting; did you mean source.uri=prompts.parquet?"),
        ("s3://a/b/ seed=1", "s3://a/b/: is no setting; did you mean source.uri=s3://a/b/?"),
        ("source.uri=in out", "out: is no setting; did you mean sink.uri=out?"),
        (
            "source.uri= in",
            "source.uri=: has no value; did you mean source.uri=in, without a space?",
        ),
        ("source.uri=two words.parquet", "did you mean 'source.uri=two words.parquet', in quotes?"),
        ("demo", "demo: is no setting; did you mean conf=demo?"),
        ("machinry", "machinry: is no setting; did you mean conf=machinery?"),
        ("batch_size 4", "batch_size: is no setting; did you mean batch_size=4?"),
        ("dry_run", "dry_run: is no setting; did you mean dry_run=true?"),
        ("model demo", "model: is no setting; did you mean model=demo?"),
        (f"seed=1 {'x' * 5000}", "is no setting; settings are FIELD=VALUE or GROUP=OPTION"),
        ("what is this", "what: is no setting; settings are FIELD=VALUE or GROUP=OPTION"),
        ("--batch-size 4", "--batch-size: no such option; did you mean batch_size=4?"),
        ("--batch-size=4", "--batch-size=4: no such option; did you mean batch_size=4?"),
        ("--num-inference-steps 20", "did you mean call.num_inference_steps=20?"),
        ("--num_inference_steps 20", "did you mean call.num_inference_steps=20?"),
        ("--steps 20", "did you mean call.num_inference_steps=20?"),
        ("--guidance-scal 2", "did you mean call.guidance_scale=2?"),
        ("--region eu", "did you mean source.s3.region=eu or sink.s3.region=eu?"),
        ("--path models/x", "did you mean model.path=models/x?"),
        ("--seed", "--seed: no such option; did you mean seed=...?"),
        ("--dry-run conf=demo", "--dry-run: no such option; did you mean dry_run=true?"),
        ("--scheduler heun", "did you mean scheduler=heun?"),
        ("--model CompVis/ldm", "did you mean model=local model.repo_id=CompVis/ldm?"),
        ("--source in --sink out", "--source: no such option; did you mean source.uri=in?"),
        ("--output out", "did you mean sink.uri=out?"),
        ("--conf demo", "did you mean conf=demo?"),
        ("--multi-run", "did you mean --multirun?"),
        ("-x", "-x: no such option; settings are"),
        ("conf=job.yaml", "move it to conf/job.yaml, then --config-dir . conf=job"),
        ("conf=mine/conf/cats.yaml", "names a file; did you mean --config-dir mine conf=cats?"),
        ("conf=nowhere/x.yaml", "move it to nowhere/conf/x.yaml, then --config-dir nowhere conf=x"),
        (f"conf={shipped('conf')}/conf/demo.yaml", "names a file; did you mean conf=demo?"),
        ("source=prompts.parquet", "did you mean source.uri=prompts.parquet?"),
        ("sink=out/x", "sink=out/x: no such setting; did you mean sink.uri=out/x?"),
        ("model=./m", "did you mean model=local model.path=./m?"),
        ("scheduler=DDIMScheduler", "did you mean scheduler.name=DDIMScheduler?"),
        ("batch-size=4", "did you mean batch_size=4?"),
        ("steps=50", "steps=50: no such setting; did you mean call.num_inference_steps=50?"),
        ("output=o", "did you mean sink.uri=o?"),
        ("sink.uri:out/x", "did you mean sink.uri=out/x, with = for :?"),
        ("source.uri = in", "source.uri: is no setting; did you mean source.uri=in?"),
        ("-n 5", "-n: no such option; settings are"),
        ("--hydra-help", "--hydra-help: no such option; did you mean --help?"),
        ("--shell-completion query=bash", "did you mean the command `completion`?"),
        ("-m --cfg job conf=demo", "--cfg: shows one job; leave -m out"),
        ("--multirun seed=1,2 --info=all", "--info=all: shows one job; leave -m out"),
        ("--config-dir= conf=demo", "--config-dir: names no folder; write --config-dir FOLDER"),
        ("conf=demo --config-dir", "--config-dir: names no folder"),
        ("--config-dir a --config-dir=b", "--config-dir: a and b; name one folder"),
        ("--config-dir ~nobody-here/x", "~nobody-here/x: no such user is known here"),
    ],
)
def test_what_was_meant(folder: Path, words: str, told: str) -> None:
    with pytest.raises(JobError) as refused:
        check_words(words.split(" "))
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["conf=demo", "seed=7"],
        ["conf=demo.yaml"],
        ["conf=demo,machinery", "sink.uri=out_${seed}"],
        ["+a=1", "++source.columns.prompt=x", "~model", "source.columns={prompt: a b}"],
        ["speed=null", "source.uri="],
        ["hydra.verbose=true", "scheduler.settings.timestep_spacing=trailing"],
        ["--config-dir", "mine", "conf=cats"],
        ["--config-dir=mine", "conf=cats"],
        ["-m", "seed=1,2"],
        ["--info", "searchpath", "conf=demo"],
        ["--cfg", "job", "--resolve", "conf=demo"],
        ["source=elsewhere"],
    ],
)
def test_what_composing_knows_passes(folder: Path, words: list[str]) -> None:
    assert check_words(words) == words


def test_a_folder_of_ones_own_may_be_at_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    (folder / "mine/other").mkdir()
    (folder / "mine/other/x.yaml").touch()
    for options in (["--config-dir=~/mine"], ["-cd", "~/mine"], ["-cd=~/mine"]):
        assert own_folders(options) == [folder / "mine"]
    assert check_words(["--config-dir=~/mine", "other=x"])
    assert own_folders(["--config-dir=./~"]) == [Path("~")]


@pytest.mark.parametrize("main", [status.main, sweep.main, sheet.main, verify.main])
def test_a_dataset_is_a_folder(
    folder: Path,
    main: Callable[[Sequence[str]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for word, told in {
        "": "SINK: empty; name the dataset's folder, or s3://bucket/prefix",
        "prompts.parquet": f"{folder}/prompts.parquet: is a file; name the dataset's folder",
    }.items():
        with pytest.raises(SystemExit) as ended:
            main([word])
        assert ended.value.code == 2
        assert capsys.readouterr().err == f"error: {told}\n"


def test_options_may_stand_anywhere() -> None:
    words = ["conf=demo", "--cfg", "job", "seed=1", "--resolve", "--config-dir=x"]
    words += ["dry_run=true"]
    settings = ["conf=demo", "seed=1", "dry_run=true"]
    assert check_words(words) == ["--cfg", "job", "--resolve", "--config-dir=x", *settings]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("num_inference_steps", "did you mean 'call.num_inference_steps'?"),
        ("uri", "did you mean 'source.uri' or 'sink.uri'?"),
        ("sed", "did you mean 'seed'?"),
        ("frobnicate", "--help lists all fields"),
    ],
)
def test_a_field_without_its_section(name: str, meant: str) -> None:
    assert no_such_field(name) == f"{name}: no such field; {meant}"


def test_the_command_says_it_in_a_line_and_takes_options_anywhere(folder: Path) -> None:
    ended = run(folder, "run", "in", "out", module="ldm_batch")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "error: in: is no setting; did you mean source.uri=in sink.uri=out?\n"
    shown = run(folder, "run", "seed=7", "--cfg", "job", "conf=machinery", module="ldm_batch")
    assert shown.code == 0
    assert "name: machinery\n" in shown.out
    assert "seed: 7\n" in shown.out


def test_a_run_of_nothing_says_where_to_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ldm-batch run"])
    with pytest.raises(SystemExit):
        before_run()
    assert "`ldm-batch demo` writes prompts and runs the demo" in capsys.readouterr().err
    (tmp_path / DEMO_PROMPTS).parent.mkdir()
    (tmp_path / DEMO_PROMPTS).touch()
    before_run()

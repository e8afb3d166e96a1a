"""A configuration holds values, never code: wherever `_target_` stands, nothing is run or made."""

import io
import os
from pathlib import Path

import pytest
from commands import run, write_prompts
from omegaconf import OmegaConf

import ldm_batch
from ldm_batch.config import JobConfig
from ldm_batch.errors import JobError
from ldm_batch.run.compose import compose_job, compose_jobs

JOB = ("conf=machinery", "cluster=in_process", "source.uri=in", "sink.uri=out")
MKDIR = "{_target_: os.mkdir, path: made}"
REFUSED = "refused, a configuration holds values, never code"
FILES = {
    "callbacks": f"# @package _global_\nhydra: {{callbacks: {{x: {MKDIR}}}}}\n",
    "launcher": "# @package _global_\nhydra: {launcher: {_target_: os.getpid}}\n",
    "logging": "# @package _global_\nhydra: {job_logging: {handlers: {x: {_target_: os.mkdir}}}}\n",
    "settings": f"# @package _global_\nscheduler: {{settings: {{a: [{MKDIR}]}}}}\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with prompts, and jobs of one's own that hold code."""
    write_prompts(tmp_path, num_files=1, rows_per_file=2)
    (tmp_path / "mine/conf").mkdir(parents=True)
    for name, text in FILES.items():
        (tmp_path / f"mine/conf/{name}.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_that_nothing_was_done(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["in", "mine"]


@pytest.mark.parametrize(
    "words",
    [
        (*JOB, f"+hydra.callbacks.x={MKDIR}"),
        (*JOB, f"+hydra.callbacks.x={MKDIR}", "dry_run=true"),
        ("-m", *JOB, "seed=1,2", f"++hydra.callbacks.x={MKDIR}"),
        ("-m", *JOB, "seed=1,2", "hydra.launcher._target_=os.mkdir"),
        ("--config-dir", "mine", *JOB, "conf=callbacks"),
        ("-m", "--config-dir=mine", *JOB, "conf=callbacks,launcher", "dry_run=true"),
        ("--cfg", "job", *JOB, f"+hydra.callbacks.x={MKDIR}"),
        ("--info", "config", "--config-dir", "mine", "conf=logging"),
    ],
    ids=str,
)
def test_the_command_runs_no_code(folder: Path, words: tuple[str, ...]) -> None:
    ended = run(folder, *words)
    assert (ended.code, ended.out) == (2, ""), ended
    assert ended.err.startswith("error: hydra.")
    assert ended.err.endswith(f"{REFUSED}\n")
    check_that_nothing_was_done(folder)


@pytest.mark.parametrize("is_sweep", [False, True])
@pytest.mark.parametrize(
    ("word", "message"),
    [
        (f"+hydra.callbacks.x={MKDIR}", f"hydra.callbacks.x: {REFUSED}"),
        ("hydra.sweeper._target_=os.mkdir", f"hydra.sweeper._target_: {REFUSED}"),
        ("hydra.sweeper.params={+hydra.callbacks.x: 1}", "hydra.sweeper.params: refused, a set"),
        ("hydra.searchpath=[pkg://antigravity]", "hydra.searchpath: refused, a setting of Hydra's"),
        ("hydra.job.env_set.A=b", "hydra.job.env_set.A: refused, a setting of Hydra's own"),
        ("hydra.run.dir=made", "hydra.run.dir: refused, a setting of Hydra's own"),
        ("hydra/job_logging=default", "hydra/job_logging: refused, a setting of Hydra's own"),
        (f"model.scheduler_config.a={MKDIR}", f"model.scheduler_config.a._target_: {REFUSED}"),
        (f"scheduler.settings={{a: [{MKDIR}]}}", f"scheduler.settings.a[0]._target_: {REFUSED}"),
        (f"upscale.scheduler.settings.a.b={MKDIR}", f"settings.a.b._target_: {REFUSED}"),
        ("cluster.runtime_env._target_=os.mkdir", f"cluster.runtime_env._target_: {REFUSED}"),
        ("+sink._target_=os.mkdir", f"sink._target_: {REFUSED}"),
        ("+x={_recursive_: false}", f"x._recursive_: {REFUSED}"),
    ],
)
def test_an_override_holds_no_code(folder: Path, word: str, message: str, is_sweep: bool) -> None:
    with pytest.raises(JobError) as raised:
        compose_jobs([*JOB, word], is_sweep=is_sweep)
    assert message in str(raised.value)
    check_that_nothing_was_done(folder)


@pytest.mark.parametrize("is_sweep", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_a_job_file_holds_no_code(folder: Path, name: str, is_sweep: bool) -> None:
    words = [f"conf={name}", "seed=1,2"] if is_sweep else [f"conf={name}"]
    with pytest.raises(JobError, match=REFUSED):
        compose_jobs(words, folder=folder / "mine", is_sweep=is_sweep)
    check_that_nothing_was_done(folder)


def test_a_sweep_of_which_one_job_holds_code_begins_none(folder: Path) -> None:
    ended = run(folder, "-m", "--config-dir", "mine", *JOB[1:], "conf=machinery,settings")
    assert (ended.code, ended.out) == (2, ""), ended
    assert ended.err == f"error: scheduler.settings.a[0]._target_: {REFUSED}\n"
    check_that_nothing_was_done(folder)


def test_a_base_of_ones_own_imports_no_packages(folder: Path) -> None:
    """`pkg://` would import a module to look for files beside it."""
    (folder / "evil.py").write_text("import os; os.mkdir('made')\n")
    base = "defaults: [job_schema, _self_]\nhydra: {searchpath: ['pkg://evil']}\n"
    (folder / "mine/config.yaml").write_text(base)
    ended = run(folder, "--config-dir", "mine", *JOB, "dry_run=true")
    assert (ended.code, "2 rows" in ended.out) == (0, True), ended
    assert not (folder / "made").exists()


@pytest.mark.parametrize(
    "value",
    [
        "${oc.env:HOME}",
        "a ${oc.env:HOME} b",
        "\\\\${oc.env:HOME}",
        "${oc.env:${name}}",
        "${oc.decode:'1'}",
        "${hydra:runtime.cwd}",
        "${hydra.runtime.cwd}",
        "${oc.select:name}",
        "${now:%Y}",
        "${ oc.env:HOME }",
    ],
)
def test_only_fields_of_the_job_are_interpolated(
    folder: Path, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a command line, in quotes or not, of any type; in a file; in a document of Python's."""
    monkeypatch.setenv("HOME", "/the/secret")
    (folder / "mine/conf/env.yaml").write_text(
        f"# @package _global_\ncall:\n  negative_prompt: '{value.replace(chr(39), chr(39) * 2)}'\n"
    )
    job = JobConfig()
    job.cluster.runtime_env = {"env_vars": {"A": [value]}}
    quoted = "'" + value.replace("'", "\\'") + "'"
    for act in (
        lambda: compose_job([f"call.negative_prompt={value}"]),
        lambda: compose_job([f"call.negative_prompt={quoted}"]),
        lambda: compose_job([f"seed={value}"]),
        lambda: compose_job([f"scheduler.settings.a=[{quoted}]"]),
        lambda: compose_job([f"model={value}"]),
        lambda: compose_jobs(["conf=env"], folder=folder / "mine"),
        lambda: ldm_batch.run_job(job, out=io.StringIO()),
    ):
        with pytest.raises(JobError) as raised:
            act()
        assert "refused, only fields of the job" in str(raised.value) or "cannot read" in str(
            raised.value
        )
        assert "secret" not in str(raised.value)
    check_that_nothing_was_done(folder)


def test_the_environment_stays_out_of_the_plan(folder: Path) -> None:
    """In a process of its own, where OmegaConf's functions are gone, too."""
    (folder / "mine/conf/env.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: random_pixels\n"
        "call: {negative_prompt: '${oc.env:HOME}'}\n"
    )
    for words in (
        (*JOB, "call.negative_prompt=${oc.env:HOME}"),
        ("--config-dir", "mine", *JOB, "conf=env"),
        ("--config-dir", "mine", "--cfg", "job", "--resolve", "conf=env"),
    ):
        ended = run(folder, *words)
        assert (ended.code, os.environ["HOME"] in ended.out + ended.err) == (2, False), ended
        assert "call.negative_prompt: ${oc.env:HOME}: refused, only fields" in ended.err
    check_that_nothing_was_done(folder)


def test_fields_of_the_job_are_interpolated(folder: Path) -> None:
    (folder / "mine/conf/own.yaml").write_text(
        "# @package _global_\nname: cats\nsink: {uri: 'out/${name}_${seed}'}\n"
        "source: {columns: {prompt: '${name}', seed: '${.prompt}'}}\n"
        "call: {negative_prompt: '\\${seed} \\\\${seed}'}\n"
    )
    [composed] = compose_jobs(["conf=own", "seed=3"], folder=folder / "mine")
    assert composed.job.sink.uri == "out/cats_3"
    assert composed.job.source.columns == {"prompt": "cats", "seed": "cats"}
    assert composed.job.call.negative_prompt == "${seed} \\3"
    assert compose_job(["rows_per_shard=${seed}", "seed=5"]).rows_per_shard == 5


def test_options_that_read_other_files_are_refused(folder: Path) -> None:
    (folder / "mine/run.pickle").write_bytes(b"cos\nmkdir\n(S'made'\ntR.")
    for words, message in [
        (("--experimental-rerun", "mine/run.pickle"), "reads a pickle, which may hold code"),
        (
            ("--config-name", "other"),
            "--config-name: refused; a folder of your own is",
        ),
        (("--config-dir", "nowhere", "conf=demo"), "--config-dir: nowhere is no folder"),
    ]:
        ended = run(folder, *words)
        assert (ended.code, message in ended.err) == (2, True), ended
    check_that_nothing_was_done(folder)


def test_resolvers_of_whoever_calls_from_python_stay() -> None:
    compose_job([])
    assert OmegaConf.has_resolver("oc.env")


def test_questions_are_answered_as_ever(folder: Path) -> None:
    shown = run(folder, "--cfg", "job", "conf=txt2img_1m", "sink.uri=a, b", "source.columns.seed=s")
    assert shown.code == 0
    assert "uri: a, b\n" in shown.out
    assert "    seed: s\n" in shown.out
    packaged = run(folder, "--cfg", "job", "--package", "sink", "sink.uri=x_${seed}", "--resolve")
    assert (packaged.code, "uri: x_0" in packaged.out) == (0, True), packaged
    check_that_nothing_was_done(folder)


def test_a_question_is_no_sweep(folder: Path) -> None:
    ended = run(folder, "-m", "--cfg", "job", *JOB[1:], "conf=machinery,demo")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: --cfg: shows one job; leave -m out")
    shown = run(folder, "--config-dir=./mine/../mine", "-c", "job", "-p", "sink", "sink.uri=a, b")
    assert (shown.code, "uri: a, b" in shown.out) == (0, True), shown


def test_all_jobs_are_checked_before_the_first_begins(folder: Path) -> None:
    ended = run(folder, "-m", *JOB, "batch_size=4,0")
    assert (ended.code, ended.out) == (2, ""), ended
    assert ended.err == "error: batch_size: 0 is not between 1 and 4096\n"
    check_that_nothing_was_done(folder)

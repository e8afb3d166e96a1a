"""How commands end: one message and the right code, a report of what nobody foresaw, no secrets."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import MACHINERY, run, write_prompts
from hypothesis import given
from hypothesis import strategies as st

from ldm_batch.cluster.attempts import Trouble, catch_trouble, job_error
from ldm_batch.commands import ending, sheet, status, sweep
from ldm_batch.commands.ending import ends
from ldm_batch.config import CallConfig, JobConfig
from ldm_batch.errors import JobError, ShardError, TryLaterError, UnforeseenError
from ldm_batch.errors.redact import holds_secret, without_secret_value, without_secrets
from ldm_batch.generate.choose import validate_job

SECRET = "hf-SECRET-2f9a"
WITH_SECRETS = [
    (f"https://{SECRET}@host/x", "https://***@host/x"),
    (f"https://me:{SECRET}@host:8080/x", "https://***@host:8080/x"),
    (f"s3://me:pass/{SECRET}@host/x", "s3://***@host/x"),
    (f"s3://me:a@{SECRET}@host/x", "s3://***@host/x"),
    (f"git+https://{SECRET}@host/me/x.git", "git+https://***@host/me/x.git"),
    (f"ssh://git:{SECRET}@host/x", "ssh://***@host/x"),
    (f"https://host/x?X-Goog-Signature={SECRET}&a=1", "https://host/x?***"),
    (f"https://host/x?sv=1&sig={SECRET}", "https://host/x?***"),
    (f"https://host/x?access_token={SECRET}", "https://host/x?***"),
    (f"https://host/x?AWSAccessKeyId={SECRET}", "https://host/x?***"),
    (f"s3://bucket/x?X-Amz-Security-Token={SECRET}", "s3://bucket/x?***"),
    (f"http://host/x?apiKey={SECRET}", "http://host/x?***"),
    (f"https://host/x#access_token={SECRET}", "https://host/x#***"),
    (f"https://host/x?jwt={SECRET}", "https://host/x?***"),
    (f"https://me:a {SECRET}@host/x", "https://***@host/x"),
    (f"https://me:a'{SECRET}@host/x", "https://***@host/x"),
]
WITHOUT = [
    "s3://bucket/a/b.parquet",
    "https://host:8080/a@b/c",
    "hf://datasets/me/x@main/a.parquet",
    "abfss://container@account.dfs.core.windows.net/x",
    "git+ssh://git@host/me/x.git",
    "s3://bucket/part-?.parquet",
    "s3://bucket/x?versionId=3",
    "me@host: a mail, 3 > 2?",
    "https://[::1]:8080/x",
    "https://host:8080 did not answer; write to me@host",
    "https://host: no answer of me@host",
    "s3://bucket/a#b.parquet",
]


@pytest.mark.parametrize(("text", "cleaned"), WITH_SECRETS)
def test_secrets_in_urls_are_taken_out_wherever_they_stand(text: str, cleaned: str) -> None:
    assert holds_secret(text)
    told = f"x: cannot open '{text}' twice, {text}"
    assert without_secrets(told) == f"x: cannot open '{cleaned}' twice, {cleaned}"
    assert without_secrets(cleaned) == cleaned
    assert SECRET not in str(JobError(text))
    assert SECRET not in str(ShardError(text))


@pytest.mark.parametrize("text", WITHOUT)
def test_what_is_no_secret_stays(text: str) -> None:
    assert not holds_secret(text)
    assert without_secrets(text) == text


@given(st.text(st.characters(blacklist_characters="'\"<> ", blacklist_categories=("Z", "C"))))
def test_no_password_survives(password: str) -> None:
    told = without_secrets(f"no answer of https://user:x{password}-{SECRET}@host/file: 403")
    assert SECRET not in told


@pytest.mark.parametrize(("text", "cleaned"), WITH_SECRETS)
def test_no_field_takes_a_url_that_holds_a_secret(text: str, cleaned: str) -> None:
    job = JobConfig()
    job.source.uri, job.sink.uri = text, "out"
    job.cluster.runtime_env = {"pip": [f"x @ {text}"]}
    with pytest.raises(JobError) as refused:
        validate_job(job)
    assert "source.uri: refused, a URL with credentials in it" in str(refused.value)
    assert "cluster.runtime_env.pip[0]: refused" in str(refused.value)
    assert SECRET not in str(refused.value)


def test_what_would_steer_a_terminal_is_written_out() -> None:
    assert str(JobError("a\x1b[2J\r\0b\tc\nd")) == "a\\x1b[2J\\x0d\\x00b\tc\nd"


def test_a_secret_setting_is_not_reported() -> None:
    assert without_secret_value("cluster.runtime_env.env_vars.HF_TOKEN=abc").endswith(
        "HF_TOKEN=***"
    )
    assert without_secret_value("call.num_inference_steps=3") == "call.num_inference_steps=3"
    assert CallConfig().num_inference_steps == 50


def fails_by(error: BaseException) -> Callable[[], None]:
    @ends
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (JobError("sink.uri: no room"), 2, "error: sink.uri: no room\n"),
        (TryLaterError("cluster: full"), 75, "error: cluster: full\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
    ],
)
def test_what_is_foreseen_ends_in_its_message(
    error: BaseException, code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        fails_by(error)()
    assert (ended.value.code, capsys.readouterr().err) == (code, told)


@pytest.mark.parametrize(
    "error",
    [
        ValueError(f"https://{SECRET}@host/x:\nno such thing"),
        UnforeseenError("KeyError: 'a'", f"Traceback of a worker\nhttps://{SECRET}@host/x"),
    ],
)
def test_what_nobody_foresaw_is_one_line_and_a_report(
    error: Exception,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ending.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["ldm_batch", f"a_token={SECRET}", f"x=https://{SECRET}@h/"])
    with pytest.raises(SystemExit) as ended:
        fails_by(error)()
    (report,) = tmp_path.iterdir()
    told = capsys.readouterr().err
    assert ended.value.code == 70
    assert told.count("\n") == 1
    assert str(report) in told
    text = report.read_text()
    assert SECRET not in told + text
    assert "Traceback" in text
    assert "torch" in text


def test_a_report_that_cannot_be_written_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ending.tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(SystemExit) as ended:
        fails_by(KeyError("x"))()
    assert ended.value.code == 70
    assert "no report could be written" in (told := capsys.readouterr().err)
    assert "Traceback" in told


def test_a_worker_s_trouble_ends_a_job_as_it_would_here() -> None:
    def load() -> None:
        raise RuntimeError(f"https://{SECRET}@host/x")

    trouble = catch_trouble(load)
    assert isinstance(trouble, Trouble)
    assert SECRET not in trouble.message + trouble.traceback
    error = job_error(trouble, " (on a)")
    assert isinstance(error, UnforeseenError)
    assert str(error) == "RuntimeError: https://***@host/x (on a)"
    assert "in load" in error.report
    assert type(job_error(Trouble("no CUDA here", is_job_error=True))) is JobError


def test_output_that_nobody_reads_ends_quietly(tmp_path: Path) -> None:
    write_prompts(tmp_path, 1, 400)
    assert run(tmp_path, *MACHINERY, "cluster=in_process", "rows_per_shard=1").code == 0
    folder = tmp_path / "out" / "data"
    for name in sorted(os.listdir(folder))[:-1]:
        (folder / name).unlink()
    command = f"{sys.executable} -m ldm_batch status out --json | head -1; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == ("{\n", "")
    assert ended.returncode in (1, 141)  # it may have written all before `head` left


def test_a_terminal_that_lacks_letters(tmp_path: Path) -> None:
    (tmp_path / "données").mkdir()
    ended = subprocess.run(
        [sys.executable, "-m", "ldm_batch", "import", "x.ckpt", "données"],
        cwd=tmp_path,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith(b"error: ")


def test_the_path_that_a_job_prints_is_the_dataset_to_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_prompts(tmp_path, 1, 10)
    first = run(tmp_path, *MACHINERY, "cluster=in_process")
    printed = first.out.splitlines()[-1].removeprefix("dataset: ")
    assert printed == f"{tmp_path}/out/data"
    with pytest.raises(SystemExit) as ended:
        status.main([printed, "--json"])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["num_rows"] == 10
    sweep.main([printed])
    sheet.main([printed, "--output", "x.png"])
    again = run(tmp_path, *MACHINERY, "cluster=in_process", f"sink.uri={printed}")
    assert again.code == 0
    assert sorted(os.listdir(tmp_path / "out" / "data")) == ["00000.parquet"]


@pytest.mark.parametrize(
    ("main", "arguments", "told"),
    [
        (sweep.main, ["nothing_here"], "nothing_here: no dataset here (no .ldm_batch/plan.json)"),
        (sheet.main, ["out", "--output", "x.xyz"], "--output: x.xyz ends with none of .png,"),
    ],
)
def test_mistakes_of_arguments(
    main: Callable[[list[str]], None],
    arguments: list[str],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []

"""A wheel, built and installed as anybody does: the command, and all that it reads and writes."""

import os
import subprocess
import sys
from pathlib import Path

import ldm_batch

ROOT = Path(__file__).parents[1]


def test_the_wheel_brings_the_command_and_all_that_it_shows(tmp_path: Path) -> None:
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", str(ROOT), "-w", "dist"]
    ended = pip(tmp_path, *build)
    if "hatchling" in ended.stderr:
        ended = pip(tmp_path, *(word for word in build if word != "--no-build-isolation"))
    assert ended.returncode == 0, ended.stderr
    [wheel] = (tmp_path / "dist").glob("*.whl")
    ended = pip(tmp_path, "install", "--quiet", "--no-deps", "--target", "site", str(wheel))
    assert ended.returncode == 0, ended.stderr
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1"}
    script = tmp_path / "site/bin/ldm-batch"

    def told(*arguments: str) -> str:
        words = [script, *arguments]
        return subprocess.run(
            words, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
        ).stdout

    assert told("--version").startswith(f"ldm_batch {ldm_batch.__version__}, ")
    assert "conf=txt2img_1m " in told("completion", "answer", "zsh", "ldm-batch run conf=txt")
    assert "txt2img_1m" in told("run", "--help", "conf")
    told("init", "mine")
    assert (tmp_path / "mine/jobs/run.sh").is_file()
    shown = told("run", "--config-dir", "mine/conf", "conf=my_job", "--cfg", "job")
    assert "path: demo:text_to_image\n" in shown
    assert "plan: 1 files, 4 rows" in told(
        "run", "conf=machinery", "source.uri=mine/prompts.parquet", "sink.uri=x", "dry_run=true"
    )


def pip(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run pip in a folder."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)

"""`ldm-batch init FOLDER`: a folder for jobs of your own: one job explained, scripts, prompts.

Must not run anything; what it writes appears whole or not at all.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ldm_batch.commands.ending import ends
from ldm_batch.commands.program import program
from ldm_batch.config.groups import shipped
from ldm_batch.config.places import with_home
from ldm_batch.errors import JobError

OF_CHECKOUT = ("Dockerfile*", "README.md", "slurm")
"""Scripts and pages that need the checkout around them."""
ABOUT = (
    "Make a folder for jobs of your own: one job with every line explained, a few prompts to begin "
    "with, and the scripts for large jobs, clusters and every night."
)
PROMPTS = (
    "a red circle on a blue background",
    "a large yellow star on a black background",
    "a small green square on a white background",
    "a purple triangle above an orange cross on a white background",
)
"""What the model that ships with ldm_batch can draw."""
MY_JOB = """\
# @package _global_
# A job of your own: what differs from the defaults, and nothing else. From the folder of README.md:
#   {command} run --config-dir conf conf=my_job
# `@package _global_` must be the first line: these are fields of the job itself, not of a section.
# What stands on the command line wins over this file; `run --help NAME` explains a group or field.

defaults:
  # Which model draws, an option of the group `model` (`run --help model` lists them). `demo` ships
  # with ldm_batch: coloured shapes of 64 pixels, and nothing else. A folder of yours in diffusers'
  # layout: `override /model: local`, and `path` in a section `model` below.
  - override /model: demo
  # The denoising scheduler (`run --help scheduler`); `from_model` takes what the model came with.
  - override /scheduler: dpmpp_2m

# Shown in messages and recorded with the dataset.
name: my_job

source:
  # The rows: Parquet, a file, a glob, a folder or a list of these; a path, or s3://bucket/prompts/.
  # Relative paths are relative to where the command is started.
  uri: prompts.parquet
  # Which column holds what: FIELD: COLUMN. Here the texts are in a column `prompt`.
  columns: {{prompt: prompt}}
  # More columns of the input, copied unchanged to the dataset.
  carry: []

sink:
  # The dataset: a folder, or s3://bucket/prefix. One dataset for each model and setting.
  uri: out/my_job

call:
  # Denoising steps; more take longer.
  num_inference_steps: 20
  # How closely images follow their prompts; 1 is no guidance.
  guidance_scale: 2.0

# Every image's own seed is derived from this one and its row.
seed: 0
# Images of each prompt.
num_images_per_prompt: 1
# Images that one call of the model makes; `auto` measures what suits model and machine.
batch_size: 4
# Rows of one output file at most; `auto` chooses by the number of rows and workers.
rows_per_shard: auto
"""
README = """\
# Jobs of your own
`conf/conf/my_job.yaml` is a job, each line explained; copy it for the next one: `conf=NAME` is the
file `conf/conf/NAME.yaml`. `prompts.parquet` holds a few prompts to begin with. In this folder:

    {command} run --config-dir conf conf=my_job dry_run=true
    {command} run --config-dir conf conf=my_job

The first shows the plan, the second makes the dataset in `out/my_job`, or what is missing of it.
`jobs/` has the scripts for large jobs, clusters and every night; each begins with what it takes.
"""


def make_folder(folder: Path, command: str) -> None:
    """Write a folder for jobs of one's own.

    Args:
        folder: one that is not there, or empty.
        command: how this program is called, for the commands that the files show.

    Raises:
        JobError: something is there already, or it cannot be written; nothing was.
    """
    target, wanted = folder.absolute(), "name one that is not there, or an empty one"
    try:
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            raise JobError(f"{folder}: is no folder; {wanted}")
        if target.is_dir() and any(target.iterdir()):
            raise JobError(f"{folder}: is a folder with something in it; {wanted}")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".ldm_batch-", dir=target.parent) as above:
            whole = Path(above) / target.name
            _fill(whole, command)
            os.rename(whole, target)  # of an empty folder there it takes the place
    except OSError as error:
        raise JobError(
            f"{folder}: cannot be written: {error.strerror or error}; {wanted}"
        ) from error


def _fill(folder: Path, command: str) -> None:
    job = folder / "conf/conf/my_job.yaml"
    job.parent.mkdir(parents=True)
    job.write_text(MY_JOB.format(command=command), encoding="utf-8")
    (folder / "README.md").write_text(README.format(command=command), encoding="utf-8")
    with (folder / "prompts.parquet").open("wb") as file:  # a path of any letters
        pq.write_table(pa.table({"prompt": list(PROMPTS)}), file)
    ignored = shutil.ignore_patterns(*OF_CHECKOUT)
    shutil.copytree(shipped("jobs"), folder / "jobs", ignore=ignored)
    for script in folder.glob("jobs/*.sh"):
        script.chmod(0o755)  # an installer may have lost that
    shutil.copyfile(shipped("constraints.txt"), folder / "constraints.txt")


@ends
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, write the folder and say what comes next."""
    parser = argparse.ArgumentParser(prog=program("init"), description=ABOUT)
    parser.add_argument("folder", metavar="FOLDER", help="not there yet, or empty")
    named: str = parser.parse_args(arguments).folder
    if not named:
        raise JobError("FOLDER: empty; name one that is not there, or an empty one")
    folder = Path(with_home(named)).absolute()
    make_folder(folder, program())
    print(f"written: {folder}; conf/conf/my_job.yaml in it explains every line. Next:")
    print(f"  cd {shlex.quote(str(folder))}")
    print(f"  {program('run')} --config-dir conf conf=my_job dry_run=true")
    print(f"  {program('run')} --config-dir conf conf=my_job")

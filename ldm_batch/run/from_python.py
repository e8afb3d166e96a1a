"""`run_job`: a job from Python, without the exit."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm_batch.commands.words import check_words
from ldm_batch.config import JobConfig
from ldm_batch.config.fields import plain_job
from ldm_batch.drive import JobResult, drive_job
from ldm_batch.errors import JobError
from ldm_batch.plan.command_line import settings_of
from ldm_batch.run.compose import compose_job
from ldm_batch.run.explain import explain
from ldm_batch.run.no_code import refuse_code


def run_job(job: JobConfig | Sequence[str], *, out: TextIO | None = None) -> JobResult:
    """Run a job from Python: what is missing of its dataset, or the shards that it names.

    It is what `python -m ldm_batch run` does, in this process and from any thread of it: with
    `cluster=in_process` the images are made here, else on Ray, a local one where no other is named.
    Handlers of signals, the working directory and torch's number of threads stay as they are.

    Args:
        job: settings as the command takes them, such as `["conf=txt2img_1m", "source.uri=prompts",
            "sink.uri=out/cats"]`; or the whole document, of which what is not set is `JobConfig`'s
            own default.
        out: where progress and the report go; None: to standard output.

    Returns:
        What this run made, and what failed.

    Raises:
        JobError: the job cannot run or must stop, in a sentence; what is committed stays.
    """
    out = sys.stdout if out is None else out
    if not callable(getattr(out, "write", None)):
        raise JobError(f"out: {type(out).__name__}; must be an open text file, or None")
    if not isinstance(job, JobConfig):
        settings = _as_settings(job)
        return drive_job(compose_job(settings), overrides=settings, out=out)
    document = plain_job(job)
    try:
        structured = OmegaConf.structured(document)
        refuse_code(structured)
        typed: JobConfig = OmegaConf.to_object(structured)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise JobError(explain(error)) from error
    return drive_job(typed, overrides=settings_of(typed, compose_job([])), out=out)


def _as_settings(job: object) -> list[str]:
    """What a caller gives in place of a JobConfig as the words of a command line."""
    if not isinstance(job, list | tuple):
        raise JobError(
            f"job: {type(job).__name__}; must be a JobConfig, or a list of settings as the command "
            'takes them: ["conf=txt2img_1m", "source.uri=prompts", "sink.uri=out/cats"]'
        )
    for word in job:
        if not isinstance(word, str) or word.startswith("-") or "=" not in word:
            raise JobError(f"job: {word!r} is no setting; must be FIELD=VALUE or GROUP=OPTION")
    return check_words(job)

"""The command: compose a job from `conf/` and the command line, run it, end with an exit code.

`run_job` is the same from Python, without the exit.

The only user of Hydra. Defines nothing that travels to workers: under `python -m` this module is
`__main__`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, TextIO

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm_batch.config import JobConfig
from ldm_batch.config.bounds import suggest
from ldm_batch.config.fields import no_such_field, plain_job
from ldm_batch.drive import JobResult, drive_job
from ldm_batch.errors import JobError, StorageError, TryLaterError
from ldm_batch.plan.recorded import settings_of

OPEN_FIELDS = (
    "source.columns",
    "model.scheduler_config",
    "upscale.model.scheduler_config",
    "scheduler.settings",
    "upscale.scheduler.settings",
    "cluster.resources",
    "cluster.labels",
    "cluster.runtime_env",
)
"""Fields whose keys are the user's own: an override may add one without Hydra's `+`."""
INTERRUPT_AGAIN_S = 0.05
"""Late enough for what ignored the interruption, such as a fork, to be over; too soon to notice."""
_hydra_turn = threading.Lock()
EXIT_JOB_ERROR, EXIT_TRY_LATER, EXIT_INTERRUPTED, EXIT_TERMINATED = 2, 75, 130, 143


def config_folder() -> Path:
    """The `conf/` tree: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


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
        typed: JobConfig = OmegaConf.to_object(OmegaConf.structured(document))  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise JobError(explain(error)) from error
    return drive_job(typed, overrides=settings_of(typed, compose_job([])), out=out)


def compose_job(settings: Sequence[str]) -> JobConfig:
    """The job that settings make, as the command composes it; Hydra is left as it was.

    Raises:
        JobError: a setting is wrong, in a sentence.
    """
    try:
        with _own_hydra():
            given = [f"++{a}" if _is_open(a) else a for a in settings]
            config = hydra.compose("config", given)
        job: JobConfig = OmegaConf.to_object(config)  # type: ignore[assignment]
    except Exception as error:  # Hydra raises many kinds
        raise JobError(explain(error, settings)) from error
    _refuse_added(config, job)
    return job


@contextlib.contextmanager
def _own_hydra() -> Iterator[None]:
    """Hydra on our configuration, for one thread at a time: what it keeps is the process's."""
    with _hydra_turn:
        before, version = GlobalHydra.instance().hydra, VersionBase.instance().getbase()
        GlobalHydra.instance().clear()
        try:
            ConfigStore.instance().store(name="job_schema", node=JobConfig)
            with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
                yield
        finally:
            GlobalHydra.instance().hydra = before
            VersionBase.instance().version_base = version


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
    return list(job)


def main() -> None:
    """Run the job that the command line names; never returns, but exits.

    Exit codes: 0 done, 1 some shards failed, 2 the job could not run, 75 the cluster cannot
    be had for now, 130 interrupted, 143 terminated.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"
    ConfigStore.instance().store(name="job_schema", node=JobConfig)
    is_terminated = threading.Event()

    def on_terminate(*_: object) -> None:
        is_terminated.set()
        raise KeyboardInterrupt  # the only exception that Ray lets a signal raise while it waits

    signal.signal(signal.SIGTERM, on_terminate)
    _interrupt_again_when_ignored()
    sys.argv[1:] = [f"++{a}" if _is_open(a) else a for a in sys.argv[1:]]
    started: list[DictConfig] = []
    codes: list[int] = []

    @hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")
    def compose(config: DictConfig) -> None:
        started.append(config)
        codes.append(_run(config))

    try:
        with _sweeps_leave_nothing():
            compose()
    except KeyboardInterrupt:
        for again in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(again, signal.SIG_IGN)
        how = "terminated" if is_terminated.is_set() else "interrupted"
        print(f"\n{how}; what is committed stays, the same command goes on", file=sys.stderr)
        _leave(EXIT_TERMINATED if is_terminated.is_set() else EXIT_INTERRUPTED)
    except BrokenPipeError:
        _fail_silently()
    except Exception as error:
        if started:
            raise
        sys.exit(_complain(explain(error)))
    sys.exit(max(codes, default=0))


def _interrupt_again_when_ignored() -> None:
    """Where Python ignores exceptions, as after a fork, an interruption comes again in a moment."""
    report = sys.unraisablehook

    def on_ignored(ignored: sys.UnraisableHookArgs) -> None:
        if issubclass(ignored.exc_type, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, INTERRUPT_AGAIN_S)
        else:
            report(ignored)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, interrupt)
    sys.unraisablehook = on_ignored


def _is_open(argument: str) -> bool:
    return any(argument.startswith((f"{name}.", f"{name}=")) for name in OPEN_FIELDS)


def _run(config: DictConfig) -> int:
    """Run one composed job; a mistake of the user's ends in one message and exit code 2."""
    try:
        job: JobConfig = OmegaConf.to_object(config)  # type: ignore[assignment]
        _refuse_added(config, job)
        overrides = list(HydraConfig.get().overrides.task)
        return drive_job(job, overrides=overrides, out=sys.stdout).exit_code
    except OmegaConfBaseException as error:
        return _complain(explain(error))
    except TryLaterError as error:
        _complain(str(error))
        return EXIT_TRY_LATER
    except (JobError, StorageError) as error:
        return _complain(str(error))


def _refuse_added(config: Any, node: Any, prefix: str = "") -> None:
    """Refuse fields that `+field=value` added where the schema has none."""
    known = {field.name for field in fields(node)}
    for name in config:
        if name not in known:
            raise JobError(no_such_field(f"{prefix}{name}"))
        if is_dataclass(getattr(node, name)):
            _refuse_added(config[name], getattr(node, name), f"{prefix}{name}.")


def _complain(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return EXIT_JOB_ERROR


def _leave(code: int) -> NoReturn:
    """End without Python taking itself apart: a Ray that was interrupted may crash in it, and the
    exit code with it. What is to be done at exit is done, such as to end a Ray that was starting.
    """
    try:
        # Private: Python runs these only while it takes itself apart, and `os._exit` not at all.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # also where whoever read the output has gone
        os._exit(code)


def _fail_silently() -> None:
    """End without a word: whoever read the output has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(EXIT_JOB_ERROR)


@contextlib.contextmanager
def _sweeps_leave_nothing() -> Iterator[None]:
    """Give Hydra's own records of a sweep (`-m`) a folder that goes away."""
    with tempfile.TemporaryDirectory(prefix="ldm_batch-sweep-") as folder:
        if "-m" in sys.argv or "--multirun" in sys.argv:
            overrides = [i for i, a in enumerate(sys.argv) if "=" in a and not a.startswith("-")]
            place = overrides[0] if overrides else len(sys.argv)
            sys.argv[place:place] = [f"hydra.sweep.dir={folder}", "hydra.sweep.subdir=."]
        yield


def explain(error: Exception, settings: Sequence[str] | None = None) -> str:
    """One message for a mistake in the configuration: the field, what is wrong, what was meant.

    Args:
        settings: those that were given; None: the command line's.
    """
    while isinstance(cause := error.__cause__, (HydraException, OmegaConfBaseException)):
        if isinstance(error, OmegaConfBaseException) and error.full_key:
            break  # under a debugger OmegaConf keeps causes, which no longer name the field
        error = cause
    if isinstance(error, OmegaConfBaseException):
        return _explain_value(error)
    text = str(error)
    unknown = re.search(r"Could not override '([^']+)'|Key '([^']+)' (?:is )?not in", text)
    if unknown:
        return no_such_field(unknown[1] or unknown[2])
    if "Config group override must be" in text:  # and Hydra does not say which
        empty = [a.removesuffix("=null") for a in (settings or sys.argv) if a.endswith("=null")]
        nameless = [name for name in empty if (config_folder() / name).is_dir()]
        text = f"Could not find '{nameless[0]}/null'" if nameless else text
    group = re.search(r"Could not find '([\w./-]+)/([\w.-]*)'", text)
    if group:
        known = sorted(path.stem for path in (config_folder() / group[1]).glob("*.yaml"))
        return f"{group[1]}: no option {group[2]!r}{suggest(group[2], known)}"
    if isinstance(error, OverrideParseException):
        return f"cannot read the override {error.override!r}: {text.splitlines()[0]}"
    return text.splitlines()[0]


def _explain_value(error: OmegaConfBaseException) -> str:
    key = str(error.full_key or error.key or "")
    text = str(error.msg or error).splitlines()[0]
    if "not in" in text and key:
        return no_such_field(key)
    return f"{key}: {text}" if key else text


if __name__ == "__main__":
    main()

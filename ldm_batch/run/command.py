"""The command: the jobs that a command line names are run, and it ends with an exit code."""

from __future__ import annotations

import argparse
import atexit
import os
import signal
import sys
import threading
from pathlib import Path
from typing import NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm_batch.commands.ending import EXIT_INTERRUPTED, EXIT_TERMINATED, complain, ends
from ldm_batch.commands.words import before_run
from ldm_batch.config import JobConfig
from ldm_batch.config.places import with_home
from ldm_batch.drive import drive_job
from ldm_batch.errors import JobError, LdmBatchError
from ldm_batch.generate.choose import validate_job
from ldm_batch.run.compose import VERSION_BASE, Composed, compose_jobs, read_settings
from ldm_batch.run.explain import explain
from ldm_batch.run.folder import config_folder
from ldm_batch.run.job_files import read_here

INTERRUPT_AGAIN_S = 0.05
"""Late enough for what ignored the interruption, such as a fork, to be over; too soon to notice."""
RESOLVERS = ("oc.env", "oc.decode", "oc.create", "oc.deprecated", "oc.dict.keys", "oc.dict.values")
"""OmegaConf's own functions for `${...}`; one reads the environment."""


@ends
def main() -> None:
    """Run the jobs that the command line names; never returns, but exits.

    Exit codes: 0 done, 1 some shards failed, 2 the job could not run, 70 for a reason that nobody
    foresaw, 75 the cluster cannot be had for now, 130 interrupted, 143 terminated.
    """
    before_run()
    is_terminated = threading.Event()

    def on_terminate(*_: object) -> None:
        is_terminated.set()
        raise KeyboardInterrupt  # the only exception that Ray lets a signal raise while it waits

    signal.signal(signal.SIGTERM, on_terminate)
    _interrupt_again_when_ignored()
    for name in RESOLVERS:
        OmegaConf.clear_resolver(name)
    try:
        # Private: the public way to Hydra's options, `hydra.main`, runs the job as well.
        code = _answer(get_args_parser().parse_args())
    except KeyboardInterrupt:
        for again in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(again, signal.SIG_IGN)
        how = "terminated" if is_terminated.is_set() else "interrupted"
        print(f"\n{how}; what is committed stays, the same command goes on", file=sys.stderr)
        _leave(EXIT_TERMINATED if is_terminated.is_set() else EXIT_INTERRUPTED)
    sys.exit(code)


def _answer(options: argparse.Namespace) -> int:
    """Do what the command line asks for; the exit code."""
    _refuse_options(options)
    folder = None if options.config_dir is None else Path(with_home(options.config_dir))
    jobs = compose_jobs(options.overrides, folder=folder, is_sweep=bool(options.multirun))
    if options.cfg or options.info:
        return _let_hydra_answer([*_question(options, folder), *read_settings(options.overrides)])
    for composed in jobs:
        validate_job(composed.job)
    return max(map(_run, jobs), default=0)


def _question(options: argparse.Namespace, folder: Path | None) -> list[str]:
    """The options of a question in Hydra's words."""
    asked = [f"--info={options.info}"] if options.info else [f"--cfg={options.cfg}"]
    if options.package is not None:
        asked.append(f"--package={options.package}")
    if folder is not None:
        asked.append(f"--config-dir={folder.absolute()}")
    return [*asked, "--resolve"] if options.resolve else asked


def _refuse_options(options: argparse.Namespace) -> None:
    if options.experimental_rerun is not None:
        raise JobError("--experimental-rerun: refused, it reads a pickle, which may hold code")
    for name in ("config_path", "config_name"):
        if getattr(options, name) is not None:
            raise JobError(
                f"--{name.replace('_', '-')}: refused; a folder of your own is --config-dir, a "
                "job in it conf=NAME"
            )


def _let_hydra_answer(arguments: list[str]) -> int:
    """Let Hydra print what is asked for: a configuration, or where it comes from.

    Args:
        arguments: options, and settings that were composed and found to hold no code.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"
    ConfigStore.instance().store(name="job_schema", node=JobConfig)

    @hydra.main(version_base=VERSION_BASE, config_path=str(config_folder()), config_name="config")
    def answer(_: DictConfig) -> None:
        raise AssertionError("a question runs no job")

    sys.argv[1:] = arguments
    try:
        with read_here():
            answer()
    except (HydraException, OmegaConfBaseException) as error:
        raise JobError(explain(error)) from error
    return 0


def _run(composed: Composed) -> int:
    """Run one composed job; a mistake in one of several holds up no other."""
    try:
        return drive_job(composed.job, overrides=composed.words, out=sys.stdout).exit_code
    except LdmBatchError as error:
        return complain(error)


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

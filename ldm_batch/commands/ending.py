"""How every command ends: in an exit code and at most one message, whatever happened in it.

Must not know any command.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NoReturn, ParamSpec, TypeVar

from ldm_batch.errors import JobError, LdmBatchError, TryLaterError, UnforeseenError
from ldm_batch.errors.redact import tellable, without_secret_value
from ldm_batch.versions import versions

EXIT_JOB_ERROR, EXIT_UNFORESEEN, EXIT_TRY_LATER = 2, 70, 75
EXIT_INTERRUPTED, EXIT_UNREAD, EXIT_TERMINATED = 130, 141, 143
"""75 and 70 are those of sysexits.h; from 128 on it is 128 and the number of the signal that a
program without this module would have died of: 141 where whoever read the output has gone."""
MAX_MESSAGE_CHARS = 300
Given = ParamSpec("Given")
Out = TypeVar("Out")


def ends(main: Callable[Given, Out]) -> Callable[Given, Out]:
    """Let a command end as all do: a mistake of the user's in one message and exit code 2, what
    nobody foresaw in exit code 70, one line and a file with the rest."""

    @functools.wraps(main)
    def command(*given: Given.args, **named: Given.kwargs) -> Out:
        _print_in_any_encoding()
        try:
            try:
                result = main(*given, **named)
            finally:
                _flush()
        except BrokenPipeError:
            leave_unread()
        except LdmBatchError as error:
            sys.exit(complain(error))
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            sys.exit(EXIT_INTERRUPTED)
        except Exception as error:  # whatever a library raises
            sys.exit(complain(error))
        return result

    return command


def complain(error: Exception) -> int:
    """Print what a command failed of, and return its exit code."""
    if isinstance(error, LdmBatchError) and not isinstance(error, UnforeseenError):
        print(f"error: {error}", file=sys.stderr)
        return EXIT_TRY_LATER if isinstance(error, TryLaterError) else EXIT_JOB_ERROR
    told, report = _told(error), _report(error)
    try:
        place = f"the whole of it is in {_write_report(report)}; what is committed stays"
    except OSError as why:
        place = f"no report could be written ({why.strerror or why}), it follows:\n{report}"
    print(f"error: not foreseen by ldm_batch: {told}; {place}", file=sys.stderr)
    return EXIT_UNFORESEEN


def leave_unread() -> NoReturn:
    """End without a word: whoever read the output has gone."""
    with contextlib.suppress(OSError, ValueError):  # standard output is a file only as a rule
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(EXIT_UNREAD)


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):  # Python would try again at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise JobError(f"standard output: cannot be written: {error.strerror or error}") from error


def _told(error: Exception) -> str:
    """An error in one line, its kind first."""
    text = str(error) if isinstance(error, UnforeseenError) else f"{type(error).__name__}: {error}"
    return " ".join(tellable(text).split())[:MAX_MESSAGE_CHARS]


def _report(error: Exception) -> str:
    """The command, the versions and where it happened, without secrets."""
    command = shlex.join(map(without_secret_value, sys.argv))
    software = [f"{name} {version}" for name, version in versions().items()]
    where = error.report if isinstance(error, UnforeseenError) else ""
    lines = [command, ", ".join(software), where or "".join(traceback.format_exception(error))]
    return tellable("\n\n".join(lines))


def _write_report(report: str) -> str:
    began = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    with tempfile.NamedTemporaryFile(
        "w",
        encoding="utf-8",
        errors="backslashreplace",
        prefix=f"ldm_batch-{began}-",
        suffix=".txt",
        delete=False,
    ) as file:
        file.write(report)
    return file.name


def _print_in_any_encoding() -> None:
    """What a terminal cannot show is printed as an escape; nothing is lost for want of a letter.
    What is said where nobody listens, as behind `>&-`, is said to nobody."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure") and getattr(stream, "errors", "") == "strict":
            stream.reconfigure(errors="backslashreplace")

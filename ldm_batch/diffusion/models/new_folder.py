"""Where a model's folder may be made, and how it appears there: whole or not at all.

Must not know what is written into it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ldm_batch.errors import JobError


def check_target(target: Path) -> None:
    """Raise JobError unless a folder can be made in this place: nothing there, or nothing in it."""
    try:
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            raise JobError(f"{target}: is there already, and no folder; name another TARGET")
        if target.is_dir() and any(target.iterdir()):
            raise JobError(f"{target}: is not empty; name another TARGET, or remove it first")
        if not target.parent.is_dir():
            raise JobError(f"{target}: there is no folder {target.parent} to make it in")
    except OSError as error:
        raise JobError(f"{target}: {error.strerror or error}") from error


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its place when all went well, and else is gone.

    Raises:
        JobError: `target` is in use, or its disk does not take it.
    """
    check_target(target)
    try:
        made = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise JobError(f"{target}: cannot be made: {error.strerror or error}") from error
    try:
        yield made
        made.chmod(0o777 & ~umask())
        os.replace(made, target)  # an empty folder makes way
    except (OSError, SafetensorError) as error:
        said = getattr(error, "strerror", None) or error
        raise JobError(f"{target}: cannot be written: {said}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def umask() -> int:
    """The permissions that this process takes from new files, as bits; they can only be read by
    setting others for a moment."""
    mask = os.umask(0)
    os.umask(mask)
    return mask

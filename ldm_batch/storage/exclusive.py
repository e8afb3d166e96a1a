"""A file is given its name unless one is there: by a link, or by a rename that replaces nothing.

Not every file system has hard links (exFAT, FAT, gcsfuse, some NFS); some of these have the rename.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.EMLINK)
"""What says that a file system knows no hard links."""
NO_RENAME = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
"""What says that it knows no rename that replaces nothing."""
AT_FDCWD, RENAME_NOREPLACE = -100, 1
RENAME_EXCL = 4
"""Of macOS."""


class NotExclusive(Exception):
    """The file system has neither."""


def give_name(temporary: Path, target: Path) -> bool:
    """Name a file, whole and at once, unless there is one of that name; it may keep its old name.

    Returns:
        False if there is one.

    Raises:
        NotExclusive: the file system cannot.
        OSError: anything else.
    """
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return rename_exclusively(temporary, target)
    return True


def rename_exclusively(source: Path, target: Path) -> bool:
    """Rename a file unless there is one of that name.

    Returns:
        False if there is one.

    Raises:
        NotExclusive: the file system, or the C library, cannot.
        OSError: anything else.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    old, new = os.fsencode(source), os.fsencode(target)
    try:
        if sys.platform == "darwin":
            failed = libc.renamex_np(old, new, RENAME_EXCL)
        else:
            failed = libc.renameat2(AT_FDCWD, old, AT_FDCWD, new, RENAME_NOREPLACE)
    except AttributeError as error:  # a C library without it
        raise NotExclusive(os.strerror(errno.ENOSYS)) from error
    if not failed:
        return True
    number = ctypes.get_errno()
    if number == errno.EEXIST:
        return False
    if number in NO_RENAME:
        raise NotExclusive(os.strerror(number))
    raise OSError(number, os.strerror(number), str(target))

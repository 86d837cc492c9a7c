"""Locks on runs and benches: files that a process locks with ``flock``, which the system undoes when the process ends.

Why not the ``filelock`` package: it cannot ask whether a lock is held without taking it (which others would see, and
which needs the right to write), and it waits for ever on file systems without locks.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps two processes from the same run
    fcntl = None  # type: ignore[assignment]


LOCKS = ".locks"
# Errors of a file system without locks, as some clusters have: nothing keeps two processes from the same run there.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def lock(file: IO[bytes], wait: bool = True) -> bool:
    """Locks a file for as long as it is open; where the system has no locks, it counts as locked.

    Returns:
        False where another process has locked it, and ``wait`` is False.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            if wait:
                raise
            return False
    return True


def lock_file(root: str | Path, name: str) -> IO[bytes]:
    """The file to lock for a run or a bench, opened."""
    folder = Path(root) / LOCKS
    folder.mkdir(parents=True, exist_ok=True)
    return open(folder / name, "ab")


def is_held(root: str | Path, name: str) -> bool:
    """Whether a process has locked a run or a bench."""
    path = Path(root) / LOCKS / name
    if fcntl is None or not path.is_file():
        return False
    with open(path, "rb") as file:  # for reading, as another user's folder may not be written
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, so that two such calls do not see each other
        except OSError as error:
            return error.errno not in _NO_LOCKS
    return False

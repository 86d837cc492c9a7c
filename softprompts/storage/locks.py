"""TODO."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # not on Windows, where two benches at once are not kept apart
    fcntl = None  # type: ignore[assignment]


LOCKS = ".locks"
# What a file system says that has no locks (some of those of clusters): two benches at once are not kept apart there.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def lock(file: IO[bytes], wait: bool = True) -> bool:
    """Takes a lock for as long as the file is open; where the system has none, it counts as taken.

    Returns:
        False where it is not to wait and another process has it.
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
    """What stands for a run while it is locked."""
    folder = Path(root) / LOCKS
    folder.mkdir(parents=True, exist_ok=True)
    return open(folder / name, "ab")


def is_held(root: str | Path, name: str) -> bool:
    """Whether a process is at work on a run."""
    path = Path(root) / LOCKS / name
    if fcntl is None or not path.is_file():
        return False
    with open(path, "rb") as file:  # not to be written: another's folder can be looked at
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: those who look do not see each other
        except OSError as error:
            return error.errno not in _NO_LOCKS
    return False

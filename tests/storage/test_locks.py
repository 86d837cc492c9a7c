"""Locks of runs, with file systems that have none."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path
from typing import Any

import pytest

from softprompts.bench.worker_process import locked
from softprompts.storage import locks
from softprompts.storage.locks import is_held, lock, lock_file


def test_file_systems_without_locks_keep_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(file: Any, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with locked(tmp_path, ["a"]):
        assert is_held(tmp_path, "a")
        with lock_file(tmp_path, "a") as file:
            assert not lock(file, wait=False)
        monkeypatch.setattr(locks.fcntl, "flock", none)
        assert not is_held(tmp_path, "a")
        with locked(tmp_path, ["a"]), lock_file(tmp_path, "b") as file:
            assert lock(file, wait=False)


def test_those_who_look_at_a_lock_do_not_see_each_other(tmp_path: Path) -> None:
    lock_file(tmp_path, "a").close()
    with open(tmp_path / ".locks" / "a", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert not is_held(tmp_path, "a")

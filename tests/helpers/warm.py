"""Commands in processes of their own whose imports are done.

A new interpreter spends five to eight seconds of processor time on importing torch, transformers and what goes with
them. The processes here are forked from a server that has imported these and nothing else has happened in, and so are
the workers that they start. Tests of imports and of the start itself use `subprocess`.
"""

from __future__ import annotations

import contextlib
import inspect
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_PRELOADED = ["accelerate", "datasets", "sklearn.metrics", "softprompts.bench.runner", "softprompts.predictor"]
_kept: list[Any] = []  # streams whose file descriptors are gone and must not be closed again


class Warm:
    """A command of this Python (``-m MODULE``, ``-c CODE`` or a script), much as `subprocess.Popen`.

    Attributes:
        pid: number of the process.
        returncode: how it ended, as `subprocess` gives it; None: not yet.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None, cwd: str | Path | None = None):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        folder = Path(tempfile.mkdtemp(prefix="softprompts-warm-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._outputs = [folder / name for name in ("out", "err")]
        environment = dict(os.environ if env is None else env)
        given = list(command), environment, str(cwd or Path.cwd()), *map(str, self._outputs)
        self.args = list(command)
        self._process = context.Process(target=_first, args=given)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it printed, once it has ended."""
        self.wait(timeout)
        return self.printed()

    def printed(self) -> tuple[str, str]:
        """What it has printed so far, and its errors."""
        out, err = (path.read_text(errors="replace") if path.exists() else "" for path in self._outputs)
        return out, err

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    command: Sequence[str], env: Mapping[str, str] | None = None, cwd: str | Path | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    process = Warm(command, env, cwd)
    try:
        out, err = process.communicate(timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.wait(), out, err)


def _first(command: list[str], environment: dict[str, str], folder: str, out: str, err: str) -> None:
    for number, path in ((1, out), (2, err)):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(handle, number)
        os.close(handle)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
    os.fsync = lambda handle: None  # as in the tests' own process: machines do not die in tests
    subprocess.Popen = _Forked  # type: ignore[misc]
    _interpret(command[1:], environment, folder)


def _interpret(arguments: Sequence[str], environment: Mapping[str, str], folder: str | None) -> None:
    """Does what an interpreter does that is started with these arguments."""
    os.environ.clear()
    os.environ.update(environment)
    if folder is not None:
        os.chdir(folder)
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")  # of modules that are imported already
    first, *rest = [one for one in arguments if one != "-u"]
    if first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = [first, *rest]
        sys.path.insert(0, str(Path(first).resolve().parent))
        runpy.run_path(first, run_name="__main__")


class _Forked(subprocess.Popen):  # type: ignore[type-arg]
    """Forks where Python is to be run, with all that this process has imported."""

    def _execute_child(self, *given: Any) -> None:
        start = super()._execute_child  # type: ignore[misc]
        told = inspect.signature(start).bind(*given).arguments
        if told["args"][0] != sys.executable:
            start(*given)
            return
        ends = [told[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        pid = os.fork()
        if pid:
            self.pid, self._child_created = pid, True
            pipes = "p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite"
            self._close_pipe_fds(*(told[name] for name in pipes))  # type: ignore[attr-defined]
            return
        code = 1
        try:
            if told["start_new_session"]:
                os.setsid()
            for number, end in enumerate(ends):
                if end != -1:
                    os.dup2(end, number)
            os.closerange(3, 4096)
            _kept.extend([sys.stdin, sys.stdout, sys.stderr])
            sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            _interpret(told["args"][1:], told["env"] or dict(os.environ), told["cwd"])
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
            os._exit(code)

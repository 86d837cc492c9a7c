"""Commands as tests give them, what they leave behind, and how they are stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import warm
import yaml
from saved import Cli, files_below, model_folder


def train(data: Path, family: str = "bert", steps: int = 2) -> list[str]:
    return ["train", "-m", model_folder(family), "--data", str(data), "--steps", str(steps)]


def result(folder: str | Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((Path(folder) / "result.json").read_text())
    return loaded


def config(folder: str | Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((Path(folder) / "config.yaml").read_text())
    return loaded


def refuse(cli: Cli, message: str, *command: str | Path) -> None:
    before = files_below(Path.cwd())
    done = cli(*command)
    assert done.code == 2 and not done.out
    assert message in done.err and done.err.startswith("error: ") and done.err.count("\n") == 1
    assert files_below(Path.cwd()) == before


def started(command: list[str]) -> warm.Warm:
    """A command in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    return warm.Warm([sys.executable, "-m", "softprompts", *command], environment)


def interrupt(command: list[str], ready: str, count: int = 1) -> subprocess.CompletedProcess[str]:
    """Runs a command in a process of its own and sends it Ctrl-C once so many files are there."""
    process = started(command)
    try:
        until = time.monotonic() + 60
        while len(list(Path.cwd().glob(ready))) < count and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return subprocess.CompletedProcess(command, process.returncode, out, err)

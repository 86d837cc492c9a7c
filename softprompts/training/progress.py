"""Progress bars, Accelerate's trackers, and the signals that interrupt training."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from softprompts.errors import SoftPromptError, nearest
from softprompts.training.lane import Lane


class Stop:
    """Notes Ctrl-C and SIGTERM, so that training stops after the step: half a step could not be resumed.

    A second Ctrl-C is an ordinary KeyboardInterrupt. Outside of the main thread, which alone may set signal handlers,
    this does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: Any) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            # None: a handler that was not set from Python and cannot be set back from it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}


class Bar:
    """A line for each run with its steps, loss and main metric; nothing where the output is not a terminal."""

    def __init__(self, lanes: list[Lane], wanted: bool):
        console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not (wanted and console.is_terminal),
        )
        add = self.progress.add_task
        self.tasks = {lane.name: add(lane.name, total=lane.total_steps, completed=lane.step, note="") for lane in lanes}

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.progress.stop()

    def show(self, lanes: list[Lane]) -> None:
        """Brings the lines up to date."""
        if self.progress.disable:
            return
        for lane in lanes:
            note = f"loss {lane.loss:.4f}"
            if lane.last_metrics:
                name, value = next(iter(lane.last_metrics.items()))
                note += f"  {name} {value:.4f}, best {lane.best.metrics[name]:.4f}"
            if lane.stop_reason:
                note += f"  {lane.stop_reason}"
            self.progress.update(self.tasks[lane.name], completed=lane.step, note=note)


def track(accelerator: Accelerator, active: list[Lane], due: list[Lane], prefix: bool) -> None:
    """Logs the step's losses, and metrics and vitals where there are new ones, to Accelerate's trackers."""
    if not accelerator.trackers:
        return
    values: dict[str, float] = {}
    for lane in active:
        front = f"{lane.name}/" if prefix else ""
        values[f"{front}loss"] = lane.loss
        for group in lane.optimizer.param_groups:
            values[f"{front}learning_rate/{group['name']}"] = group["lr"]
        if lane in due:
            values.update({f"{front}{name}": value for name, value in lane.last_metrics.items()})
            vitals = lane.history[-1]["vitals"].items()
            values.update({f"{front}vitals/{name}": value for name, value in vitals if value is not None})
    # Trackers want steps that only rise, so lanes that resume from different steps share the highest.
    accelerator.log(values, step=max(lane.step for lane in active))


def tracker_folder(lanes: list[Lane]) -> Path:
    """Where trackers write: the run's folder, or the one above those of several runs."""
    folders = [lane.folder for lane in lanes if lane.folder is not None]
    return Path(os.path.commonpath(folders) if folders else "runs")


def flat(values: dict[str, Any], front: str = "") -> dict[str, Any]:
    """Nested settings as one level of plain values, as trackers require."""
    plain: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            plain.update(flat(value, f"{front}{name}/"))
        else:
            plain[front + name] = value if isinstance(value, int | float | str) else json.dumps(value)
    return plain


def check_trackers(names: Sequence[str] | None) -> None:
    """Raises a `SoftPromptError` where Accelerate does not know one of these trackers, or its package is missing."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    known = [str(name) for name in LOGGER_TYPE_TO_CLASS]
    installed = [str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()]
    for name in names or ():
        if name == "all":
            continue
        if name not in known:
            raise SoftPromptError(f"unknown tracker '{name}'; {nearest(name, known)}")
        if name not in installed:
            raise SoftPromptError(f"the tracker '{name}' is not installed: pip install {name}")

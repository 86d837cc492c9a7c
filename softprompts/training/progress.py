"""Progress bars, Accelerate's trackers, and the signals that interrupt training."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

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


class _CutText(TextColumn):
    """Text that gives way in a narrow terminal, so that steps and time left never do."""

    def __init__(self, text: str):
        super().__init__(text, markup=False, table_column=Column(no_wrap=False))

    def render(self, task: Task) -> Text:
        text = super().render(task)
        text.no_wrap, text.overflow = True, "ellipsis"
        return text


class Bar:
    """In a terminal, a line for each run with its steps, loss and main metric, kept up to date.

    Elsewhere, a run that trains alone prints a line at each evaluation, and several print nothing.
    """

    def __init__(self, lanes: list[Lane], wanted: bool):
        self.console = Console(stderr=True, markup=False, highlight=False)
        self.lines = wanted and not self.console.is_terminal and len(lanes) == 1
        self.began = time.perf_counter()
        self.first = {lane.name: lane.step for lane in lanes}
        steps, left = (Column(no_wrap=True) for _ in range(2))
        bar = [BarColumn(20)] if self.console.width >= 100 else []
        self.progress = Progress(
            _CutText("{task.description}"),
            *bar,
            MofNCompleteColumn(table_column=steps),
            TimeRemainingColumn(table_column=left),
            _CutText("{task.fields[note]}"),
            console=self.console,
            disable=not wanted or not self.console.is_terminal,
        )
        add = self.progress.add_task
        self.tasks = {lane.name: add(lane.name, total=lane.total_steps, completed=lane.step, note="") for lane in lanes}

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.progress.stop()

    def show(self, lanes: list[Lane], due: list[Lane]) -> None:
        """Brings the lines up to date; ``due`` were evaluated just now."""
        if self.progress.disable and not self.lines:
            return
        for lane in due if self.lines else lanes:
            note = f"loss {lane.history[-1]['loss'] if self.lines else lane.loss:.4f}"
            if lane.last_metrics:
                name, value = next(iter(lane.last_metrics.items()))
                note += f"  {name} {value:.4f}, best {lane.best.metrics[name]:.4f}"
            if lane.stop_reason:
                note += f"  {lane.stop_reason}"
            if self.lines:
                left = "" if lane.stop_reason else f"  {self._left(lane)} left"
                self.console.print(f"{lane.name}: step {lane.step}/{lane.total_steps}  {note}{left}", soft_wrap=True)
            else:
                self.progress.update(self.tasks[lane.name], completed=lane.step, note=note)

    def _left(self, lane: Lane) -> str:
        """How long a run will take at its pace so far."""
        done = max(1, lane.step - self.first[lane.name])
        return duration((lane.total_steps - lane.step) * (time.perf_counter() - self.began) / done)


def duration(seconds: float) -> str:
    """A time in words: "12 s", "5 min", "2.3 h"."""
    minutes = round(seconds / 60)
    return f"{round(seconds)} s" if seconds < 100 else f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} h"


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

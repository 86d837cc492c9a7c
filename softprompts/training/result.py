"""How a run ended."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

UNFINISHED = ("interrupted", "paused")  # the stop_reasons of a run that can go on


class LateInterrupt(KeyboardInterrupt):
    """An interruption that came when all runs were done: there are results, but the caller may have more to do."""


@dataclass
class LaneResult:
    """How a run ended.

    Attributes:
        name: the prompt.
        stop_reason: "max_steps", "patience", "non-finite loss", "interrupted" or "paused".
        message: a sentence on why, where the reason alone does not say it.
        steps: steps taken.
        best_step: the step whose prompt was kept; 0 for the one it started from.
        score: the best value of the main metric; None without an evaluation.
        metrics: all metrics of that evaluation.
        test_metrics: those of the kept prompt on rows that nothing was chosen by; empty without such rows.
        seconds: time it was in the loop, that before a resume included.
        step_seconds: its share of the time that went into steps: lanes that share a pass share its time evenly.
        peak_memory: in bytes, of the process or the GPU while it trained, with all lanes of the loop.
        lanes: the most runs that were in the loop with it, itself included.
        vitals: numbers of its last evaluation that say whether its parts act, see `softprompts.training.vitals`.
        idle: a sentence for each part that did not.
        history: the lines of metrics.jsonl.
    """

    name: str
    stop_reason: str
    message: str
    steps: int
    best_step: int
    score: float | None
    metrics: dict[str, float | None]
    test_metrics: dict[str, float | None]
    seconds: float
    step_seconds: float
    peak_memory: int
    lanes: int
    vitals: dict[str, float | None]
    idle: list[str]
    history: list[dict[str, Any]]

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do; an interrupted or paused run can go on."""
        return self.stop_reason not in UNFINISHED

    def to_dict(self) -> dict[str, Any]:
        """All but the history as plain JSON values."""
        return {name: value for name, value in asdict(self).items() if name != "history"}

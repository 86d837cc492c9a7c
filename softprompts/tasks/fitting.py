"""Fits a temperature and thresholds to rows with labels, and answers rows by what was fitted on others.

SciPy finds the temperature, scikit-learn counts hits at every threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]
from sklearn.metrics import roc_curve  # type: ignore[import-untyped]
from sklearn.model_selection import KFold  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from softprompts.errors import SoftPromptError
from softprompts.tasks.decision import HALF, Decided, Decision, Goal, logits_of, threshold_count
from softprompts.tasks.form import Form

FOLDS = 5
_WIDEST = 5.0  # of the temperature's logarithm; an optimum out there is none
_Counts = tuple[np.ndarray, np.ndarray, float, float]  # hits and false alarms by threshold, positives, negatives


def _f1(counts: _Counts) -> np.ndarray:
    hits, alarms, positives, _ = counts
    return 2 * hits / np.maximum(hits + alarms + positives, 1)


def _accuracy(counts: _Counts) -> np.ndarray:
    hits, alarms, positives, negatives = counts
    return (hits + negatives - alarms) / (positives + negatives)


def _balanced_accuracy(counts: _Counts) -> np.ndarray:
    hits, alarms, positives, negatives = counts
    return (hits / positives + 1 - alarms / negatives) / 2


def _matthews(counts: _Counts) -> np.ndarray:
    hits, alarms, positives, negatives = counts
    said, unsaid = hits + alarms, positives + negatives - hits - alarms
    scale = np.sqrt(said * unsaid * positives * negatives)
    return (hits * negatives - alarms * positives) / np.where(scale > 0, scale, 1)


_GOALS: dict[Goal, Callable[[_Counts], np.ndarray]] = {
    "f1": _f1,
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "matthews": _matthews,
}


@dataclass(frozen=True)
class Fit:
    """What is fitted to a trained prompt.

    Attributes:
        threshold: what thresholds are chosen by; a number: the threshold itself; None: none.
        calibrate: whether a temperature is fitted.
    """

    threshold: Goal | float | None = None
    calibrate: bool = False

    @property
    def fits(self) -> bool:
        """Whether anything depends on rows."""
        return self.calibrate or isinstance(self.threshold, str)

    def check(self, form: Form, scored: bool) -> None:
        """Makes sure that a task has what is fitted; ``scored`` says whether its answers have probabilities.

        Raises:
            SoftPromptError: it does not.
        """
        if self.threshold is not None and not threshold_count(form):
            many = f"with {len(form.labels)} labels, of which the likeliest is given" * bool(form.labels)
            raise SoftPromptError(
                f"a threshold is for two labels, or for multi-label tasks; this is {form.kind} {many}".rstrip()
            )
        if self.calibrate and not form.decided:
            raise SoftPromptError(f"calibrate is for tasks whose answers have a probability; this is {form.kind}")
        if (self.calibrate or self.threshold is not None) and not scored:
            raise SoftPromptError(
                "a written answer has no probability to calibrate or to set a threshold on: leave answering at 'rank'"
            )

    def start(self, form: Form) -> Decision:
        """The decision before anything is fitted: at most a threshold that is given as a number."""
        fixed = [float(self.threshold)] if isinstance(self.threshold, int | float) else []
        return Decision(1.0, tuple(fixed * threshold_count(form)), self.threshold, self.calibrate)

    def on(self, form: Form, scores: Sequence[Tensor], truths: Sequence[Any], rows: str = "") -> Decision:
        """The decision that is best on some rows; for the arguments see `cross_fitted`; ``rows`` is their digest."""
        temperature = fit_temperature(form, scores, truths) if self.calibrate else 1.0
        start = replace(self.start(form), temperature=temperature, rows=rows)
        if not isinstance(self.threshold, str):
            return start
        chances, wanted = np.array(Decision(temperature).decide(form, scores).chances), np.array(truths)
        if form.kind == "classification":
            chances, wanted = chances[:, 1:], wanted[:, None]
        columns = zip(chances.T, wanted.T, strict=True)
        return replace(start, thresholds=tuple(fit_threshold(*column, self.threshold) for column in columns))

    def cross_fitted(self, form: Form, scores: Sequence[Tensor], truths: Sequence[Any]) -> Decided:
        """Decides each row by what was fitted on the other folds of the rows, so that none is its own judge.

        Args:
            form: of the task.
            scores: of the rows, see `softprompts.training.Prediction`.
            truths: the index of the right label; of several labels 1 for each that is there and 0 for the others.
        """
        chances: list[list[float]] = [[]] * len(scores)
        answers: list[Any] = [None] * len(scores)
        for others, own in KFold(min(FOLDS, len(scores)), shuffle=True, random_state=0).split(truths):
            decision = self.on(form, [scores[i] for i in others], [truths[i] for i in others])
            for index, chance, answer in zip(own, *decision.decide(form, [scores[i] for i in own]), strict=True):
                chances[index], answers[index] = chance, answer
        return Decided(chances, answers)


def fit_temperature(form: Form, scores: Sequence[Tensor], truths: Sequence[Any]) -> float:
    """The temperature under which the labels are likeliest; 1 where there is no best one.

    There is none where every row is right, as sharper probabilities are better without end, and where scores say
    nothing. For the arguments see `Fit.cross_fitted`.
    """
    lines = [logits_of(form, row) for row in scores]
    logits = torch.nn.utils.rnn.pad_sequence(lines, True, float("-inf")).double()
    if form.kind == "multi-label":
        wanted = torch.tensor(truths, dtype=torch.float64)
        right = (logits > 0) == wanted.bool()
    else:
        wanted = torch.tensor(truths, dtype=torch.long)
        right = logits.argmax(1) == wanted
    if bool(right.all()):
        return 1.0

    def loss(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        if form.kind == "multi-label":
            return float(binary_cross_entropy_with_logits(scaled, wanted))
        return float(cross_entropy(scaled, wanted))

    found = minimize_scalar(loss, bounds=(-_WIDEST, _WIDEST), method="bounded", options={"xatol": 1e-7})
    return math.exp(found.x) if abs(found.x) < 0.99 * _WIDEST else 1.0


def fit_threshold(chances: np.ndarray, truths: np.ndarray, goal: Goal) -> float:
    """The threshold that is best by a goal, in the middle between two probabilities; of equals that nearest to 1/2.

    1/2 where there are only rows with the label, or only rows without.

    Args:
        chances: the probability of the label, row by row.
        truths: 1 for rows that have it, and 0 for the others.
        goal: what is best.
    """
    positives, negatives = float(truths.sum()), float(len(truths) - truths.sum())
    if not positives or not negatives:
        return HALF
    alarms, hits, limits = roc_curve(truths, chances, drop_intermediate=False)
    # From a threshold on the label is given: between it and the next lower probability, all act alike. The first one
    # is above all probabilities: the label is never given.
    edges = np.concatenate([[1.0 + 1e-6], limits[1:], [0.0]])
    middles = (edges[:-1] + edges[1:]) / 2
    middles = np.where((edges[:-1] >= HALF) & (edges[1:] < HALF), HALF, middles)
    values = _GOALS[goal]((hits * positives, alarms * negatives, positives, negatives))
    best = np.flatnonzero(values >= values.max() - 1e-12)
    return float(middles[best[np.argmin(np.abs(middles[best] - HALF))]])

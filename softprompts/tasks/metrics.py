"""Scores of predictions, by name: plain wrappers of scikit-learn and SciPy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from scipy import stats  # type: ignore[import-untyped]
from sklearn import metrics as sklearn_metrics  # type: ignore[import-untyped]

from softprompts.errors import SoftPromptError, nearest

Array = np.ndarray


def _accuracy(predictions: Array, references: Array) -> float:
    return float(sklearn_metrics.accuracy_score(references, predictions))


def _f1(predictions: Array, references: Array) -> float:
    # F1 of label 1. Any other prediction counts as "not 1", so an invalid one needs no class of its own.
    return float(sklearn_metrics.f1_score(references == 1, predictions == 1, zero_division=0))


def _macro_f1(predictions: Array, references: Array) -> float:
    return float(sklearn_metrics.f1_score(references, predictions, average="macro", zero_division=0))


def _matthews(predictions: Array, references: Array) -> float:
    return float(sklearn_metrics.matthews_corrcoef(references, predictions))


def _correlation(function: Callable[[Array, Array], tuple[float, float]]) -> Callable[[Array, Array], float]:
    def score(predictions: Array, references: Array) -> float:
        if not (np.isfinite(predictions).all() and np.isfinite(references).all()):
            return float("nan")
        if np.ptp(predictions) == 0 or np.ptp(references) == 0:
            return 0.0  # undefined for a constant; as a score it is worth nothing
        return float(function(predictions, references)[0])

    return score


METRICS: dict[str, Callable[[Array, Array], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "matthews": _matthews,
    "pearson": _correlation(stats.pearsonr),
    "spearman": _correlation(stats.spearmanr),
}


def compute(
    metric_names: Iterable[str], predictions: Sequence[int | float] | Array, references: Sequence[int | float] | Array
) -> dict[str, float]:
    """Scores predictions against references.

    Args:
        metric_names: of "accuracy", "f1" (of label 1), "macro_f1", "matthews", "pearson", "spearman".
        predictions: one for each row.
        references: the true labels or scores.

    Returns:
        The scores by name, in the order asked for. Correlations with a constant are 0, with non-finite values nan.

    Raises:
        SoftPromptError: unknown metric, no rows, or numbers of rows that differ.
    """
    given, true = np.asarray(predictions), np.asarray(references)
    if given.ndim != 1 or given.shape != true.shape:
        raise SoftPromptError(f"predictions have shape {given.shape}, references {true.shape}: give one for each row")
    if not given.size:
        raise SoftPromptError("there are no predictions to score")
    scores = {}
    for name in metric_names:
        if name not in METRICS:
            raise SoftPromptError(f"unknown metric '{name}': {nearest(name, METRICS)}")
        scores[name] = METRICS[name](given, true)
    return scores

"""Whether probabilities are what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from softprompts.tasks.form import Form

_BINS = 10


@dataclass(frozen=True)
class Bin:
    """Rows whose probability lies in a tenth: their number, their mean probability, and the share that is right."""

    count: int
    confidence: float
    right: float


@dataclass(frozen=True)
class Calibration:
    """Whether probabilities are what they say.

    Attributes:
        error: expected calibration error: the mean distance of probability and share of right rows, over rows.
        brier: mean squared distance of the probability from 1 for right rows, and from 0 for wrong ones.
        bins: by tenths of probability; those without a row are left out.
    """

    error: float
    brier: float
    bins: tuple[Bin, ...]


def calibration(chances: Any, right: Any) -> Calibration:
    """The calibration of probabilities of answers that are right, or not."""
    chances, right = np.asarray(chances, float), np.asarray(right, float)
    places = np.minimum((chances * _BINS).astype(int), _BINS - 1)
    bins = tuple(
        Bin(int(inside.sum()), float(chances[inside].mean()), float(right[inside].mean()))
        for inside in (places == place for place in range(_BINS))
        if inside.any()
    )
    error = sum(one.count * abs(one.confidence - one.right) for one in bins) / len(chances)
    return Calibration(error, float(((chances - right) ** 2).mean()), bins)


def calibration_of(form: Form, chances: Sequence[Sequence[float]], truths: Sequence[Any]) -> Calibration:
    """The calibration of rows' probabilities of all labels or choices.

    That of the likeliest label's probability; of several labels, that of all labels' probabilities of being there.

    Args:
        form: of the task.
        chances: the probability of each label, row by row.
        truths: the index of the right label; of several labels 1 for each that is there and 0 for the others.
    """
    if form.kind == "multi-label":
        return calibration(np.ravel(chances), np.ravel(truths))
    best = [int(np.argmax(row)) for row in chances]
    right = [place == truth for place, truth in zip(best, truths, strict=True)]
    return calibration([row[place] for row, place in zip(chances, best, strict=True)], right)

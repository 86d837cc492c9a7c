"""Temperatures and thresholds: what they do, how they are fitted, and that no row judges what it chose."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, matthews_corrcoef
from torch import Tensor

from softprompts.errors import SoftPromptError
from softprompts.tasks.calibration import calibration, calibration_of
from softprompts.tasks.decision import GOALS, Decision, rows_digest
from softprompts.tasks.example import Example
from softprompts.tasks.fitting import Fit, fit_temperature, fit_threshold
from softprompts.tasks.form import Form

TWO = Form(labels=("no", "yes"))
FOUR = Form(labels=("a", "b", "c", "d"))
SETS = Form("multi-label", labels=("a", "b", "c"))
SCORES = {
    "f1": f1_score,
    "accuracy": accuracy_score,
    "balanced_accuracy": balanced_accuracy_score,
    "matthews": matthews_corrcoef,
}


def drawn(form: Form, count: int = 80, scale: float = 3.0, seed: int = 0) -> tuple[list[Tensor], list[Any]]:
    """Scores that are too sure, and labels that they tell something about."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, len(form.labels), generator=generator, dtype=torch.float64)
    if form.kind == "multi-label":
        truths: list[Any] = [
            tuple(row) for row in torch.bernoulli(logits.sigmoid(), generator=generator).int().tolist()
        ]
    else:
        truths = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0].tolist()
    return [scale * row[None] for row in logits], truths


def test_probabilities_and_answers() -> None:
    scores = [torch.tensor([[1.0, 3.0]], dtype=torch.float64)]
    chance = 1 / (1 + math.exp(-(3 - 1) / 2))
    for limit, answer in ((0.0, 1), (chance - 1e-9, 1), (chance + 1e-9, 0)):
        decided = Decision(2.0, (limit,)).decide(TWO, scores)
        assert decided.answers == [answer] and decided.chances[0] == pytest.approx([1 - chance, chance])
    assert Decision(2.0).decide(TWO, scores).answers == [1]
    apart = Decision(2.0, (0.5, 0.9, 0.1)).decide(SETS, [torch.tensor([[2.0, 2.0, -2.0]], dtype=torch.float64)])
    assert apart.answers == [(1, 0, 1)]
    assert apart.chances[0] == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))])
    # A language model has the log-likelihood of a last answer, for none of the labels, which the others are less.
    answers = torch.tensor([[-3.0, -5.0, -9.0, -4.0]], dtype=torch.float64)
    assert Decision().decide(SETS, [answers]).chances[0] == pytest.approx(
        [math.exp(one) / (math.exp(one) + math.exp(-4)) for one in (-3.0, -5.0, -9.0)]
    )


@pytest.mark.parametrize("form", [TWO, FOUR, SETS], ids=lambda form: f"{form.kind}-{len(form.labels)}")
def test_the_temperature_is_the_optimum(form: Form) -> None:
    scores, truths = drawn(form)
    lines, wanted = np.array([row[0].tolist() for row in scores]), np.array(truths)

    def loss(values: Any) -> float:
        scaled = lines / np.exp(values[0])
        if form.kind == "multi-label":
            return float(np.mean(np.logaddexp(0, scaled) - wanted * scaled))
        return float(np.mean(np.log(np.exp(scaled).sum(1)) - scaled[np.arange(len(scaled)), wanted]))

    best = minimize(loss, [0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14})
    found = fit_temperature(form, scores, truths)
    assert found == pytest.approx(math.exp(best.x[0]), rel=1e-5) and found > 1.5
    plain, fitted = (Decision(t).decide(form, scores) for t in (1.0, found))
    assert calibration_of(form, fitted.chances, truths).error < calibration_of(form, plain.chances, truths).error
    assert fitted.answers == plain.answers


def test_no_temperature_where_every_row_is_right() -> None:
    scores = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])] * 5
    assert fit_temperature(TWO, scores, [0, 1] * 5) == 1.0


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("seed", range(4))
def test_the_threshold_is_the_best_of_all(goal: Any, seed: int) -> None:
    draw = random.Random(seed)
    chances = np.array([round(draw.random(), 1 + seed % 2) for _ in range(40)])  # with ties
    truths = np.array([int(draw.random() < 0.2 + 0.5 * chance) for chance in chances])
    found = fit_threshold(chances, truths, goal)
    value = SCORES[goal](truths, (chances >= found).astype(int))
    edges = [*sorted(set(chances)), 1.01]
    every = [(SCORES[goal](truths, (chances >= edge).astype(int)), edge) for edge in edges]
    assert value == pytest.approx(max(score for score, _ in every))
    assert abs(chances - found).min() > 1e-7 or found == 0.5
    middles = [(one + other) / 2 for one, other in itertools.pairwise([0, *sorted(set(chances)), 1])]
    good = [one for one in middles if SCORES[goal](truths, (chances >= one).astype(int)) > value - 1e-12]
    assert abs(found - 0.5) <= min(abs(one - 0.5) for one in good) + 1e-12


def test_a_label_that_is_nowhere_keeps_a_half() -> None:
    assert fit_threshold(np.array([0.1, 0.7]), np.array([0, 0]), "f1") == 0.5
    assert fit_threshold(np.array([0.1, 0.7]), np.array([1, 1]), "f1") == 0.5


@pytest.mark.parametrize("form", [TWO, SETS], ids=lambda form: form.kind)
def test_no_row_judges_what_it_chose(form: Form) -> None:
    """Another label of a row may change what other rows are decided by, and never what it is."""
    scores, truths = drawn(form, 40)
    fit = Fit("f1", True)
    first = fit.cross_fitted(form, scores, truths)
    assert first.chances != Decision().decide(form, scores).chances
    own = fit.on(form, scores, truths).decide(form, scores)
    for row in range(0, 40, 7):
        other: Any = 1 - truths[row] if form is TWO else tuple(1 - each for each in truths[row])
        changed = [*truths[:row], other, *truths[row + 1 :]]
        second = fit.cross_fitted(form, scores, changed)
        assert second.chances[row] == first.chances[row] and second.answers[row] == first.answers[row]
        assert second.chances != first.chances
        assert fit.on(form, scores, changed).decide(form, scores).chances[row] != own.chances[row]


def test_calibration_errors_by_hand() -> None:
    # Two tenths: 0.9 and 0.95, of which one is right, and 0.55, which is right.
    found = calibration([0.9, 0.95, 0.55], [1, 0, 1])
    assert found.error == pytest.approx((2 * abs(0.925 - 0.5) + abs(0.55 - 1)) / 3)
    assert found.brier == pytest.approx((0.1**2 + 0.95**2 + 0.45**2) / 3)


def test_saved_with_a_prompt() -> None:
    made = Decision(1.5, (0.25,), "f1", True, "abc")
    assert Decision.of(made.to_dict(), TWO) == made and Decision.of(None, TWO) is None and Decision.of({}, TWO) is None
    for damage in ({"temperature": 0}, {"thresholds": [0.1, 0.2]}, {"temperature": "1"}, {"thresholds": None}):
        with pytest.raises(SoftPromptError, match="damaged"):
            Decision.of(made.to_dict() | damage, TWO)


def test_what_cannot_be_fitted() -> None:
    for form, fit, message in (
        (FOUR, Fit("f1"), "a threshold is for two labels, or for multi-label tasks; this is classification with 4"),
        (Form("regression"), Fit(calibrate=True), "calibrate is for tasks whose answers have a probability"),
        (Form("tagging", labels=("O", "X"), fields=("words",)), Fit(0.3), "a threshold is for two labels"),
    ):
        with pytest.raises(SoftPromptError, match=message):
            fit.check(form, True)
    with pytest.raises(SoftPromptError, match="a written answer has no probability"):
        Fit("f1").check(TWO, False)
    Fit("f1", True).check(SETS, True)
    assert Fit(0.3).start(SETS).thresholds == (0.3, 0.3, 0.3) and not Fit(0.3).fits


def test_rows_are_known_again_in_any_order() -> None:
    rows = [Example({"text": "a"}, 0, 1), Example({"text": "b"}, 1, 2)]
    again = [Example({"body": "b"}, 1, 9), Example({"body": "a"}, 0, 8)]
    assert rows_digest(rows) == rows_digest(again) != rows_digest(rows[:1])

"""Class weights against scikit-learn's, and against weighting by hand."""

from __future__ import annotations

import pytest
from sklearn.utils.class_weight import compute_sample_weight

from softprompts.errors import SoftPromptError
from softprompts.tasks.class_weights import check_class_weights, row_weights
from softprompts.tasks.example import Example
from softprompts.tasks.form import Form

FORM = Form(labels=("ham", "spam", "odd"))
SETS = Form("multi-label", labels=("a", "b"))


def test_balanced_is_that_of_scikit_learn() -> None:
    labels = [0, 0, 0, 1, 0, 2, 2]
    rows = [Example({"text": "x"}, label) for label in labels]
    assert row_weights(FORM, rows, "balanced") == pytest.approx(list(compute_sample_weight("balanced", labels)))
    sets = [Example({"text": "x"}, label) for label in ((0,), (0, 1), (0,), ())]
    by_label = [compute_sample_weight("balanced", [int(i in row.label) for row in sets]) for i in range(2)]
    assert row_weights(SETS, sets, "balanced") == [pytest.approx(list(row)) for row in zip(*by_label, strict=True)]


def test_numbers_by_name() -> None:
    assert row_weights(FORM, [Example({}, label) for label in (0, 1, 2)], {"spam": 3, "odd": 0.5}) == [1.0, 3.0, 0.5]
    assert row_weights(SETS, [Example({}, (1,)), Example({}, (0,))], {"b": 4}) == [[1.0, 4.0], [1.0, 1.0]]


def test_what_is_refused() -> None:
    check_class_weights(Form("regression"), None)
    with pytest.raises(SoftPromptError, match="class weights are for classification and multi-label tasks"):
        check_class_weights(Form("regression"), "balanced")
    with pytest.raises(SoftPromptError, match="class weights name the label 'spamm': did you mean 'spam'"):
        check_class_weights(FORM, {"spamm": 2.0})

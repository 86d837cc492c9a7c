from __future__ import annotations

import math

import pytest

from softprompts.errors import SoftPromptError
from softprompts.tasks import compute
from softprompts.tasks.metrics import METRICS

CLASSES = [0, 1, 2, 1, 0, 1]
BINARY = [0, 1, 1, 1, 0, 1]
SCORES = [0.0, 1.5, 5.0, 2.2]


def test_perfect_predictions() -> None:
    assert compute(["accuracy", "macro_f1", "matthews"], CLASSES, CLASSES) == pytest.approx(
        {"accuracy": 1, "macro_f1": 1, "matthews": 1}
    )
    assert compute(["f1"], BINARY, BINARY) == {"f1": 1}
    assert compute(["pearson", "spearman"], SCORES, SCORES) == pytest.approx({"pearson": 1, "spearman": 1})


def test_constant_predictions() -> None:
    scores = compute(["accuracy", "f1", "macro_f1", "matthews"], [1] * 6, BINARY)
    assert scores == pytest.approx({"accuracy": 4 / 6, "f1": 0.8, "macro_f1": 0.4, "matthews": 0})
    assert compute(["f1"], [0] * 6, BINARY) == {"f1": 0}
    assert compute(["pearson", "spearman"], [1.0] * 4, SCORES) == {"pearson": 0, "spearman": 0}


def test_known_values() -> None:
    # 3 true positives, 1 false positive, 1 false negative, 1 true negative
    given = [1, 1, 1, 1, 0, 0]
    true = [1, 1, 1, 0, 1, 0]
    assert compute(["f1"], given, true)["f1"] == pytest.approx(6 / 8)
    assert compute(["matthews"], given, true)["matthews"] == pytest.approx((3 * 1 - 1 * 1) / 8)
    assert compute(["spearman"], [1.0, 2.0, 30.0, 4.0], SCORES)["spearman"] == pytest.approx(0.8 + 0.2)
    assert compute(["pearson"], [-s for s in SCORES], SCORES)["pearson"] == pytest.approx(-1)


def test_an_invalid_prediction_counts_as_wrong() -> None:
    assert compute(["accuracy", "f1"], [-1, 1], [1, 1]) == pytest.approx({"accuracy": 0.5, "f1": 2 / 3})


def test_order_and_infinity() -> None:
    assert list(compute(["macro_f1", "accuracy"], CLASSES, CLASSES)) == ["macro_f1", "accuracy"]
    assert math.isnan(compute(["pearson"], [math.inf, 1.0], [1.0, 2.0])["pearson"])


def test_errors() -> None:
    with pytest.raises(SoftPromptError, match="did you mean 'accuracy'"):
        compute(["acuracy"], [1], [1])
    with pytest.raises(SoftPromptError, match="one for each row"):
        compute(["accuracy"], [1, 2], [1])
    with pytest.raises(SoftPromptError, match="no predictions"):
        compute(METRICS, [], [])

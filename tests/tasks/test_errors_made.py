"""What a prompt gets right and wrong, against counts by hand."""

from __future__ import annotations

import pytest

from softprompts.tasks.errors_made import NO_ANSWER, Errors, errors_made
from softprompts.tasks.example import Example
from softprompts.tasks.form import Form
from softprompts.tasks.task_reader import Answer


def classified(said: list[tuple[str, float]], truths: list[int]) -> Errors:
    form = Form(labels=("no", "yes", "maybe"))
    examples = [Example({"text": f"text {place}"}, label, place) for place, label in enumerate(truths)]
    return errors_made(form, examples, [Answer(*one) for one in said], {"accuracy": 0.5})


def test_labels_confusion_baseline_and_mistakes_by_hand() -> None:
    said = [("no", 0.9), ("yes", 0.8), ("no", 0.95), ("yes", 0.55), ("", 0.1)]
    found = classified(said, [0, 0, 1, 1, 2])
    assert found.right is not None and found.right.value == 2 / 5 and found.wrong == 3
    assert found.right.low == pytest.approx(0.1176, abs=1e-4) and found.right.high == pytest.approx(0.7693, abs=1e-4)
    assert found.confusion == ((1, 1, 0, 0), (1, 1, 0, 0), (0, 0, 0, 1)) and found.found[-1] == NO_ANSWER
    no, yes, maybe = found.classes
    assert (no.precision, no.recall, no.f1, no.support) == (0.5, 0.5, 0.5, 2)
    assert (yes.precision, yes.recall, yes.support) == (0.5, 0.5, 2)
    assert (maybe.precision, maybe.recall, maybe.f1, maybe.support) == (0, 0, 0, 1)
    assert found.baseline is not None and found.baseline[0] == "no" and found.baseline[1].value == 2 / 5
    assert [(one.row, one.truth, one.answer, one.weight) for one in found.mistakes] == [
        (2, "yes", "no", 0.95),
        (1, "no", "yes", 0.8),
        (4, "maybe", NO_ANSWER, 0.1),
    ]


def test_calibration_by_hand() -> None:
    found = classified([("no", 0.92), ("no", 0.98), ("yes", 0.61), ("yes", 1.0)], [0, 1, 1, 1]).calibration
    assert found is not None
    assert [(one.count, one.right) for one in found.bins] == [(1, 1.0), (3, pytest.approx(2 / 3))]
    gaps = (1 * abs(0.61 - 1) + 3 * abs((0.92 + 0.98 + 1) / 3 - 2 / 3)) / 4
    assert found.error == pytest.approx(gaps)
    assert found.brier == pytest.approx((0.08**2 + 0.98**2 + 0.39**2 + 0) / 4)


def test_scores_have_residuals_and_no_labels() -> None:
    examples = [Example({"text": "a"}, 1.0, 0), Example({"text": "b"}, 3.0, 1), Example({"text": "c"}, 5.0, 2)]
    answers = [Answer("2", None, value=2.0), Answer("3", None, value=3.0), Answer("2", None, value=2.0)]
    found = errors_made(Form(kind="regression"), examples, answers, {})
    assert found.residuals["mean absolute error"] == pytest.approx(4 / 3)
    assert found.residuals["root mean squared error"] == pytest.approx((10 / 3) ** 0.5)
    assert found.residuals["mean of answer less label"] == pytest.approx(-2 / 3)
    assert found.residuals["error of the mean label"] == pytest.approx(4 / 3)
    assert found.mistakes[0].text == "c" and found.mistakes[0].weight == -3
    assert found.right is None and not found.classes and found.points == ((1, 2), (3, 3), (5, 2))


def test_entities_by_type() -> None:
    form = Form(kind="tagging", labels=("O", "B-PER", "I-PER", "B-LOC"), fields=("words",))
    words = ("Ann", "Lee", "in", "Rome")
    example = Example({"words": " ".join(words)}, (1, 2, 0, 3), words=words)
    said = Answer("", None, tags=("B-PER", "O", "O", "B-LOC"))
    found = errors_made(form, [example], [said], {})
    assert [(one.name, one.precision, one.recall, one.support) for one in found.classes] == [
        ("LOC", 1.0, 1.0, 1),
        ("PER", 0.0, 0.0, 1),
    ]
    assert found.mistakes[0].truth == "[Ann Lee PER] in [Rome LOC]"
    assert found.baseline is not None and found.baseline[1].value == 1 / 4


def test_spans_agree_with_any_accepted_answer() -> None:
    form = Form(kind="span", fields=("question", "context"))
    fields = {"question": "who?", "context": "the cat sat"}
    examples = [Example(fields, answers=("The cat", "cat")), Example(fields, answers=("sat",))]
    found = errors_made(form, examples, [Answer("the cat", 0.4), Answer("cat", 0.3)], {})
    assert found.right is not None and found.right.value == 0.5 and found.baseline is None
    assert (found.mistakes[0].truth, found.mistakes[0].answer) == ("sat", "cat")

"""What a prompt gets right and wrong on labelled rows: numbers for every kind of task, and the rows themselves.

scikit-learn and SciPy do the sums.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy import stats  # type: ignore[import-untyped]
from sklearn import metrics as sklearn_metrics  # type: ignore[import-untyped]

from softprompts.tasks.answers import normalise
from softprompts.tasks.calibration import Calibration, calibration, calibration_of
from softprompts.tasks.conversations import MESSAGES, question_of, readable, unpacked
from softprompts.tasks.example import Example
from softprompts.tasks.form import Form
from softprompts.tasks.kinds.multi_label import targets
from softprompts.tasks.metrics import compute
from softprompts.tasks.tag_schemes import entities
from softprompts.tasks.task_reader import Answer, marked
from softprompts.tasks.text_metrics import NEG_LOSS

NO_ANSWER = "(no label)"
NO_TEXT = "(nothing)"
_MISTAKES = 20
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Share:
    """A share of the rows with its 95 % interval (Wilson)."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, count: int, total: int) -> Share:
        """``count`` of ``total`` rows."""
        interval = stats.binomtest(count, total).proportion_ci(method="wilson")
        return cls(count / total, float(interval.low), float(interval.high))


@dataclass(frozen=True)
class ClassScore:
    """How one label, or one type of entity, is found: ``support`` is how many there are."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Mistake:
    """A row with another answer than its label.

    ``weight`` is the probability of that answer, the residual, or what a written text scores by the main metric.
    """

    row: Any
    text: str
    truth: str
    answer: str
    weight: float | None


@dataclass(frozen=True)
class Errors:
    """What a prompt gets right and wrong.

    Attributes:
        kind: of the task.
        rows: number of rows.
        metrics: the task's own.
        right: share of rows with the right answer; None for scores.
        baseline: the answer that is commonest among the labels, and its share; None for scores, spans and rankings.
        classes: of each label, or type of entity.
        confusion: rows of each label (in order of ``classes``) by the label that was found; the last column holds
            answers that are no label, where there are some. Empty but for classification.
        found: names of its columns.
        by_label: of several labels, for each how many rows have and get it, get it only, have it only, and neither.
        calibration: of the answers' probabilities; of several labels, of all labels'; None where there are none.
        uncalibrated: the same of the probabilities before they were calibrated; None where they were not.
        residuals: of scores: mean absolute error, root mean squared error, mean of answer less label, and quantiles.
        points: of scores: label and answer of each row.
        mistakes: rows with a wrong answer, the most confident first; of scores, the largest residuals; of written
            texts, those that score worst by the main metric.
        wrong: the number of all rows with a wrong answer.
    """

    kind: str
    rows: int
    metrics: Mapping[str, float]
    right: Share | None = None
    baseline: tuple[str, Share] | None = None
    classes: tuple[ClassScore, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    found: tuple[str, ...] = ()
    by_label: tuple[tuple[int, int, int, int], ...] = ()
    calibration: Calibration | None = None
    uncalibrated: Calibration | None = None
    residuals: Mapping[str, float] = field(default_factory=dict)
    points: tuple[tuple[float, float], ...] = ()
    mistakes: tuple[Mistake, ...] = ()
    wrong: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def errors_made(
    form: Form,
    examples: Sequence[Example],
    answers: Sequence[Answer],
    metrics: Mapping[str, float],
    uncalibrated: Sequence[Sequence[float]] | None = None,
) -> Errors:
    """Compares answers with labels.

    Args:
        form: of the task.
        examples: labelled rows.
        answers: the prompt's answer to each.
        metrics: the task's own scores of these answers.
        uncalibrated: the probability of each label before it was calibrated, row by row; None where it was not.
    """
    base: dict[str, Any] = {"kind": form.kind, "rows": len(examples), "metrics": dict(metrics)}
    if form.kind == "regression":
        return Errors(**base, **_residuals(form, examples, answers))
    if form.written:
        return Errors(**base, **_of_texts(form, examples, answers, next(iter(metrics))))
    truths = [_truth(form, example) for example in examples]
    said = [_said(form, answer) for answer in answers]
    right = [_agrees(form, truth, one) for truth, one in zip(truths, said, strict=True)]
    more: dict[str, Any] = {"right": Share.of(sum(right), len(right)), "wrong": len(right) - sum(right)}
    if form.kind == "classification":
        more |= _of_classes(form.labels, truths, [str(one) for one in said])
    elif form.kind == "multi-label":
        more |= _of_label_sets(form.labels, truths, said)
    elif form.kind == "tagging":
        more |= _of_entities(truths, said)
    elif form.kind == "choice":
        place, count = Counter(example.label for example in examples).most_common(1)[0]
        more["baseline"] = (f"choice {place + 1}", Share.of(count, len(examples)))
    chances = [answer.probability for answer in answers]
    places = [_targets(form, example) for example in examples] if form.decided else []
    if form.kind == "multi-label":
        every = [[answer.probabilities[name] for name in form.labels] for answer in answers]
        more["calibration"] = calibration_of(form, every, places)
        chances = list(map(_sureness, answers, truths))
    elif form.decided and all(chance is not None for chance in chances):
        more["calibration"] = calibration(chances, right)
    if uncalibrated is not None:
        more["uncalibrated"] = calibration_of(form, uncalibrated, places)
        if form.kind == "classification":  # of the likeliest label too, whatever the threshold
            every = [[answer.probabilities[name] for name in form.labels] for answer in answers]
            more["calibration"] = calibration_of(form, every, places)
    wrong = [index for index, fine in enumerate(right) if not fine]
    wrong.sort(key=lambda index: -(chances[index] or 0.0))
    more["mistakes"] = tuple(
        Mistake(
            examples[index].id,
            _text(form, examples[index]),
            _shown(form, examples[index], truths[index]),
            _shown(form, examples[index], said[index]) or NO_ANSWER,
            chances[index],
        )
        for index in wrong[:_MISTAKES]
    )
    return Errors(**base, **more)


def _said(form: Form, answer: Answer) -> Any:
    if form.kind == "multi-label":
        return answer.labels
    return answer.tags if form.kind == "tagging" else answer.label


def _targets(form: Form, example: Example) -> Any:
    """The index of the right label; of several labels 1 for each that is there and 0 for the others."""
    return tuple(targets(example, form)) if form.kind == "multi-label" else example.label


def _sureness(answer: Answer, truth: Sequence[str]) -> float | None:
    """The largest probability of a label that is wrongly there or wrongly missing; None: all are right."""
    wrong = set(truth) ^ set(answer.labels)
    chances = [(name in answer.labels, answer.probabilities[name]) for name in wrong]
    return max((chance if given else 1 - chance for given, chance in chances), default=None)


def _of_texts(form: Form, examples: Sequence[Example], answers: Sequence[Answer], metric: str) -> dict[str, Any]:
    """Of written texts: those that are right to the letter, and the others by what each scores, the worst first."""
    right = [
        answer.label in [text.strip() for text in one.answers] for one, answer in zip(examples, answers, strict=True)
    ]
    rows = zip(examples, answers, strict=True)
    if metric == NEG_LOSS:
        scores = [float("nan") if answer.value is None else answer.value for answer in answers]
    else:
        scores = [compute([metric], [answer.label], [one.answers])[metric] for one, answer in rows]
    wrong = sorted((index for index, fine in enumerate(right) if not fine), key=lambda index: scores[index])
    mistakes = tuple(
        Mistake(
            examples[index].id,
            _text(form, examples[index]),
            " / ".join(examples[index].answers),
            answers[index].label or NO_TEXT,
            scores[index],
        )
        for index in wrong[:_MISTAKES]
    )
    return {"right": Share.of(sum(right), len(right)), "wrong": len(wrong), "mistakes": mistakes}


def _truth(form: Form, example: Example) -> Any:
    if form.kind in ("tagging", "multi-label"):
        return tuple(form.labels[index] for index in example.label)
    if form.kind == "classification":
        return form.labels[example.label]
    if form.kind == "choice":
        return example.choices[example.label]
    return example.answers


def _agrees(form: Form, truth: Any, answer: Any) -> bool:
    if form.kind in ("span", "ranking"):
        return normalise(answer) in map(normalise, truth)
    return bool(truth == answer)


def _of_classes(labels: Sequence[str], truths: Sequence[str], said: Sequence[str]) -> dict[str, Any]:
    beyond = [NO_ANSWER] if not set(said) <= set(labels) else []
    answers = [one if one in labels else NO_ANSWER for one in said]
    scores = sklearn_metrics.precision_recall_fscore_support(truths, answers, labels=labels, zero_division=0)
    matrix = sklearn_metrics.confusion_matrix(truths, answers, labels=[*labels, *beyond])
    common, count = Counter(truths).most_common(1)[0]
    return {
        "classes": tuple(
            ClassScore(name, float(precision), float(recall), float(f1), int(support))
            for name, precision, recall, f1, support in zip(labels, *scores, strict=True)
        ),
        "confusion": tuple(tuple(map(int, row)) for row in matrix[: len(labels)]),
        "found": (*labels, *beyond),
        "baseline": (common, Share.of(count, len(truths))),
    }


def _of_label_sets(labels: Sequence[str], truths: Sequence[Any], said: Sequence[Any]) -> dict[str, Any]:
    """Of each of several labels; the baseline is the commonest set of labels."""
    true, given = (np.array([[name in names for name in labels] for names in rows], int) for rows in (truths, said))
    scores = sklearn_metrics.precision_recall_fscore_support(true, given, average=None, zero_division=0)
    tables = sklearn_metrics.multilabel_confusion_matrix(true, given).tolist()
    common, count = Counter(truths).most_common(1)[0]
    return {
        "classes": tuple(
            ClassScore(name, float(precision), float(recall), float(f1), int(support))
            for name, precision, recall, f1, support in zip(labels, *scores, strict=True)
        ),
        "by_label": tuple((hits, alarms, missed, neither) for (neither, alarms), (missed, hits) in tables),
        "baseline": (" + ".join(common) or NO_ANSWER, Share.of(count, len(truths))),
    }


def _of_entities(truths: Sequence[Sequence[str]], said: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Of each type of entity; where tags are no entities, of each tag."""
    both: Counter[str] = Counter()
    given: Counter[str] = Counter()
    true: Counter[str] = Counter()
    for truth, answer in zip(truths, said, strict=True):
        found, there = _marks(answer), _marks(truth)
        given.update(name for *_, name in found)
        true.update(name for *_, name in there)
        both.update(name for *_, name in found & there)
    classes = []
    for name in sorted(true | given):
        precision = both[name] / given[name] if given[name] else 0.0
        recall = both[name] / true[name] if true[name] else 0.0
        f1 = 2 * both[name] / (given[name] + true[name])
        classes.append(ClassScore(name or "(entity)", precision, recall, f1, true[name]))
    words = Counter(tag for tags in truths for tag in tags)
    common, count = words.most_common(1)[0]
    return {"classes": tuple(classes), "baseline": (f"{common} (words)", Share.of(count, words.total()))}


def _marks(tags: Sequence[str]) -> set[tuple[Any, ...]]:
    if all(tag == "O" or tag[1:2] in ("", "-") for tag in tags):
        return set(entities(tags))
    return {(place, tag) for place, tag in enumerate(tags)}


def _residuals(form: Form, examples: Sequence[Example], answers: Sequence[Answer]) -> dict[str, Any]:
    truths = np.array([example.label for example in examples], float)
    said = np.array([float("nan") if answer.value is None else answer.value for answer in answers])
    rests = said - truths
    numbers = {
        "mean absolute error": float(sklearn_metrics.mean_absolute_error(truths, said)),
        "root mean squared error": float(sklearn_metrics.root_mean_squared_error(truths, said)),
        "mean of answer less label": float(rests.mean()),
        "error of the mean label": float(np.abs(truths - truths.mean()).mean()),
        **{f"{share:.0%} of residuals below": float(np.quantile(rests, share)) for share in _QUANTILES},
    }
    worst = np.argsort(-np.abs(rests), kind="stable")[:_MISTAKES]
    mistakes = tuple(
        Mistake(
            examples[index].id,
            _text(form, examples[index]),
            f"{truths[index]:g}",
            f"{said[index]:.3g}",
            float(rests[index]),
        )
        for index in worst
    )
    points = tuple(zip(truths.tolist(), said.tolist(), strict=True))
    return {"residuals": numbers, "points": points, "mistakes": mistakes}


def _text(form: Form, example: Example) -> str:
    if form.kind == "chat":
        return readable(question_of(unpacked(example.fields[MESSAGES])))
    return " | ".join(filter(None, example.fields.values()))


def _shown(form: Form, example: Example, answer: Any) -> str:
    if form.kind == "tagging":
        return marked(example.words, answer)
    if form.kind == "multi-label":
        return " + ".join(answer) or NO_ANSWER
    return answer if isinstance(answer, str) else " / ".join(dict.fromkeys(answer))

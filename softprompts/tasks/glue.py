"""The tasks of GLUE."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from softprompts.tasks.example import Row
from softprompts.tasks.form import Form
from softprompts.tasks.paper_templates import FIFTHS, TENTHS, Template, dept, keyed, residual
from softprompts.tasks.spec import Spec


def _form(word: str, fields: tuple[str, ...], labels: tuple[str, ...], **more: Any) -> Form:
    """A form with the task's word and all fields by name, answered with the labels' names."""
    return Form(labels=labels, fields=fields, **{"source": keyed(*fields, word=word), **more})


def _templates(
    word: str, fields: tuple[str, ...], classes: int, scored: tuple[str, ...] = ("accuracy",), **changes: Any
) -> dict[str, Template]:
    """The templates of DePT and ATTEMPT, which are ``scored`` by these metrics, and Residual's with its changes."""
    return {**dept(word, *fields, classes=classes, metrics=scored), **residual(*fields, **changes)}


def _stsb(row: Row) -> Iterable[Row]:
    # The hub has scores in single precision, 3.8 as 3.799999952316284; a file may not.
    score = row["label"]
    is_number = isinstance(score, int | float) and not isinstance(score, bool)
    yield {**row, "label": round(float(score), 5) if is_number else score}  # what is no number is refused


def _stsb_cut(row: Row) -> Iterable[Row]:
    # Residual Prompt Tuning takes the first three characters: 3.75 becomes "3.7".
    for rounded in _stsb(row):
        score = rounded["label"]
        yield {**row, "label": float(str(score)[:3]) if isinstance(score, float) and score >= 0 else score}


_SENTENCES = ("sentence1", "sentence2")
_QUESTIONS = ("question1", "question2")
_CLAIM = ("premise", "hypothesis")
_ANSWER = ("question", "sentence")
_ENTAILMENT = ("entailment", "not_entailment")

GLUE: dict[str, Spec] = {
    "glue/cola": Spec(
        "is a sentence acceptable English",
        _form("cola", ("sentence",), ("unacceptable", "acceptable")),
        metrics=("matthews", "accuracy"),
        templates=_templates(
            "cola", ("sentence",), 2, ("matthews",), words=("not_acceptable", "acceptable"), metrics=("matthews",)
        ),
    ),
    "glue/sst2": Spec(
        "sentiment of film-review phrases",
        _form("sst2", ("sentence",), ("negative", "positive")),
        templates=_templates("sst2", ("sentence",), 2),
    ),
    "glue/mrpc": Spec(
        "do two sentences say the same",
        _form("mrpc", _SENTENCES, ("not_equivalent", "equivalent")),
        metrics=("accuracy", "f1"),
        templates=_templates("mrpc", _SENTENCES, 2, ("f1", "accuracy")),
    ),
    "glue/qqp": Spec(
        "are two questions duplicates",
        _form("qqp", _QUESTIONS, ("not_duplicate", "duplicate")),
        metrics=("accuracy", "f1"),
        templates=_templates("qqp", _QUESTIONS, 2, ("f1", "accuracy")),
    ),
    "glue/qnli": Spec(
        "does a sentence answer a question",
        _form("qnli", _ANSWER, _ENTAILMENT, cut=("sentence",)),
        templates=_templates("qnli", _ANSWER, 2, source="text1: {question} text2: {sentence}"),
    ),
    "glue/rte": Spec(
        "does a text entail a sentence",
        _form("rte", _SENTENCES, _ENTAILMENT, cut=("sentence1",)),
        templates=_templates("rte", _SENTENCES, 2),
    ),
    "glue/wnli": Spec(
        "does a sentence follow from resolving a pronoun",
        _form("wnli", _SENTENCES, _ENTAILMENT[::-1]),
        templates=dept("wnli", *_SENTENCES, classes=2),
    ),
    "glue/mnli": Spec(
        "does a premise entail, contradict or leave open a hypothesis",
        _form("mnli", _CLAIM, ("entailment", "neutral", "contradiction"), cut=("premise",)),
        templates=_templates("mnli", _CLAIM, 3),
        more=("validation_mismatched",),
    ),
    "glue/stsb": Spec(
        "how similar two sentences are, 0 to 5",
        _form("stsb", _SENTENCES, (), kind="regression", words=FIFTHS),
        metrics=("pearson", "spearman"),
        prepare=_stsb,
        templates={
            **dept("stsb", *_SENTENCES, classes=0, words=TENTHS),
            **residual(*_SENTENCES, words=TENTHS, metrics=("pearson",), prepare=_stsb_cut),
        },
    ),
}

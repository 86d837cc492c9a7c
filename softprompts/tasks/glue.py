"""GLUE and SuperGLUE."""

from __future__ import annotations

from typing import Any

from softprompts.tasks.form import Form
from softprompts.tasks.spec import Spec

SCORES = tuple(f"{step / 5:.1f}" for step in range(26))  # 0.0, 0.2, ..., 5.0


def _form(word: str, fields: tuple[str, ...], labels: tuple[str, ...], **more: Any) -> Form:
    """The task word and all fields by name, answered with the labels' names."""
    source = " ".join([word, *(f"{name}: {{{name}}}" for name in fields)])
    return Form(labels=labels, fields=fields, **{"source": source, **more})


_SENTENCES = ("sentence1", "sentence2")
_QUESTIONS = ("question1", "question2")
_CLAIM = ("premise", "hypothesis")
_ENTAILMENT = ("entailment", "not_entailment")
_F1 = ("accuracy", "f1")

GLUE: dict[str, Spec] = {
    "glue/cola": Spec(
        "is a sentence acceptable English",
        _form("cola", ("sentence",), ("unacceptable", "acceptable")),
        metrics=("matthews", "accuracy"),
    ),
    "glue/sst2": Spec("sentiment of film-review phrases", _form("sst2", ("sentence",), ("negative", "positive"))),
    "glue/mrpc": Spec(
        "do two sentences say the same", _form("mrpc", _SENTENCES, ("not_equivalent", "equivalent")), metrics=_F1
    ),
    "glue/qqp": Spec(
        "are two questions duplicates", _form("qqp", _QUESTIONS, ("not_duplicate", "duplicate")), metrics=_F1
    ),
    "glue/qnli": Spec(
        "does a sentence answer a question", _form("qnli", ("question", "sentence"), _ENTAILMENT, cut=("sentence",))
    ),
    "glue/rte": Spec("does a text entail a sentence", _form("rte", _SENTENCES, _ENTAILMENT, cut=("sentence1",))),
    "glue/wnli": Spec("does a sentence follow from resolving a pronoun", _form("wnli", _SENTENCES, _ENTAILMENT[::-1])),
    "glue/mnli": Spec(
        "does a premise entail, contradict or leave open a hypothesis",
        _form("mnli", _CLAIM, ("entailment", "neutral", "contradiction"), cut=("premise",)),
        more=("validation_mismatched",),
    ),
    "glue/stsb": Spec(
        "how similar two sentences are, 0 to 5",
        _form("stsb", _SENTENCES, (), kind="regression", words=SCORES),
        metrics=("pearson", "spearman"),
    ),
}

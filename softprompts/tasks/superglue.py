"""SuperGLUE."""

from __future__ import annotations

from softprompts.tasks.form import Form
from softprompts.tasks.spec import Spec

_NO_YES = ("False", "True")

SUPERGLUE: dict[str, Spec] = {
    "super_glue/boolq": Spec(
        "yes-no questions about a passage",
        Form(
            labels=_NO_YES,
            fields=("question", "passage"),
            source="boolq passage: {passage} question: {question}",
            cut=("passage",),
        ),
    ),
    "super_glue/cb": Spec(
        "is a speaker committed to a clause",
        Form(
            labels=("entailment", "contradiction", "neutral"),
            fields=("premise", "hypothesis"),
            source="cb hypothesis: {hypothesis} premise: {premise}",
            cut=("premise",),
        ),
        metrics=("accuracy", "macro_f1"),
    ),
    "super_glue/rte": Spec(
        "does a premise entail a hypothesis",
        Form(
            labels=("entailment", "not_entailment"),
            fields=("premise", "hypothesis"),
            source="rte sentence1: {premise} sentence2: {hypothesis}",
            cut=("premise",),
        ),
    ),
    "super_glue/wic": Spec(
        "does a word mean the same in two sentences",
        Form(
            labels=_NO_YES,
            fields=("sentence1", "sentence2", "word"),
            reading=("{word}: {sentence1}", "{word}: {sentence2}"),
            source="wic sentence1: {sentence1} sentence2: {sentence2} word: {word}",
        ),
    ),
}

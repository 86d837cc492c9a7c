"""The tasks of SuperGLUE."""

from __future__ import annotations

from softprompts.tasks import superglue_rows as rows
from softprompts.tasks.form import CHOICE, Form
from softprompts.tasks.paper_templates import dept, keyed, residual
from softprompts.tasks.spec import Spec

_NO_YES = ("False", "True")
_FALSE_TRUE = ("false", "true")
_ACCURACY = ("accuracy",)
_ANSWERED = ("em", "token_f1")
_COPA = ("choice1", "choice2", "premise", "question")
_MULTIRC = ("question", "answer", "paragraph")
_WSC = ("span1_text", "span1_index", "span2_text", "span2_index", "text")
_RECORD = "record query: {query} entities: {entities} passage: {passage}"
_WIC = ("sentence1", "sentence2", "word")
_WIC_ALL = ("start1", "end1", "sentence1", "start2", "end2", "sentence2", "word")
_WIC_PAIR = ("{word}: {sentence1}", "{word}: {sentence2}")


SUPERGLUE: dict[str, Spec] = {
    "super_glue/boolq": Spec(
        "yes-no questions about a passage",
        Form(
            labels=_NO_YES,
            fields=("question", "passage"),
            source="boolq passage: {passage} question: {question}",
            cut=("passage",),
        ),
        templates={
            "smop": {},
            **dept("superglue-boolq", "question", "passage", classes=2),
            **residual("passage", "question", words=_FALSE_TRUE),
        },
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
        templates={
            # Spelt as in the released code.
            "smop": {"source": "cb hyopthesis: {hypothesis}. premise: {premise}", "metrics": _ACCURACY},
            **dept("superglue-cb", "premise", "hypothesis", classes=3, metrics=("macro_f1", "accuracy")),
            **residual("premise", "hypothesis", metrics=("accuracy+macro_f1",)),
        },
    ),
    "super_glue/copa": Spec(
        "which of two texts is the cause or the effect of a third",
        Form(
            kind="choice",
            fields=(*_COPA, "joiner"),
            reading=("{premise} {joiner}", f"{{{CHOICE}}}"),
            source=keyed(*_COPA, word="copa"),
            words=("choice1", "choice2"),
            choices=("{choice1}", "{choice2}"),
        ),
        prepare=rows.copa,
        templates={
            "smop": {"source": keyed(*_COPA)},
            **dept("superglue-copa", "premise", "choice1", "choice2", classes=2),
            **residual(*_COPA, words=_FALSE_TRUE),
        },
    ),
    "super_glue/multirc": Spec(
        "is an answer to a question about a paragraph right",
        Form(
            labels=_NO_YES,
            fields=("paragraph", "question", "answer"),
            reading=("{paragraph}", "{question} {answer}"),
            source=keyed(*_MULTIRC, word="multirc"),
            cut=("paragraph",),
        ),
        metrics=("f1a", "question_em"),
        prepare=rows.multirc,
        templates={
            "smop": {
                "source": f"{keyed('question', 'answer')}. paragraph: {{paragraph}}",
                "metrics": ("string_macro_f1",),
            },
            **dept("superglue-multirc", *_MULTIRC, classes=2, metrics=("f1",)),
            # The released code's "F1" is micro-averaged over strings, which is accuracy.
            **residual(*_MULTIRC, words=_FALSE_TRUE, metrics=("question_em+accuracy",)),
        },
    ),
    "super_glue/record": Spec(
        "which entity of a passage fills a gap",
        Form(
            kind="ranking",
            fields=("passage", "query", "entities"),
            reading=("{passage}", f"{{{CHOICE}}}"),
            source=_RECORD,
            cut=("passage",),
        ),
        metrics=_ANSWERED,
        prepare=rows.record,
        templates={
            "ptuning": {"prepare": rows.record_listed, "metrics": ("token_f1", "em")},
            **dept("superglue-record", classes=0, source=_RECORD, prepare=rows.record_each),
            "residual": {
                "source": "passage : {passage} query: {query} entities: {entities}",
                "metrics": ("em",),
                "prepare": rows.record_joined,
            },
        },
    ),
    "super_glue/rte": Spec(
        "does a premise entail a hypothesis",
        Form(
            labels=("entailment", "not_entailment"),
            fields=("premise", "hypothesis"),
            source="rte sentence1: {premise} sentence2: {hypothesis}",
            cut=("premise",),
        ),
        templates={
            "smop": {},
            **dept("superglue-rte", "premise", "hypothesis", classes=2),
            **residual("premise", "hypothesis"),
        },
    ),
    "super_glue/wic": Spec(
        "does a word mean the same in two sentences",
        Form(labels=_NO_YES, fields=_WIC, reading=_WIC_PAIR, source=keyed(*_WIC, word="wic")),
        templates={
            "ptuning-0": {"reading": ("{sentence1} {sentence2} Does {word} have the same meaning in both sentences?",)},
            "ptuning-1": {},
            "smop": {},
            **dept("superglue-wic", *_WIC, classes=2),
            **residual(*_WIC_ALL, fields=_WIC_ALL, words=_FALSE_TRUE),
        },
    ),
    "super_glue/wsc": Spec(
        "does a pronoun stand for a noun",
        Form(
            labels=_NO_YES,
            fields=("text", "span1_text", "span2_text", "marked"),
            reading=("{span2_text}: {text}", "{span1_text}"),
            source="wsc text: {marked}",
        ),
        prepare=rows.wsc,
        templates={
            "ptuning-0": {},
            "ptuning-1": {"fields": ("starred", "span1_text", "marked"), "reading": ("{starred}", "{span1_text}")},
            **dept("superglue-wsc.fixed", classes=2, source="text: {marked}"),
            **residual(*_WSC, fields=_WSC, words=_FALSE_TRUE),
            "residual-referent": {
                "kind": "span",
                "labels": (),
                "words": (),
                "fields": ("span2_text", "text", "starred"),
                "reading": ("{span2_text}", "{text}"),
                "source": "{starred}",
                "metrics": ("em",),
                "prepare": rows.wsc_referent,
            },
        },
    ),
}

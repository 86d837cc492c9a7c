"""The kinds of tasks for an encoder: its head's outputs, the encoding of rows, and the reading of predictions.

Of texts and chats, which only language models write, there are the references alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from softprompts.errors import SoftPromptError
from softprompts.tasks.example import Example
from softprompts.tasks.form import Form
from softprompts.tasks.kinds import candidates, labels, multi_label, spans, tags
from softprompts.tasks.kinds.encoded import Encoded


@dataclass(frozen=True)
class Kind:
    """A kind of task.

    Attributes:
        tokens: whether the head scores every token, not the row.
        outputs: how many outputs it has.
        encode: rows to token ids; ``encode(examples, form, tokenizer, max_length, with_answer)``.
        answers: a prediction to one answer an example, ``answers(examples, form, encoded, prediction)``.
        references: the truth, in the form of the answers.
    """

    tokens: bool
    outputs: Callable[[Form], int]
    encode: Callable[[Sequence[Example], Form, PreTrainedTokenizerBase, int, bool], Encoded]
    answers: Callable[[Sequence[Example], Form, Encoded, Any], list[Any]]
    references: Callable[[Sequence[Example], Form], list[Any]]


def _not_read(*arguments: Any) -> Any:
    raise SoftPromptError("an encoder does not write texts")


_WRITTEN = Kind(False, lambda _: 0, _not_read, _not_read, spans.references)
KINDS = {
    "classification": Kind(False, lambda form: len(form.labels), labels.encode, labels.answers, labels.references),
    "multi-label": Kind(
        False, lambda form: len(form.labels), multi_label.encode, multi_label.answers, multi_label.references
    ),
    "regression": Kind(False, lambda _: 1, labels.encode, labels.answers, labels.references),
    "choice": Kind(False, lambda _: 1, candidates.encode_choices, labels.answers, labels.references),
    "ranking": Kind(False, lambda _: 2, candidates.encode_ranking, candidates.answers, spans.references),
    "span": Kind(True, lambda _: 2, spans.encode, spans.answers, spans.references),
    "tagging": Kind(True, lambda form: len(form.labels), tags.encode, tags.answers, tags.references),
    "text": _WRITTEN,
    "chat": _WRITTEN,
}

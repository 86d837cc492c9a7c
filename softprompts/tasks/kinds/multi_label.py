"""Multi-label tasks: any number of the labels for a text or a pair, each a yes or no of its own.

An encoder's head has an output for each label, and its sigmoid is the probability that the label is there. A language
model scores the label words apart: that of a label is the probability of its word among two answers, its word and the
word for none of them, ``sigmoid(log p(word | text) - log p(none | text))``. A label's probability hangs on no other
label. The loss of a row is the mean of the labels' binary cross-entropies, for both kinds of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from softprompts.tasks.decision import Decision
from softprompts.tasks.example import Example
from softprompts.tasks.form import Form
from softprompts.tasks.kinds.encoded import Encoded, encode_texts, tally


def encode(
    examples: Sequence[Example], form: Form, tokenizer: PreTrainedTokenizerBase, max_length: int, with_answer: bool
) -> Encoded:
    """Rows with ``targets``: 1 for each label that the row has, and 0 for the others."""
    rows, cut = encode_texts([example.fields for example in examples], form, tokenizer, max_length)
    more = [{"targets": targets(example, form)} if with_answer else {} for example in examples]
    features = [{**row, **labels} for row, labels in zip(rows, more, strict=True)]
    return Encoded(features, len(cut), cut=tally(cut.values()))


def targets(example: Example, form: Form) -> list[int]:
    """1 for each label that the row has, and 0 for the others."""
    return [int(index in example.label) for index in range(len(form.labels))]


def answers(examples: Sequence[Example], form: Form, encoded: Encoded, prediction: Any) -> list[Any]:
    """Of each row 1 for each label that is likelier than not, and 0 for the others."""
    return Decision().decide(form, prediction.scores).answers


def references(examples: Sequence[Example], form: Form) -> list[Any]:
    """The truth in the same form."""
    return [tuple(targets(example, form)) for example in examples]

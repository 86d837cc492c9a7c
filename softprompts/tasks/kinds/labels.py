"""Classification and regression: one label or score for a text or a pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from softprompts.tasks.example import Example
from softprompts.tasks.form import Form
from softprompts.tasks.kinds.encoded import Encoded, encode_texts, tally


def encode(
    examples: Sequence[Example], form: Form, tokenizer: PreTrainedTokenizerBase, max_length: int, with_answer: bool
) -> Encoded:
    """Rows with ``label``: a class, or a score."""
    rows, cut = encode_texts([example.fields for example in examples], form, tokenizer, max_length)
    labels = [{"label": example.label} if with_answer else {} for example in examples]
    features = [{**row, **label} for row, label in zip(rows, labels, strict=True)]
    return Encoded(features, len(cut), cut=tally(cut.values()))


def answers(examples: Sequence[Example], form: Form, encoded: Encoded, prediction: Any) -> list[Any]:
    """The predicted class, choice or score of each row."""
    return list(prediction.labels)


def references(examples: Sequence[Example], form: Form) -> list[Any]:
    """The class, choice or score of each row."""
    return [example.label for example in examples]

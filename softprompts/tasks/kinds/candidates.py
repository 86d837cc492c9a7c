"""Tasks with several texts to choose from: multiple choice, and ranking of candidates that are each right or wrong.

A choice is read in the place of the field ``choice``. Multiple choice (COPA): a head with one output scores every
choice, and their softmax is trained. Ranking (ReCoRD): each candidate is a row of its own, right or wrong (P-tuning
v2), and the candidate that is likeliest to be right is the answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from softprompts.tasks.example import Example
from softprompts.tasks.form import CHOICE, Form
from softprompts.tasks.kinds.encoded import Encoded, Ids, encode_texts, tally


def encode_choices(
    examples: Sequence[Example], form: Form, tokenizer: PreTrainedTokenizerBase, max_length: int, with_answer: bool
) -> Encoded:
    """Rows with ``choices``, one input each, and ``label``, the index of the right one."""
    owners, rows, cut = _read(examples, form, tokenizer, max_length)
    features: list[dict[str, Any]] = []
    for index, group in itertools.groupby(zip(owners, rows, strict=True), key=lambda pair: pair[0]):
        label = {"label": examples[index].label} if with_answer else {}
        features.append({"choices": [row for _, row in group], **label})
    return Encoded(features, len(cut), cut=tally(cut.values()))


def encode_ranking(
    examples: Sequence[Example], form: Form, tokenizer: PreTrainedTokenizerBase, max_length: int, with_answer: bool
) -> Encoded:
    """A row for each candidate, ``label`` 1 for those that are right and 0 for the others."""
    owners, rows, cut = _read(examples, form, tokenizer, max_length)
    right = [{"label": int(i in (one.label or ()))} for one in examples for i in range(len(one.choices))]
    features = [{**row, **(label if with_answer else {})} for row, label in zip(rows, right, strict=True)]
    return Encoded(features, len(cut), owners, tally(cut.values()))


def answers(examples: Sequence[Example], form: Form, encoded: Encoded, prediction: Any) -> list[Any]:
    """The name of the best candidate of each row."""
    margins: list[list[float]] = [[] for _ in examples]
    for owner, scores in zip(encoded.owners or (), prediction.scores, strict=True):
        margins[owner].append(float(scores[0, 1] - scores[0, 0]))
    best = [row.index(max(row)) for row in margins]
    return [(one.names or one.choices)[index] for one, index in zip(examples, best, strict=True)]


def _read(
    examples: Sequence[Example], form: Form, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[int], list[Ids], dict[int, set[str]]]:
    """Encodes each choice as a row: the example of each row, the rows, and the cut fields of each cut example."""
    owners = [index for index, example in enumerate(examples) for _ in example.choices]
    values = [{**example.fields, CHOICE: choice} for example in examples for choice in example.choices]
    rows, cut = encode_texts(values, form, tokenizer, max_length)
    fields: dict[int, set[str]] = {}
    for index, names in cut.items():
        fields.setdefault(owners[index], set()).update(names)
    return owners, rows, fields

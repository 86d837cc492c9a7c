"""Extractive question answering: finds the part of a context that answers a question.

A context that is too long is read in windows that overlap. In a window without the answer the span to learn is the
first token ([CLS]). Of all windows, the span with the greatest sum of the two scores is the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from softprompts.errors import SoftPromptError
from softprompts.tasks.example import Example
from softprompts.tasks.form import Form
from softprompts.tasks.kinds.encoded import Encoded, clip, require_length
from softprompts.tasks.kinds.tags import require_offsets

_OVERLAP = 128  # most tokens that two windows have in common
_LONGEST = 30  # most tokens of an answer


def encode(
    examples: Sequence[Example], form: Form, tokenizer: PreTrainedTokenizerBase, max_length: int, with_answer: bool
) -> Encoded:
    """A row for each window: ``span`` (first and last token of the answer), ``places`` (of the context's tokens), and
    where these begin and end in the context, ``begins`` and ``ends``.

    Training and prediction read the same rows.
    """
    require_offsets(tokenizer)
    if len(form.reading) != 2:
        raise SoftPromptError("an encoder finds spans in the second of two texts: the form reads only one")
    special = tokenizer.num_special_tokens_to_add(True)
    require_length(max_length, special + 2)
    features: list[dict[str, Any]] = []
    owners: list[int] = []
    truncated = 0
    for index, example in enumerate(examples):
        question, context = form.read(example.fields)
        most = (max_length - special) // 2  # half of the window is the context's
        question = clip({"": question}, lambda row: len(tokenizer(row[""], verbose=False)["input_ids"]), max_length)[""]
        tokens = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        if len(tokens["input_ids"]) > most:
            question, truncated = question[: tokens["offset_mapping"][most - 1][1]], truncated + 1
        room = max_length - special - min(len(tokens["input_ids"]), most)
        batch = tokenizer(
            question,
            context,
            truncation="only_second",
            max_length=max_length,
            stride=min(_OVERLAP, room // 2),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        for window, ids in enumerate(batch["input_ids"]):
            row = _row(batch, window, ids)
            if with_answer:
                row["span"] = _span(example, row)
            features.append(row)
            owners.append(index)
    return Encoded(features, truncated, owners, {form.fields[0]: truncated} if truncated else {})


def _row(batch: Any, window: int, ids: list[int]) -> dict[str, Any]:
    offsets = batch["offset_mapping"][window]
    places = [place for place, part in enumerate(batch.sequence_ids(window)) if part == 1]
    row: dict[str, Any] = {
        "input_ids": ids,
        "places": places,
        "begins": [offsets[place][0] for place in places],
        "ends": [offsets[place][1] for place in places],
    }
    if "token_type_ids" in batch:
        row["token_type_ids"] = batch["token_type_ids"][window]
    return row


def _span(example: Example, row: dict[str, Any]) -> list[int]:
    """First and last token of the first answer; the first token of all where the window does not have it whole."""
    start = example.starts[0]
    end = start + len(example.answers[0])
    tokens = zip(row["places"], row["begins"], row["ends"], strict=True)
    inside = [place for place, begin, finish in tokens if finish > start and begin < end]
    whole = inside and row["begins"][0] <= start and row["ends"][-1] >= end
    return [inside[0], inside[-1]] if whole else [0, 0]


def answers(examples: Sequence[Example], form: Form, encoded: Encoded, prediction: Any) -> list[Any]:
    """The best span of each example as text."""
    best: list[tuple[float, str]] = [(float("-inf"), "")] * len(examples)
    for owner, feature, scores in zip(encoded.owners or (), encoded.features, prediction.scores, strict=True):
        if not len(scores):
            continue
        start, end = scores[:, 0], scores[:, 1]
        sums = start[:, None] + end[None, :]
        allowed = torch.ones_like(sums, dtype=torch.bool).triu().tril(_LONGEST - 1)
        sums = sums.masked_fill(~allowed, float("-inf"))
        first, last = divmod(int(sums.argmax()), len(end))
        score = float(sums[first, last])
        if score > best[owner][0]:
            context = form.read(examples[owner].fields)[1]
            best[owner] = (score, context[feature["begins"][first] : feature["ends"][last]])
    return [text for _, text in best]


def references(examples: Sequence[Example], form: Form) -> list[Any]:
    """The accepted answers of each example."""
    return [example.answers for example in examples]

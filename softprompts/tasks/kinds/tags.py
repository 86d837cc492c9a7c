"""Tagging: one tag for each word, predicted at the word's first token."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from softprompts.errors import SoftPromptError
from softprompts.tasks.batches import IGNORED
from softprompts.tasks.example import Example
from softprompts.tasks.form import Form
from softprompts.tasks.kinds.encoded import Encoded, clip, require_length

_OUTSIDE = "O"
_WORDS = "words"


def encode(
    examples: Sequence[Example], form: Form, tokenizer: PreTrainedTokenizerBase, max_length: int, with_answer: bool
) -> Encoded:
    """Rows with ``labels``, a tag at the first token of each word and -100 elsewhere, and ``places`` of these tokens.

    ``words`` says which word each place is of: a word without a token, or behind ``max_length``, has none.
    """
    require_offsets(tokenizer)
    require_length(max_length, tokenizer.num_special_tokens_to_add() + 1)
    if not examples:
        return Encoded([], 0)

    def length(row: Mapping[str, str]) -> int:
        return len(tokenizer(row[_WORDS], verbose=False)["input_ids"])

    batch = tokenizer(
        [clip({_WORDS: " ".join(example.words)}, length, max_length)[_WORDS] for example in examples],
        truncation=True,
        max_length=max_length,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        verbose=False,
    )
    features: list[dict[str, Any]] = []
    truncated = 0
    for index, example in enumerate(examples):
        ids = batch["input_ids"][index]
        tokens = zip(batch["offset_mapping"][index], batch["special_tokens_mask"][index], strict=True)
        spans = [
            (place, start, end) for place, ((start, end), special) in enumerate(tokens) if not special and end > start
        ]
        ends = [end for _, _, end in spans]
        places, words, start = [], [], 0
        for number, word in enumerate(example.words):
            first = bisect.bisect_right(ends, start)  # the first token that ends behind the word's first character
            if first < len(spans) and spans[first][1] < start + len(word):
                places.append(spans[first][0])
                words.append(number)
            start += len(word) + 1
        truncated += bool(ends) and len(ids) >= max_length and ends[-1] < start - 1
        row: dict[str, Any] = {"input_ids": ids, "places": places, "words": words}
        if "token_type_ids" in batch:
            row["token_type_ids"] = batch["token_type_ids"][index]
        if with_answer:
            row["labels"] = [IGNORED] * len(ids)
            for place, number in zip(places, words, strict=True):
                row["labels"][place] = example.label[number]
        features.append(row)
    return Encoded(features, truncated, cut={_WORDS: truncated} if truncated else {})


def answers(examples: Sequence[Example], form: Form, encoded: Encoded, prediction: Any) -> list[Any]:
    """The tags of each row's words by name; those of words that were not read are "O" (or the first tag)."""
    outside = _OUTSIDE if _OUTSIDE in form.labels else form.labels[0]
    rows = []
    for example, feature, labels in zip(examples, encoded.features, prediction.labels, strict=True):
        tags = [outside] * len(example.words)
        for number, label in zip(feature["words"], labels, strict=True):
            tags[number] = form.labels[label]
        rows.append(tags)
    return rows


def references(examples: Sequence[Example], form: Form) -> list[Any]:
    """The tags of each row's words by name."""
    return [[form.labels[label] for label in example.label] for example in examples]


def require_offsets(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises a `SoftPromptError` where a tokenizer does not know which characters its tokens are."""
    if not tokenizer.is_fast:
        raise SoftPromptError(f"{type(tokenizer).__name__} does not say which characters a token is: use a fast one")

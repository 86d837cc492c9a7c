"""Encoded rows, and the cutting of what is too long."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from softprompts.errors import SoftPromptError
from softprompts.tasks.form import Form

Ids = dict[str, list[int]]


@dataclass(frozen=True)
class Encoded:
    """Rows for `collate`.

    Attributes:
        features: one dict of token ids a row of the model.
        truncated: number of examples that had to be cut to ``max_length``.
        owners: the example that each row is of; None: one row an example, in their order.
    """

    features: list[dict[str, Any]]
    truncated: int
    owners: list[int] | None = None


def encode_texts(
    values: Sequence[Mapping[str, str]], form: Form, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[Ids], list[int]]:
    """What an encoder reads of some rows' fields, and which of them had to be cut."""
    if not values:
        return [], []
    paired = len(form.reading) == 2
    require_room(max_length, tokenizer.num_special_tokens_to_add(paired) + (2 if paired else 1))

    def tokenize(rows: Sequence[Mapping[str, str]]) -> list[Ids]:
        texts = list(zip(*map(form.read, rows), strict=True))
        batch = tokenizer(*map(list, texts), verbose=False)
        names = [name for name in ("input_ids", "token_type_ids") if name in batch]
        return [{name: batch[name][index] for name in names} for index in range(len(rows))]

    rows = tokenize(values)
    cut = [index for index, row in enumerate(rows) if len(row["input_ids"]) > max_length]
    for index in cut:
        shorter = shorten(values[index], form, lambda row: len(tokenize([row])[0]["input_ids"]), max_length, max_length)
        rows[index] = tokenize([shorter])[0]
    return rows, cut


def require_room(max_length: int, least: int) -> None:
    """Raises a `SoftPromptError` where a row of ``max_length`` tokens holds no text."""
    if max_length < least:
        raise SoftPromptError(f"max_length is {max_length}: too short for any text")


def shorten(
    values: Mapping[str, str], form: Form, length: Callable[[Mapping[str, str]], int], room: int, max_length: int
) -> dict[str, str]:
    """The fields of a row, cut so that it has at most ``room`` tokens.

    Args:
        values: the fields.
        form: says what is cut first.
        length: the number of tokens of a row with these fields.
        room: most of them.
        max_length: named in the error.

    Raises:
        SoftPromptError: there is no room for anything.
    """
    texts = dict(values)
    if length(dict.fromkeys(texts, "")) >= room:
        require_room(max_length, max_length + 1)
    while (tokens := length(texts)) > room:
        first = next((name for name in form.cut if texts.get(name)), None)
        name = first or max(texts, key=lambda name: len(texts[name]))
        # A little less than what is too much, at least one character, and look again.
        characters = 0.9 * (tokens - room) * sum(map(len, texts.values())) / tokens
        texts[name] = texts[name][: max(0, len(texts[name]) - max(1, int(characters)))].rstrip()
    return texts

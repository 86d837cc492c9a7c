"""Encoded rows, and the truncation of rows that are too long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from softprompts.errors import SoftPromptError
from softprompts.tasks.form import Form, fields_of

Ids = dict[str, list[int]]
Fields = Mapping[str, str]
_GENEROUS = 40  # characters for each token: hardly a text has so many


@dataclass(frozen=True)
class Encoded:
    """Rows for `collate`.

    Attributes:
        features: one dict of token ids a row of the model.
        truncated: number of examples that had to be cut to ``max_length``.
        owners: the example that each row is of; None: one row an example, in their order.
        cut: number of examples of which a field was cut, by the field's name.
    """

    features: list[dict[str, Any]]
    truncated: int
    owners: list[int] | None = None
    cut: dict[str, int] = field(default_factory=dict)


def encode_texts(
    values: Sequence[Fields], form: Form, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[Ids], dict[int, tuple[str, ...]]]:
    """Tokenises fields for an encoder; returns the rows, and for each row that was cut the fields that were."""
    if not values:
        return [], {}
    paired = len(form.reading) == 2
    require_length(max_length, tokenizer.num_special_tokens_to_add(paired) + (2 if paired else 1))

    def tokenize(rows: Sequence[Fields]) -> list[Ids]:
        texts = list(zip(*map(form.read, rows), strict=True))
        batch = tokenizer(*map(list, texts), verbose=False)
        names = [name for name in ("input_ids", "token_type_ids") if name in batch]
        return [{name: batch[name][index] for name in names} for index in range(len(rows))]

    def length(row: Fields) -> int:
        return len(tokenize([row])[0]["input_ids"])

    clipped = [clip(row, length, max_length) for row in values]
    rows = tokenize(clipped)
    cut = {}
    for index, row in enumerate(rows):
        if len(row["input_ids"]) > max_length:
            shorter = shorten(clipped[index], form.reading, form.cut, length, max_length, max_length)
            rows[index], cut[index] = tokenize([shorter])[0], changed(values[index], shorter, form.reading)
    return rows, cut


def changed(values: Fields, shorter: Fields, templates: Iterable[str]) -> tuple[str, ...]:
    """The fields that were cut, of those that templates name."""
    used = fields_of(templates)
    return tuple(name for name, text in values.items() if name in used and shorter[name] != text)


def tally(cut: Iterable[Iterable[str]]) -> dict[str, int]:
    """Counts in how many examples each field was cut."""
    return dict(Counter(name for names in cut for name in names))


def clip(values: Fields, length: Callable[[Fields], int], room: int) -> Fields:
    """The fields of a row, of very long texts only a beginning that still has more than ``room`` tokens.

    Tokenising all of such a text, and again after each cut, takes many seconds.
    """
    size, longest = _GENEROUS * room, max(map(len, values.values()))
    while size < longest:
        texts = {name: text[:size] for name, text in values.items()}
        if length(texts) > room:
            return texts
        size *= 4
    return values


def require_length(max_length: int, least: int) -> None:
    """Raises a `SoftPromptError` where a row of ``max_length`` tokens holds no text."""
    if max_length < least:
        raise SoftPromptError(f"max_length is {max_length}: too short for any text")


def shorten(
    row: Fields,
    templates: Iterable[str],
    cut: Sequence[str],
    length: Callable[[Fields], int],
    room: int,
    max_length: int,
) -> dict[str, str]:
    """Cuts the fields of a row that templates name, first those in ``cut``, so that it has at most ``room`` tokens.

    ``length`` counts the tokens of a row with these fields; ``max_length`` is named in the error.

    Raises:
        SoftPromptError: there is no room for anything.
    """
    used = fields_of(templates)
    texts = {name: text for name, text in row.items() if name in used}
    if length(dict.fromkeys(row, "")) >= room:
        require_length(max_length, max_length + 1)
    while (tokens := length(texts)) > room:
        first = next((name for name in cut if texts.get(name)), None)
        name = first or max(texts, key=lambda name: len(texts[name]))
        # A little less than what is too much, at least one character, and look again.
        characters = 0.9 * (tokens - room) * sum(map(len, texts.values())) / tokens
        texts[name] = texts[name][: max(0, len(texts[name]) - max(1, int(characters)))].rstrip()
    return {**row, **texts}

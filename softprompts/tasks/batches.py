"""Makes batches of rows of token ids: padding, and the grouping of rows of similar length."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from softprompts.errors import SoftPromptError

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
LABELS = ("labels", "spans", "targets")  # what a batch holds beside its input
ABOUT_ROWS = (*LABELS, "choices", "weights")  # what it holds of rows, not of inputs
NO_TARGET = -1  # of a label that a row's prompt does not have
_SIDES = ("left", "right")
_POOL_BATCHES = 50  # that are sorted by length together


def collate(features: Sequence[Mapping[str, Any]], pad_id: int, padding_side: str = "right") -> dict[str, Tensor]:
    """Pads rows of `encode_examples` to the longest one.

    Args:
        features: rows with ``input_ids``, maybe ``token_type_ids``, and ``labels`` (a label for each token), ``span``
            (first and last token), ``targets`` (1 or 0 for each of several labels) or just ``label``. Or rows of
            ``choices``, each such a row without a label, and the ``label`` that is the right one's index; or with all
            answers of a language model for choices, and ``targets``. ``weight``, where a row has one, multiplies its
            loss; beside ``targets`` it is a list, of each label.
        pad_id: fills the input; the attention mask says which tokens are real.
        padding_side: "right" or "left". The answers of an encoder-decoder are padded on the right all the same.

    Returns:
        ``input_ids`` and ``attention_mask`` (B, T), ``token_type_ids`` (B, T) if the rows have them, ``labels``: token
        ids (B, T) padded with -100, or else (B,), long for classes and float for scores; ``spans`` (B, 2) in their
        place, or ``targets`` (B, L), -1 behind a row's last label. Choices are rows of their own in the input, one
        after the other, and ``choices`` (B,) says how many each row has. No labels where the rows have none.
        ``weights`` (B,) or (B, L), where a row has one: 1 for the others.

    Raises:
        SoftPromptError: no rows, rows of several forms, or an unknown side.
    """
    import torch  # here: `softprompts tasks` needs none of it

    if not features:
        raise SoftPromptError("there are no rows to put into a batch")
    if padding_side not in _SIDES:
        raise SoftPromptError(f"padding_side is '{padding_side}', known: {', '.join(_SIDES)}")
    if "choices" in features[0]:
        batch = collate([choice for row in features for choice in row["choices"]], pad_id, padding_side)
        batch["choices"] = torch.tensor([len(row["choices"]) for row in features])
        if "targets" in features[0]:
            batch["targets"] = _pad([row["targets"] for row in features], NO_TARGET, "right")
        elif "label" in features[0]:
            batch["labels"] = torch.tensor([row["label"] for row in features], dtype=torch.long)
        return batch | _weights(features)
    ids = [row["input_ids"] for row in features]
    batch = {
        "input_ids": _pad(ids, pad_id, padding_side),
        "attention_mask": _pad([[1] * len(row) for row in ids], 0, padding_side),
    }
    if "token_type_ids" in features[0]:
        batch["token_type_ids"] = _pad([row["token_type_ids"] for row in features], 0, padding_side)
    if "span" in features[0]:
        spans = torch.tensor([row["span"] for row in features], dtype=torch.long)
        if padding_side == "left":
            spans += (batch["attention_mask"] == 0).sum(1, keepdim=True)
        batch["spans"] = spans
    elif "labels" in features[0]:
        labels = [row["labels"] for row in features]
        # A decoder's labels lie beside its input, whose first token is never an answer; an encoder-decoder's do not.
        beside_input = labels[0][0] == IGNORED
        batch["labels"] = _pad(labels, IGNORED, padding_side if beside_input else "right")
    elif "targets" in features[0]:
        batch["targets"] = _pad([row["targets"] for row in features], NO_TARGET, "right")
    elif "label" in features[0]:
        values = [row["label"] for row in features]
        scores = any(isinstance(value, float) for value in values)
        batch["labels"] = torch.tensor(values, dtype=torch.float32 if scores else torch.long)
    return batch | _weights(features)


def _weights(features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """What multiplies the losses of rows, where a row says so."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    if not any("weight" in row for row in features):
        return {}
    given = [row.get("weight", [1.0] * len(row["targets"]) if "targets" in row else 1.0) for row in features]
    weights = [torch.tensor(weight, dtype=torch.float64) for weight in given]
    return {"weights": pad_sequence(weights, batch_first=True) if weights[0].dim() else torch.stack(weights)}


def inputs_of(feature: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The inputs of a row: itself, or its choices."""
    return feature.get("choices") or [feature]


def length_of(feature: Mapping[str, Any]) -> int:
    """The number of tokens of a row's longest input."""
    return max(len(row["input_ids"]) for row in inputs_of(feature))


def _pad(rows: Sequence[Sequence[int]], fill: int, side: str) -> Tensor:
    import torch
    from torch.nn.utils.rnn import pad_sequence

    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=fill, padding_side=side)


def length_bucketed_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Shuffled batches in which rows are of similar length, so that little is spent on padding.

    Rows are shuffled and cut into pools; each pool is sorted by length and cut into batches; the batches are shuffled.
    Which rows meet in a batch depends on the seed. Which lengths come when does not: runs on the same rows with the
    same batch size see batches of like length in the same step, so runs that share a pass need little padding.

    The same seed and epoch give the same batches, on every machine.

    Returns:
        Indices of rows, every row in exactly one batch; one batch may be smaller.
    """
    order = _shuffled(len(lengths), batch_size, seed, epoch)
    size = batch_size * _POOL_BATCHES
    batches = []
    for start in range(0, len(order), size):
        pool = sorted(order[start : start + size], key=lambda index: lengths[index])
        batches += [pool[at : at + batch_size] for at in range(0, len(pool), batch_size)]
    random.Random(f"widths {epoch}").shuffle(batches)
    return batches


def shuffled_batches(count: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Batches of rows drawn at random, whatever their lengths, as other trainers have them by default.

    The same seed and epoch give the same batches, on every machine.

    Returns:
        Indices of ``count`` rows, every row in exactly one batch; the last one may be smaller.
    """
    order = _shuffled(count, batch_size, seed, epoch)
    return [order[at : at + batch_size] for at in range(0, count, batch_size)]


def _shuffled(count: int, batch_size: int, seed: int, epoch: int) -> list[int]:
    if batch_size < 1:
        raise SoftPromptError(f"batch_size is {batch_size}: it must be at least 1")
    order = list(range(count))
    random.Random(f"batches {seed} {epoch}").shuffle(order)
    return order

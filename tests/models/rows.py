"""Rows of tokens for a model of each task, how they are padded, and what a call gives for each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LENGTHS = (7, 4, 5)
PROMPT = (31, 12, 45)  # tokens that a prompt holds
SHORT = (23, 50)
CHOICES = 2
NEW = 3  # generated tokens


@dataclass
class Row:
    """The tokens of one row, or of each of its choices, and what the model is to say."""

    ids: list[list[int]]  # one list, or one a choice
    target: list[int]  # tokens of a decoder
    label: int
    extra: dict[str, Tensor] = field(default_factory=dict)  # an image, a sound: inputs with a first axis of rows
    marks: dict[str, list[Any]] = field(default_factory=dict)  # inputs with a number, or some, per token

    def typed(self, tokens: Sequence[int], place: int) -> Row:
        """With tokens typed behind the first ``place`` of its own."""
        ids = [[*ids[:place], *tokens, *ids[place:]] for ids in self.ids]
        marks = {}
        for key, value in self.marks.items():
            nothing = [0] * len(value[0]) if isinstance(value[0], list) else 0
            marks[key] = [*value[:place], *([nothing] * len(tokens)), *value[place:]]
        return Row(ids, self.target, self.label, self.extra, marks)

    def without(self, typed: tuple[int, int]) -> Row:
        """With what was typed at these columns taken out again."""
        ids = [ids[: typed[0]] + ids[typed[1] :] for ids in self.ids]
        marks = {key: value[: typed[0]] + value[typed[1] :] for key, value in self.marks.items()}
        return Row(ids, self.target, self.label, self.extra, marks)


def rows_of(task: str, ids: Sequence[int] = range(5, 80), seed: int = 3) -> list[Row]:
    """Three rows of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    known = torch.tensor(list(ids))

    def draw(count: int) -> list[int]:
        return known[torch.randint(len(known), (count,), generator=generator)].tolist()

    choices = CHOICES if task == "choice" else 1
    return [Row([draw(length) for _ in range(choices)], draw(4), index % 2) for index, length in enumerate(LENGTHS)]


@dataclass
class Batch:
    """Rows as a model takes them.

    Attributes:
        inputs: the arguments of ``forward``.
        real: for each row, the columns of its tokens.
    """

    inputs: dict[str, Any]
    real: list[slice]


def batch_of(
    rows: Sequence[Row],
    task: str,
    pad: str = "right",
    skip: tuple[int, int] = (0, 0),
    labels: bool = False,
    masked: bool = True,
) -> Batch:
    """Pads rows on one side; ``skip`` names columns of tokens that were typed: (first, behind the last)."""
    columns = max(len(ids) for row in rows for ids in row.ids)
    ids, mask, real = [], [], []
    for row in rows:
        for tokens in row.ids:
            empty = columns - len(tokens)
            front = empty if pad == "left" else 0
            ids.append([0] * front + tokens + [0] * (empty - front))
            mask.append([0] * front + [1] * len(tokens) + [0] * (empty - front))
        real.append(slice(front, front + len(row.ids[-1])))
    inputs: dict[str, Any] = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    if not masked:
        del inputs["attention_mask"]
    if task == "choice":
        inputs = {name: value.view(len(rows), CHOICES, columns) for name, value in inputs.items()}
    if task == "seq2seq":
        targets = torch.tensor([row.target for row in rows])
        inputs["labels" if labels else "decoder_input_ids"] = targets
    elif labels and task in ("causal", "tokens"):
        wanted = torch.full((len(rows), columns), -100)
        for number, (row, columns_) in enumerate(zip(rows, real, strict=True)):
            tokens = list(row.ids[0])
            tokens[skip[0] : skip[1]] = [-100] * (skip[1] - skip[0])
            tokens[0 if skip[0] else skip[1]] = -100  # nothing predicts the first token
            if task == "tokens":
                tokens = [token if token < 0 else token % 3 for token in tokens]
            wanted[number, columns_] = torch.tensor(tokens)
        inputs["labels"] = wanted
    elif labels and task in ("rows", "choice"):
        inputs["labels"] = torch.tensor([row.label for row in rows])
    for name in rows[0].marks:
        nothing = [0] * len(rows[0].marks[name][0]) if isinstance(rows[0].marks[name][0], list) else 0
        padded = []
        for row in rows:
            empty = [nothing] * (columns - len(row.marks[name]))
            padded.append([*empty, *row.marks[name]] if pad == "left" else [*row.marks[name], *empty])
        inputs[name] = torch.tensor(padded)
    extra = {name: [row.extra[name] for row in rows if name in row.extra] for row in rows for name in row.extra}
    inputs |= {name: torch.cat(values) for name, values in extra.items()}
    return Batch(inputs, real)


def said(output: Any, batch: Batch, task: str, skip: tuple[int, int] = (0, 0)) -> list[Tensor]:
    """What a call says of each row: logits at its tokens, those in ``skip`` left out; or the logits of the row."""
    if task in ("rows", "choice", "seq2seq"):
        return list(output.logits.detach())
    logits = torch.stack([output.start_logits, output.end_logits], -1) if task == "spans" else output.logits
    columns = batch.inputs["input_ids"].shape[1]
    if logits.shape[1] != columns:
        raise ShapeError(f"{logits.shape[1]} columns of logits for {columns} tokens")
    found = []
    for row, real in zip(logits.detach(), batch.real, strict=True):
        own = row[real]
        found.append(torch.cat([own[: skip[0]], own[skip[1] :]]))
    return found


class ShapeError(Exception):
    """Logits that do not have the shape of the input."""


def difference(ours: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """The largest difference, as a share of the largest number (1 at least)."""
    worst = 0.0
    for one, other in zip(ours, right, strict=True):
        if one.shape != other.shape:
            raise ShapeError(f"{tuple(one.shape)} in place of {tuple(other.shape)}")
        hidden = torch.isinf(one) & (one == other) | (one < -1e30) & (other < -1e30) | one.isnan() & other.isnan()
        both = torch.where(hidden, torch.zeros_like(one), (one - other).abs())
        scale = max(1.0, float(other[~hidden].abs().max()) if bool((~hidden).any()) else 1.0)
        gap = float(both.max()) / scale
        worst = max(worst, gap if gap == gap else float("inf"))
    return worst


def span_loss(logits: Sequence[Tensor]) -> Tensor:
    """A loss on start and end logits of a row's own tokens."""
    total = torch.zeros(())
    for row in logits:
        total = total + F.cross_entropy(row.transpose(0, 1), torch.tensor([1, 2]))
    return total

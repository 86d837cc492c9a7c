"""Losses row by row, so that one forward pass serves lanes that each take the mean over their own rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

from softprompts.tasks.collate import IGNORED


def row_losses(kind: str, logits: Tensor, labels: Tensor) -> Tensor:
    """The summed loss of each row, ``(R,)``, on the device of the logits.

    Args:
        kind: the backbone's kind; a "decoder" predicts the next token.
        logits: ``(R, C)`` or ``(R, T, V)``; columns that a row's head does not have are -inf.
        labels: ``(R,)`` of classes, or of values where they are floating point or the head has one output; ``(R, T)``
            of tokens with -100 where none counts. They may be on the CPU, where collating leaves them.
    """
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    if labels.dim() == 1:
        if labels.is_floating_point() or logits.shape[-1] == 1:
            return mse_loss(logits[:, 0], labels.to(logits), reduction="none")
        return cross_entropy(logits, labels.to(logits.device), reduction="none")
    shift = 1 if kind == "decoder" else 0
    # Most positions are context or padding, and a vocabulary is wide: pick out those that count. They are looked up
    # where the labels are, so that with labels on the CPU a GPU is not waited for.
    rows, columns = (labels[:, shift:] != IGNORED).nonzero(as_tuple=True)
    targets = labels[rows, columns + shift].to(logits.device)
    rows, columns = rows.to(logits.device), columns.to(logits.device)
    losses = cross_entropy(logits[rows, columns], targets, reduction="none")
    return losses.new_zeros(labels.shape).index_put((rows, columns), losses).sum(1)


def label_count(kind: str, rows: Sequence[Mapping[str, Any]]) -> int:
    """How many labels of some rows count towards the mean: one per class or value, else the target tokens."""
    first = 1 if kind == "decoder" else 0
    return sum(sum(label != IGNORED for label in row["labels"][first:]) if "labels" in row else 1 for row in rows)

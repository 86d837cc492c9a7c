"""Losses row by row, so that one forward pass serves lanes that each take the mean over their own rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

from softprompts.readout import at_places
from softprompts.tasks.collate import IGNORED


def row_losses(kind: str, logits: Tensor, labels: Tensor) -> Tensor:
    """The summed loss of each row, ``(R,)``, on the device of the logits.

    Args:
        kind: the backbone's kind; a "decoder" predicts the next token.
        logits: ``(R, C)`` or ``(R, T, V)``; columns that a row's head does not have are -inf.
        labels: ``(R,)`` of classes, or of values where they are floating point or the head has one output; ``(R, T)``
            of tokens with -100 where none counts. They may be on the CPU, where collating leaves them.
    """
    if labels.dim() == 1:
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()
        if labels.is_floating_point() or logits.shape[-1] == 1:
            return mse_loss(logits[:, 0], labels.to(logits), reduction="none")
        return cross_entropy(logits, labels.to(logits.device), reduction="none")
    read = _Read(kind, labels)
    return read.losses(logits.flatten(0, 1).index_select(0, read.places.to(logits.device)))


def pass_losses(model: Any, inputs: Mapping[str, Any], labels: Tensor, prompt_names: Any) -> Tensor:
    """One forward pass, and the summed loss of each row, ``(R,)``.

    Most positions of a language model's input are context or padding, and a vocabulary is wide: its logits are
    computed only where a label counts.

    Args:
        model: an attached model.
        inputs: the arguments of its ``forward``, without labels.
        labels: see `row_losses`.
        prompt_names: as for ``forward``.
    """
    head = model.get_output_embeddings() if labels.dim() == 2 else None
    if head is None:
        return row_losses(model.backbone_kind, model(**inputs, prompt_names=prompt_names).logits, labels)
    read = _Read(model.backbone_kind, labels)
    with at_places(head, labels.shape, read.places) as done:
        logits = model(**inputs, prompt_names=prompt_names).logits
    if not done:  # a head that is called with something else than hidden states (R, T, d), or not at all
        return row_losses(model.backbone_kind, logits, labels)
    return read.losses(logits.flatten(0, 1))


class _Read:
    """The positions whose logits enter a loss, looked up where the labels are.

    With labels on the CPU, a GPU is not waited for.

    Attributes:
        places: ``(P,)``, indices into the ``R*T`` positions.
    """

    def __init__(self, kind: str, labels: Tensor):
        shift = 1 if kind == "decoder" else 0  # the position before a token predicts it
        rows, columns = (labels[:, shift:] != IGNORED).nonzero(as_tuple=True)
        self.targets = labels[rows, columns + shift]
        self.places = rows * labels.shape[1] + columns
        self.shape = labels.shape

    def losses(self, logits: Tensor) -> Tensor:
        """The loss of each row, ``(R,)``, from the logits ``(P, V)``."""
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()
        losses = cross_entropy(logits, self.targets.to(logits.device), reduction="none")
        places = self.places.to(logits.device)
        return losses.new_zeros(self.shape.numel()).index_put((places,), losses).view(self.shape).sum(1)


def label_count(kind: str, rows: Sequence[Mapping[str, Any]]) -> int:
    """How many labels of some rows count towards the mean: one per class or value, else the target tokens."""
    first = 1 if kind == "decoder" else 0
    return sum(sum(label != IGNORED for label in row["labels"][first:]) if "labels" in row else 1 for row in rows)

"""The loss of classifiers, where every row has the labels of its own prompt."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from softprompts.backbones.task_head import IGNORED, problem_of, row_losses, wide
from softprompts.injection.batch_pass import Pass


def classification_loss(
    logits: Tensor, labels: Tensor, pass_: Pass, num_labels: int, problem: str | None, num_items: Any = None
) -> Tensor:
    """Mean loss over rows, each by the labels of its own prompt (rows without a prompt: by those of the model).

    Rows with the class -100 do not count, as in transformers.

    Args:
        logits: ``(B, C)``.
        labels: ``(B,)`` or ``(B, C)``.
        pass_: which row has which prompt.
        num_labels: ``C`` of rows without a prompt.
        problem: transformers' ``problem_type``; "token_classification" for labels ``(B, n)``, the mean then being one
            over tokens.
        num_items: HF Trainer's number of labels over an accumulated batch, which then divides the sum.
    """
    labels = labels.to(logits.device)
    if problem == "token_classification":
        reduction = "mean" if num_items is None else "sum"
        total = F.cross_entropy(wide(logits).flatten(0, -2), labels.flatten(), reduction=reduction)
        return total if num_items is None else total / num_items
    losses, counted = [], torch.zeros((), device=logits.device)
    groups = pass_.groups(len(logits), logits.device)
    for name, outputs, targets in zip(groups.names, groups.split(logits), groups.split(labels), strict=True):
        width = num_labels if name is None else pass_.prompts[name].num_labels or logits.shape[-1]
        losses.append(row_losses(outputs, targets, width, problem))
        classes = (problem or problem_of(targets, width)) == "single_label_classification"
        counted = counted + ((targets != IGNORED).sum() if classes else len(targets))
    total = torch.cat(losses).sum()
    # A row may have several labels.
    return total / counted if num_items is None else total * (labels.numel() / len(labels)) / num_items

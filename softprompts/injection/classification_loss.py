"""TODO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from softprompts.injection.batch_pass import Pass

if TYPE_CHECKING:
    from softprompts.injection.prompt import Prompt


_IGNORED = -100


def row_losses(logits: Tensor, labels: Tensor, num_labels: int, problem: str | None = None) -> Tensor:
    """The loss of each row of one prompt, ``(R,)``; 0 for rows with the class -100.

    Args:
        logits: ``(R, C)``, of which the first ``num_labels`` columns count.
        labels: ``(R,)`` class ids, ``(R,)`` floats (regression) or ``(R, C)`` floats (several labels a row; columns
            from ``num_labels`` on are padding).
        num_labels: ``C`` of this prompt.
        problem: transformers' ``problem_type``; None to tell from the labels.
    """
    logits = wide(logits[:, :num_labels])
    problem = problem or _problem_of(labels, num_labels)
    if problem == "regression":
        return F.mse_loss(
            logits.reshape(len(logits), -1), labels.reshape(len(logits), -1).to(logits), reduction="none"
        ).mean(1)
    if problem == "single_label_classification":
        return F.cross_entropy(logits, labels.view(-1).long(), reduction="none")
    labels = labels[:, :num_labels].to(logits)
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)


def _problem_of(labels: Tensor, num_labels: int) -> str:
    if num_labels == 1:
        return "regression"
    return "multi_label_classification" if labels.is_floating_point() else "single_label_classification"


def wide(logits: Tensor) -> Tensor:
    """Numbers to compute with: those in half precision in single."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def classification_loss(
    logits: Tensor,
    labels: Tensor,
    pass_: Pass,
    prompts: Mapping[str, Prompt],
    num_labels: int,
    problem: str | None,
    num_items: Any = None,
) -> Tensor:
    """Mean loss over rows, each by the labels of its own prompt (rows without a prompt: by those of the model).

    Rows with the class -100 do not count, as in transformers.

    Args:
        logits: ``(B, C)``.
        labels: ``(B,)`` or ``(B, C)``.
        pass_: who owns which row.
        prompts: the prompts by name.
        num_labels: ``C`` of rows without a prompt.
        problem: transformers' ``problem_type``; "token_classification" for labels ``(B, n)``, the mean then being one
            over tokens.
        num_items: HF Trainer's number of labels over an accumulated batch, which then divides the sum.
    """
    labels = labels.to(logits.device)
    if problem == "token_classification":
        kind = "mean" if num_items is None else "sum"
        total = F.cross_entropy(wide(logits).flatten(0, -2), labels.flatten(), reduction=kind)
        return total if num_items is None else total / num_items
    losses, counted = [], torch.zeros((), device=logits.device)
    for name, index in pass_.groups_of(logits.shape[0], logits.device).items():
        width = num_labels if name is None else prompts[name].num_labels or logits.shape[-1]
        rows = slice(None) if index is None else index
        own = labels[rows]
        losses.append(row_losses(logits[rows], own, width, problem))
        classes = (problem or _problem_of(own, width)) == "single_label_classification"
        counted = counted + ((own != _IGNORED).sum() if classes else len(own))
    total = torch.cat(losses)
    if num_items is None:
        return total.sum() / counted
    # A row may have several labels.
    share: Tensor = total.sum() * (labels.numel() / len(labels)) / num_items
    return share

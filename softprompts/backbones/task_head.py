"""Task heads: the modules of a model behind its backbone, the copies of them that prompts train, and their losses."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from softprompts.backbones import quantized, sharded
from softprompts.errors import SoftPromptError

DISPATCH = "_softprompt_head"  # where a head module of an attached model keeps what sends its rows to prompts' copies
IGNORED = -100  # the class of rows that do not count, as in transformers


def find(model: PreTrainedModel) -> list[str]:
    """Returns the names of the top-level modules that make up the task head; none for base and language models."""
    if model.base_model is model or model.get_output_embeddings() is not None:
        return []
    in_base = set(model.base_model.modules())
    return [
        name
        for name, module in model.named_children()
        if module not in in_base and next(module.parameters(), None) is not None
    ]


def last_linear(head: nn.Module) -> tuple[str, nn.Linear] | None:
    """Returns the last linear layer of a head, which makes its outputs, and its name; None without one."""
    linear = [(name, module) for name, module in head.named_modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else None


def num_outputs(head: nn.Module) -> int | None:
    """Returns the number of a head's outputs; None if no linear layer makes them."""
    last = last_linear(head)
    return None if last is None else last[1].out_features


def new(originals: Mapping[str, nn.Module], num_labels: int | None, model: PreTrainedModel) -> nn.ModuleDict | None:
    """Returns a trainable copy of the model's head, with a new last layer if the number of labels differs."""
    if not originals:
        return None
    if any(sharded.is_sharded(parameter) for module in originals.values() for parameter in module.parameters()):
        raise SoftPromptError(
            f"the task head of {type(model).__name__} was loaded in parts and cannot be copied: load the model whole "
            "(zero3_init_flag: false), and shard it after attaching"
        )
    head = nn.ModuleDict({name: _plain_copy(module) for name, module in originals.items()})
    head.requires_grad_(True)
    if num_labels is not None and num_outputs(head) != num_labels:
        last = last_linear(head)
        if last is None:
            raise SoftPromptError(f"can make no head for {num_labels} labels: {type(model).__name__} has no linear one")
        path, old = last
        layer = nn.Linear(old.in_features, num_labels, old.bias is not None, device=old.weight.device)
        nn.init.normal_(layer.weight, std=getattr(model.config, "initializer_range", 0.02))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
        parent, _, name = path.rpartition(".")
        head.get_submodule(parent)._modules[name] = layer
    return head


def _plain_copy(module: nn.Module) -> nn.Module:
    """Copies a head module without the per-row dispatch of an attached model, and without the model behind that."""
    dispatch = module.__dict__.get(DISPATCH)
    copied = copy.deepcopy(module, {} if dispatch is None else {id(dispatch): None})
    copied.__dict__.pop(DISPATCH, None)
    if dispatch is not None:
        copied.__dict__.pop("forward", None)
    # A head trains, for which it needs plain weights, though transformers quantises it with the rest.
    return quantized.dequantized(copied)


def token_loss(logits: Tensor, labels: Tensor, num_items: Any = None) -> Tensor:
    """Returns the mean loss over labelled tokens, of logits ``(B, n, C)`` and labels ``(B, n)``; see `mean_loss`."""
    reduction = "mean" if num_items is None else "sum"
    total = F.cross_entropy(wide(logits).flatten(0, -2), labels.flatten(), reduction=reduction)
    return total if num_items is None else total / num_items


def mean_loss(groups: Iterable[tuple[Tensor, Tensor, int]], problem: str | None, num_items: Any = None) -> Tensor:
    """Returns the mean loss over rows, each by the labels of its own prompt; rows with the class -100 do not count.

    Args:
        groups: of the rows of each prompt, logits, labels and the number of labels; see `row_losses`.
        problem: see `row_losses`.
        num_items: HF Trainer's number of labels over an accumulated batch, which then divides the sum.
    """
    losses: list[Tensor] = []
    counts: list[Any] = []
    for logits, labels, num_labels in groups:
        losses.append(row_losses(logits, labels, num_labels, problem))
        classes = (problem or problem_of(labels, num_labels)) == "single_label_classification"
        counts.append((labels != IGNORED).sum() if classes else len(labels))
        labels_per_row = labels.numel() / len(labels)
    total = torch.cat(losses).sum()
    counted = sum(counts, start=total.new_zeros(()))
    mean: Tensor = total / counted if num_items is None else total * labels_per_row / num_items
    return mean


def row_losses(logits: Tensor, labels: Tensor, num_labels: int, problem: str | None = None) -> Tensor:
    """Returns the loss of each row of one prompt, ``(R,)``; 0 for rows with the class -100.

    Args:
        logits: ``(R, C)``, of which the first ``num_labels`` columns count.
        labels: ``(R,)`` class ids, ``(R,)`` floats (regression) or ``(R, C)`` floats (several labels a row; columns
            from ``num_labels`` on are padding).
        num_labels: ``C`` of this prompt.
        problem: transformers' ``problem_type``; None to tell from the labels.
    """
    logits = wide(logits[:, :num_labels])
    problem = problem or problem_of(labels, num_labels)
    if problem == "regression":
        values = labels.reshape(len(logits), -1).to(logits)
        return F.mse_loss(logits.reshape(len(logits), -1), values, reduction="none").mean(1)
    if problem == "single_label_classification":
        return F.cross_entropy(logits, labels.view(-1).long(), reduction="none")
    return F.binary_cross_entropy_with_logits(logits, labels[:, :num_labels].to(logits), reduction="none").mean(1)


def problem_of(labels: Tensor, num_labels: int) -> str:
    """Returns transformers' ``problem_type`` of labels; by their number and type."""
    if num_labels == 1:
        return "regression"
    return "multi_label_classification" if labels.is_floating_point() else "single_label_classification"


def wide(logits: Tensor) -> Tensor:
    """Returns logits to compute a loss of: those in half precision in single precision."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits

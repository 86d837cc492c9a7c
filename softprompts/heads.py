"""Task heads: each prompt has its own copy of the modules behind the backbone, and every row runs through its own."""

from __future__ import annotations

import copy
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from softprompts import quantized, sharded
from softprompts.errors import SoftPromptError
from softprompts.passing import Pass, in_batch_order

if TYPE_CHECKING:
    from softprompts.injection import State
    from softprompts.prompt import Prompt


_IGNORED = -100


def find(model: PreTrainedModel) -> list[str]:
    """Names of the top-level modules that make up the task head; none for base and language models."""
    if model.base_model is model or model.get_output_embeddings() is not None:
        return []
    inside = {id(module) for module in model.base_model.modules()}
    return [
        name
        for name, module in model.named_children()
        if id(module) not in inside and next(module.parameters(), None) is not None
    ]


def last_linear(head: nn.Module) -> tuple[str, nn.Linear] | None:
    """The layer that makes a head's outputs, and its name; None where there is no linear one."""
    linear = [(name, module) for name, module in head.named_modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else None


def num_outputs(head: nn.Module) -> int | None:
    """Number of outputs: those of the last linear layer."""
    found = last_linear(head)
    return None if found is None else found[1].out_features


def new(originals: Mapping[str, nn.Module], num_labels: int | None, model: PreTrainedModel) -> nn.ModuleDict | None:
    """A trainable copy of the model's head, its last layer made anew when the number of labels differs."""
    if not originals:
        return None
    if any(sharded.is_sharded(parameter) for module in originals.values() for parameter in module.parameters()):
        raise SoftPromptError(
            f"the task head of {type(model).__name__} was loaded in parts and cannot be copied: load the model whole "
            "(zero3_init_flag: false), and shard it after attaching"
        )
    head = nn.ModuleDict({name: _plain_copy(module) for name, module in originals.items()})
    head.requires_grad_(True)
    found = last_linear(head)
    if num_labels is not None and (found is None or found[1].out_features != num_labels):
        if found is None:
            raise SoftPromptError(
                f"cannot make a head for {num_labels} labels: {type(model).__name__} has no linear one"
            )
        path, old = found
        layer = nn.Linear(old.in_features, num_labels, bias=old.bias is not None).to(old.weight.device)
        nn.init.normal_(layer.weight, std=getattr(model.config, "initializer_range", 0.02))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
        parent, _, name = path.rpartition(".")
        head.get_submodule(parent)._modules[name] = layer
    return head


def _plain_copy(module: nn.Module) -> nn.Module:
    """A copy without the per-row dispatch of an attached original (and without the model that it refers to)."""
    dispatch = module.__dict__.get("_softprompt_head")
    copied = copy.deepcopy(module, {} if dispatch is None else {id(dispatch): None})
    copied.__dict__.pop("_softprompt_head", None)
    if dispatch is not None:
        copied.__dict__.pop("forward", None)
    # A head trains, so that it needs its numbers, though transformers quantises it with the rest.
    return quantized.plain(copied)


def install(model: PreTrainedModel, state: State) -> None:
    """Makes the model's own head modules send every row through its prompt's copy."""
    for name in state.heads:
        module = state.original_heads[name]
        module.__dict__["_softprompt_head"] = (state, name)
        module.__dict__["forward"] = types.MethodType(_dispatch, module)


def uninstall(model: PreTrainedModel, state: State) -> None:
    """Undoes `install`."""
    for module in state.original_heads.values():
        del module.__dict__["forward"], module.__dict__["_softprompt_head"]


def _dispatch(self: nn.Module, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
    state, name = self.__dict__["_softprompt_head"]
    pass_: Pass | None = state.current
    original = type(self).forward
    if pass_ is None:
        return original(self, hidden, *args, **kwargs)
    parts: list[Tensor] = []
    groups = pass_.groups_of(hidden.shape[0], hidden.device)
    for prompt_name, index in groups.items():
        rows = hidden if index is None else hidden[index]
        if prompt_name is None:
            parts.append(original(self, rows, *args, **kwargs))
            continue
        copy_ = cast(nn.ModuleDict, pass_.prompts[prompt_name].head)[name]
        weight = next(copy_.parameters())
        with pass_.drawing(prompt_name, copy_):
            parts.append(copy_(rows.to(weight.dtype), *args, **kwargs))
    if len(parts) == 1:
        return parts[0]
    width = max(part.shape[-1] for part in parts)
    # A row has no chance for labels that are not its own.
    parts = [F.pad(part, (0, width - part.shape[-1]), value=float("-inf")) for part in parts]
    wide = torch.promote_types(parts[0].dtype, parts[-1].dtype)
    return in_batch_order([part.to(wide) for part in parts], groups)


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

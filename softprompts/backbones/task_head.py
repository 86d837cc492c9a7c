"""TODO."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedModel

from softprompts.backbones import quantized, sharded
from softprompts.errors import SoftPromptError

# Where an attached head keeps what sends its rows on.
DISPATCH = "_softprompt_head"


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
    dispatch = module.__dict__.get(DISPATCH)
    copied = copy.deepcopy(module, {} if dispatch is None else {id(dispatch): None})
    copied.__dict__.pop(DISPATCH, None)
    if dispatch is not None:
        copied.__dict__.pop("forward", None)
    # A head trains, so that it needs its numbers, though transformers quantises it with the rest.
    return quantized.plain(copied)

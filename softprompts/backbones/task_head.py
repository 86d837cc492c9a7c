"""Task heads: the modules of a model behind its backbone, and the copies of them that prompts train."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedModel

from softprompts.backbones import quantized, sharded
from softprompts.errors import SoftPromptError

DISPATCH = "_softprompt_head"  # where a head module of an attached model keeps what sends its rows to prompts' copies


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
            raise SoftPromptError(
                f"cannot make a head for {num_labels} labels: {type(model).__name__} has no linear one"
            )
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

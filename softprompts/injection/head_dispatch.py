"""Task heads: each prompt has its own copy of the modules behind the backbone, and every row runs through its own."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from softprompts.backbones.task_head import DISPATCH
from softprompts.injection.batch_pass import Pass
from softprompts.injection.rows import in_batch_order

if TYPE_CHECKING:
    from softprompts.injection.state import State


def install(model: PreTrainedModel, state: State) -> None:
    """Makes the model's own head modules send every row through its prompt's copy."""
    for name in state.heads:
        module = state.original_heads[name]
        module.__dict__[DISPATCH] = (state, name)
        module.__dict__["forward"] = types.MethodType(_dispatch, module)


def uninstall(model: PreTrainedModel, state: State) -> None:
    """Undoes `install`."""
    for module in state.original_heads.values():
        del module.__dict__["forward"], module.__dict__[DISPATCH]


def _dispatch(self: nn.Module, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
    state, name = self.__dict__[DISPATCH]
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

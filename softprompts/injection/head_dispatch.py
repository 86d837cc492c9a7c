"""Task heads: each prompt has its own copy of the modules behind the backbone, and every row runs through its own."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softprompts.backbones.task_head import DISPATCH
from softprompts.injection.rows import RowGroups
from softprompts.injection.state import State


def install(state: State) -> None:
    """Makes the model's own head modules send every row through its prompt's copy."""
    for name, module in state.backbone.heads.items():
        module.__dict__[DISPATCH] = (state, name)
        module.__dict__["forward"] = types.MethodType(_forward, module)


def uninstall(state: State) -> None:
    """Undoes `install`."""
    for module in state.backbone.heads.values():
        del module.__dict__["forward"], module.__dict__[DISPATCH]


def _forward(self: nn.Module, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Stands in for the head's forward."""
    state, module_name = cast("tuple[State, str]", self.__dict__[DISPATCH])
    pass_, original = state.current, type(self).forward
    if pass_ is None:
        return original(self, hidden, *args, **kwargs)
    groups = pass_.groups(hidden.shape[0], hidden.device)
    outputs: list[Any] = []

    def parts(value: Any) -> Sequence[Any]:
        """What each group of rows gets of an argument."""
        by_row = isinstance(value, Tensor) and value.ndim > 0 and len(value) == len(hidden)
        return groups.split(value) if by_row else [value] * len(groups.names)

    args_of_groups = list(zip(*map(parts, args), strict=True)) or [()] * len(groups.names)
    named = {name: parts(value) for name, value in kwargs.items()}
    for place, (name, rows) in enumerate(zip(groups.names, groups.split(hidden), strict=True)):
        args, kwargs = args_of_groups[place], {key: values[place] for key, values in named.items()}
        if name is None:
            outputs.append(original(self, rows, *args, **kwargs))
            continue
        head = cast(nn.ModuleDict, pass_.prompts[name].head)[module_name]
        with pass_.drawing(name, head):
            outputs.append(head(rows.to(next(head.parameters()).dtype), *args, **kwargs))
    if len(outputs) == 1:
        return outputs[0]
    if isinstance(outputs[0], tuple):
        return tuple(_joined(groups, part) for part in zip(*outputs, strict=True))
    return _joined(groups, outputs)


def _joined(groups: RowGroups, outputs: Sequence[Tensor]) -> Tensor:
    """The outputs of all groups of rows, in the order of the rows."""
    width = max(output.shape[-1] for output in outputs)
    dtype = torch.promote_types(outputs[0].dtype, outputs[-1].dtype)
    # A row has no chance for labels that are not its own.
    padded = [F.pad(output, (0, width - output.shape[-1]), value=float("-inf")).to(dtype) for output in outputs]
    return groups.join(padded)

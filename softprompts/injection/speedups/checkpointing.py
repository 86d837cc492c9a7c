"""Gradient checkpointing of a frozen model: layers in evaluation mode take part, and see their prompts again."""

from __future__ import annotations

import functools
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from softprompts.injection.state import State

_STATE = "_softprompt_checkpointed"
_BEFORE = "_softprompt_forward"
_FUNCTION = "_gradient_checkpointing_func"  # transformers' name of it


def install(state: State) -> None:
    """Makes the layers of a model checkpoint although they are frozen, and in evaluation mode."""
    for module in state.backbone.model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            if "forward" in module.__dict__:
                module.__dict__[_BEFORE] = module.__dict__["forward"]
            module.__dict__[_STATE] = state
            module.__dict__["forward"] = types.MethodType(_forward, module)
    wrap_functions(state)


def uninstall(state: State) -> None:
    """Undoes `install`."""
    for module in state.backbone.model.modules():
        if module.__dict__.pop(_STATE, None) is not None:
            del module.__dict__["forward"]
            if _BEFORE in module.__dict__:
                module.__dict__["forward"] = module.__dict__.pop(_BEFORE)
        function = module.__dict__.get(_FUNCTION)
        if isinstance(function, _CheckpointFunction):
            module.__dict__[_FUNCTION] = function.original


def wrap_functions(state: State) -> None:
    """Wraps the checkpoint functions that transformers has given to a model's modules by now."""
    wrapped: dict[int, _CheckpointFunction] = {}
    for module in state.backbone.model.modules():
        function = module.__dict__.get(_FUNCTION)
        if function is not None and not isinstance(function, _CheckpointFunction):
            module.__dict__[_FUNCTION] = wrapped.setdefault(id(function), _CheckpointFunction(function, state))


def is_on(model: PreTrainedModel) -> bool:
    """Whether a forward pass now would checkpoint anything."""
    if not (model.training and torch.is_grad_enabled()):
        return False
    return any(getattr(layer, "gradient_checkpointing", False) for layer in model.modules())


def _forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Stands in for a layer's forward: checkpoints it also where the frozen layer is in evaluation mode."""
    forward = self.__dict__.get(_BEFORE) or functools.partial(type(self).forward, self)
    state: State = self.__dict__[_STATE]
    wanted = getattr(self, "gradient_checkpointing", False) and not self.training and torch.is_grad_enabled()
    if not (wanted and state.backbone.model.training and state.current is not None):
        return forward(*args, **kwargs)
    for cache in ("past_key_values", "layer_past"):
        if kwargs.get(cache) is not None:
            kwargs[cache] = None
    function: Any = self._gradient_checkpointing_func
    return function(functools.partial(forward, **kwargs), *args)


class _CheckpointFunction:
    """A checkpoint function under which the recomputation sees the same prompts as the first run did."""

    def __init__(self, function: Callable[..., Any], state: State):
        self.original, self.function, self.state = function, function, state
        if isinstance(function, functools.partial) and function.keywords.get("use_reentrant"):
            warnings.warn(
                "gradient checkpointing with use_reentrant=True does not reach prompts; using use_reentrant=False",
                stacklevel=2,
            )
            keywords = function.keywords | {"use_reentrant": False}
            self.function = functools.partial(function.func, *function.args, **keywords)

    def __call__(self, layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        pass_ = self.state.current

        def run(*inner: Any, **named: Any) -> Any:
            with self.state.activate(pass_):
                return layer(*inner, **named)

        return self.function(run, *args, **kwargs)

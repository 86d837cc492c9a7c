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

_OWNER = "_softprompt_owner"
_FORWARD = "_softprompt_forward"
_FUNCTION = "_gradient_checkpointing_func"


def install(model: PreTrainedModel, state: State) -> None:
    """Makes the layers of a model checkpoint although they are frozen, and in evaluation mode."""
    for module in list(model.modules()):
        if isinstance(module, GradientCheckpointingLayer):
            if "forward" in module.__dict__:
                module.__dict__[_FORWARD] = module.__dict__["forward"]
            module.__dict__[_OWNER] = state
            module.__dict__["forward"] = types.MethodType(_checkpointed_forward, module)
    wrap_functions(model, state)


def uninstall(model: PreTrainedModel) -> None:
    """Undoes `install`."""
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer) and _OWNER in module.__dict__:
            del module.__dict__["forward"], module.__dict__[_OWNER]
            if _FORWARD in module.__dict__:
                module.__dict__["forward"] = module.__dict__.pop(_FORWARD)
        function = module.__dict__.get(_FUNCTION)
        if isinstance(function, _CheckpointFunction):
            module.__dict__[_FUNCTION] = function.original


def wrap_functions(model: PreTrainedModel, state: State) -> None:
    """Wraps the checkpoint functions that transformers has given to a model's modules by now."""
    wrapped: dict[int, _CheckpointFunction] = {}
    for module in model.modules():
        function = module.__dict__.get(_FUNCTION)
        if function is not None and not isinstance(function, _CheckpointFunction):
            if id(function) not in wrapped:
                wrapped[id(function)] = _CheckpointFunction(function, state)
            module.__dict__[_FUNCTION] = wrapped[id(function)]


def is_on(model: PreTrainedModel) -> bool:
    """Whether a forward pass now would checkpoint anything."""
    if not (model.training and torch.is_grad_enabled()):
        return False
    return any(getattr(layer, "gradient_checkpointing", False) for layer in model.modules())


def _checkpointed_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Forward of a layer of an attached model: checkpoints it also where the frozen layer is in evaluation mode."""
    own = self.__dict__.get(_FORWARD)
    forward = own if own is not None else functools.partial(type(self).forward, self)
    wanted = getattr(self, "gradient_checkpointing", False) and not self.training
    owner: State = self.__dict__[_OWNER]
    if wanted and owner.current is not None and torch.is_grad_enabled() and owner.backbone.model.training:
        for cache in ("past_key_values", "layer_past"):
            if kwargs.get(cache) is not None:
                kwargs[cache] = None
        function: Any = self._gradient_checkpointing_func
        return function(functools.partial(forward, **kwargs), *args)
    return forward(*args, **kwargs)


class _CheckpointFunction:
    """A checkpoint function under which the recomputation sees the same prompts as the first run did."""

    def __init__(self, function: Callable[..., Any], state: State):
        self.original = function
        if isinstance(function, functools.partial) and function.keywords.get("use_reentrant"):
            warnings.warn(
                "gradient checkpointing with use_reentrant=True does not reach prompts; using use_reentrant=False",
                stacklevel=2,
            )
            function = functools.partial(
                function.func, *function.args, **(function.keywords | {"use_reentrant": False})
            )
        self.function = function
        self.state = state

    def __call__(self, layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        state, pass_ = self.state, self.state.current

        def run(*inner: Any, **named: Any) -> Any:
            with state.activate(pass_):
                return layer(*inner, **named)

        return self.function(run, *args, **kwargs)

"""What the modules of a model are for, found out in one trial pass: which are query, key and value, where the FFN is.

There is no list of names here. The rules, for linear layers (``nn.Linear`` and ``Conv1D``):

- *query, key, value*: the linear layer whose output shares its storage with what the attention function is given. If
  something lies between (rotary positions, a norm, a scale), the linear layers of the attention module that are left
  over are query, key, value in the order in which they ran. One that makes all three has all three roles.
- *attention.output*: the first to run after the attention, if it takes what attention makes.
- *ffn.out*: of the other linear layers in a layer of the model (the outermost `ModuleList` member around an attention),
  the last that makes a hidden state; the rest are *ffn.in*.
- *input* and *output*: the model's own input and output embeddings.

A module that fits no rule has no role.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from softprompts.backbones import sharded
from softprompts.soft_prompt import Part

_ATTENDS = ("query", "key", "value")
ROLES = (*_ATTENDS, "attention.output", "ffn.in", "ffn.out", "input", "output")


@dataclass
class _Call:
    """The shapes of a module's first call, and the first axes of input and output of all its calls."""

    inputs: torch.Size
    output: torch.Size
    leading: set[tuple[int, ...]] = field(default_factory=set)

    def by_row(self, rows: int, kind: str) -> bool:
        """Whether each call had a row for each of the batch's; positions are often embedded once for all of them."""
        fitting = {(rows, rows), (rows, 1)} | ({(1, 1)} if kind == "embedding" else set())
        return len(self.leading) == 1 and self.leading <= fitting


class Trace:
    """Watches a pass, within its context: which modules run, in which order, and what attention is given.

    Attributes:
        attentions: the attention modules in the order in which they ran, with query, key and value of their first call.
        widths: the width of the hidden states that a module is called with; 0 if it is called with something else.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.attentions: dict[nn.Module, tuple[Tensor, Tensor, Tensor]] = {}
        self.widths: dict[nn.Module, int] = {}
        self._calls: dict[nn.Module, _Call] = {}
        self._roles: dict[nn.Module, list[str]] = {}
        self._site_of: dict[nn.Module, nn.Module] = {}
        self._since: list[tuple[nn.Module, Tensor]] = []  # linear layers since the last attention, with their outputs
        self._after: tuple[nn.Module, int] | None = None  # the last attention and the width of its output
        self._handles: list[Any] = []

    def __enter__(self) -> Trace:
        for module in self.model.modules():
            self._handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
            if _is_leaf(module):
                self._handles.append(module.register_forward_hook(self._called, with_kwargs=True))
        return self

    def __exit__(self, *error: Any) -> None:
        for handle in self._handles:
            handle.remove()
        self._since, self._handles = [], []

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = states_given(args, kwargs)
        self.widths[module] = 0 if states is None else states.shape[-1]

    def _called(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if given is None or not isinstance(output, Tensor):
            return
        call = self._calls.setdefault(module, _Call(given.shape, output.shape))
        call.leading.add((*given.shape[:1], *output.shape[:1]))
        if not is_linear(module):
            return
        if self._after is not None and features(module)[0] == self._after[1]:
            self._assign(module, "attention.output", self._after[0])
        self._after = None
        self._since.append((module, output))

    def _assign(self, module: nn.Module, role: str, site: nn.Module) -> None:
        roles = self._roles.setdefault(module, [])
        if role not in roles:
            roles.append(role)
        self._site_of.setdefault(module, site)

    def attended(self, site: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Records a call of the attention function: by which attention module, and with what."""
        self.attentions.setdefault(site, (query, key, value))
        inside = set(site.modules())
        ran = [(module, output) for module, output in self._since if module in inside] or self._since
        unknown, makers = [], []
        for role, tensor in zip(_ATTENDS, (query, key, value), strict=True):
            maker = next((module for module, output in ran if _same_storage(output, tensor)), None)
            if maker is None:
                unknown.append(role)
            else:
                self._assign(maker, role, site)
                makers.append(maker)
        left = [module for module, _ in ran if module not in makers]
        if unknown and not left:
            left = list(dict.fromkeys(makers))
        if len(left) == 1:
            left = left * len(unknown)
        if len(left) == len(unknown):
            for role, module in zip(unknown, left, strict=True):
                self._assign(module, role, site)
        self._since, self._after = [], (site, query.shape[1] * value.shape[3])

    def parts(
        self, kinds: Mapping[nn.Module, str], stacks: Mapping[str, nn.Module | None], rows: int
    ) -> list[tuple[Part, nn.Module]]:
        """Describes the modules that ran, in the order in which they did; then embeddings that did not.

        Args:
            kinds: the kind of each attention module.
            stacks: the model's "encoder" and "decoder", None where it has none.
            rows: how many rows the pass had.
        """
        if not self._calls:
            return []
        model, base = self.model, self.model.base_model
        names = {module: name for whole in (model, base) for name, module in whole.named_modules()}
        stack_of = {module: name for name, stack in stacks.items() if stack is not None for module in stack.modules()}
        layers = _layers(base, set(kinds))
        self._find_ffn(layers)
        embeddings = {"input": model.get_input_embeddings(), "output": model.get_output_embeddings()}
        # T5's decoder and encoder have modules of their own for the same table.
        others = [m for m in embeddings.values() if m is not None and m not in self._calls and _is_leaf(m)]
        parts = []
        for module in (*self._calls, *dict.fromkeys(others)):
            call, layer, site = self._calls.get(module), layers.get(module), self._site_of.get(module)
            kind, roles = _kind_of(module, call), self._roles.get(module, ())
            if is_linear(module):
                inputs, outputs = features(module)
            else:
                outputs = sharded.shape_of(cast(Tensor, module.weight))[1] if call is None else call.output[-1]
                inputs = outputs if kind == "norm" else 0
            part = Part(
                path=names[module],
                kind=kind,
                roles=tuple(role for role in ROLES if role in roles or embeddings.get(role) is module),
                in_features=inputs,
                out_features=outputs,
                layer=None if layer is None else layer[1],
                stack=stack_of.get(module, ""),
                site="" if site is None else kinds[site],
                by_row=call is None or call.by_row(rows, kind),
            )
            parts.append((part, module))
        return parts

    def _find_ffn(self, layers: Mapping[nn.Module, tuple[nn.Module, int]]) -> None:
        by_layer: dict[nn.Module, list[nn.Module]] = {}
        for module in self._calls:
            if is_linear(module) and module in layers:
                by_layer.setdefault(layers[module][0], []).append(module)
        for members in by_layer.values():
            widths = [features(m)[1] for m in members if "attention.output" in self._roles.get(m, ())]
            others = [m for m in members if m not in self._roles]
            ends = [m for m in others if widths and features(m)[1] == widths[-1]]
            for module in others:
                self._roles[module] = ["ffn.out" if ends and module is ends[-1] else "ffn.in"]


def is_linear(module: nn.Module) -> bool:
    """Whether it is a linear layer, torch's or GPT-2's."""
    return isinstance(module, nn.Linear | Conv1D)


def features(module: nn.Module) -> tuple[int, int]:
    """Returns the widths of a linear layer's input and output."""
    if isinstance(module, Conv1D):
        return cast("tuple[int, int]", tuple(module.weight.shape))
    return int(cast(Any, module).in_features), int(cast(Any, module).out_features)


def states_given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Returns the hidden states ``(M, n, d)`` among the arguments of a module, by name or first; None without any."""
    states = kwargs.get("hidden_states", args[0] if args else None)
    return states if isinstance(states, Tensor) and states.ndim == 3 else None


def _is_leaf(module: nn.Module) -> bool:
    has_parameters = any(parameter is not None for parameter in module._parameters.values())
    return has_parameters and not any(next(child.parameters(), None) is not None for child in module.children())


def _kind_of(module: nn.Module, call: _Call | None) -> str:
    if is_linear(module):
        return "conv1d" if isinstance(module, Conv1D) else "linear"
    if call is None or isinstance(module, nn.Embedding):
        return "embedding"
    flat = all(tensor is None or tensor.ndim == 1 for tensor in module._parameters.values())
    return "norm" if flat and call.inputs == call.output else "other"


def _same_storage(one: Tensor, other: Tensor) -> bool:
    # Not by address, which tensors on the meta device do not have.
    return bool(one.untyped_storage()._cdata == other.untyped_storage()._cdata)


def _layers(base: nn.Module, sites: set[nn.Module]) -> dict[nn.Module, tuple[nn.Module, int]]:
    """Returns the layer (an outermost list member with attention in it) of the modules in one, and its index."""
    layers: dict[nn.Module, tuple[nn.Module, int]] = {}
    for module in base.modules():
        if isinstance(module, nn.ModuleList) and module not in layers:
            for index, layer in enumerate(module):
                inside = list(layer.modules())
                if any(part in sites for part in inside):
                    for part in inside:
                        layers.setdefault(part, (layer, index))
    return layers

"""What the modules of a model are for, told from one trial pass: which are query, key and value, where the FFN is.

There is no list of names here. The rules, for linear layers (``nn.Linear`` and ``Conv1D``):

- *query, key, value*: what an attention function is given is followed back by its storage to the linear layer that
  made it. Where something lies between (rotary positions, a norm, a scale), the linear layers of the attention module
  that are left over are query, key, value in the order in which they ran. One that makes all three has all three roles.
- *attention.output*: the first to run after the attention, if it takes what attention makes.
- *ffn.out*: of the other linear layers in a layer of the model (the outermost `ModuleList` member around an attention),
  the last that makes a hidden state; the rest are *ffn.in*.
- *input* and *output*: the model's own input and output embeddings.

What fits no rule has no role.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    """How a module was called: the sizes of the first time, and those of the first axis of all times."""

    inputs: torch.Size
    output: torch.Size
    leading: set[tuple[int, ...]]

    def by_row(self, rows: int, kind: str) -> bool:
        """Whether it always saw a row for each of the batch's; positions are often embedded once for all of them."""
        fine = {(rows, rows), (rows, 1)} | ({(1, 1)} if kind == "embedding" else set())
        return len(self.leading) == 1 and self.leading <= fine


class Trace:
    """Watches a pass, within its context: which modules run, in which order, and what attention is given.

    Args:
        model: the model.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.calls: dict[nn.Module, _Call] = {}
        self.roles: dict[nn.Module, list[str]] = {}
        self.site_of: dict[nn.Module, nn.Module] = {}
        self._since: list[tuple[nn.Module, Tensor]] = []  # linear layers since the last attention, with their outputs
        self._after: tuple[nn.Module, int] | None = None  # the last attention and the width of what it made
        self._handles: list[Any] = []

    def __enter__(self) -> Trace:
        for module in self.model.modules():
            if _is_leaf(module):
                self._handles.append(module.register_forward_hook(self._called, with_kwargs=True))
        return self

    def __exit__(self, *error: Any) -> None:
        for handle in self._handles:
            handle.remove()
        self._since, self._handles = [], []

    def _called(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if given is None or not isinstance(output, Tensor):
            return
        call = self.calls.setdefault(module, _Call(given.shape, output.shape, set()))
        call.leading.add((*given.shape[:1], *output.shape[:1]))
        if not is_linear(module):
            return
        if self._after is not None:
            site, width = self._after
            if features(module)[0] == width:
                self._is(module, "attention.output", site)
            self._after = None
        self._since.append((module, output))

    def _is(self, module: nn.Module, role: str, site: nn.Module) -> None:
        roles = self.roles.setdefault(module, [])
        if role not in roles:
            roles.append(role)
        self.site_of.setdefault(module, site)

    def attended(self, site: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Notes that an attention module got to its attention function, with these."""
        inside = set(site.modules())
        ran = [(module, output) for module, output in self._since if module in inside] or self._since
        unknown, used = [], []
        for role, tensor in zip(_ATTENDS, (query, key, value), strict=True):
            maker = next((module for module, output in ran if _same_storage(output, tensor)), None)
            if maker is None:
                unknown.append(role)
            else:
                self._is(maker, role, site)
                used.append(maker)
        left = [module for module, _ in ran if module not in used]
        if unknown and not left:
            left = list(dict.fromkeys(used))
        if len(left) == 1:
            left = left * len(unknown)
        if len(left) == len(unknown):
            for role, module in zip(unknown, left, strict=True):
                self._is(module, role, site)
        self._since, self._after = [], (site, query.shape[1] * value.shape[3])

    def parts(
        self, kinds: Mapping[nn.Module, str], stacks: Mapping[str, nn.Module | None], rows: int
    ) -> list[tuple[Part, nn.Module]]:
        """The modules that ran, described, in the order in which they did; then embeddings that did not.

        Args:
            kinds: the kind of each attention module.
            stacks: the model's "encoder" and "decoder", None where it has none.
            rows: how many rows the pass had.
        """
        if not self.calls:
            return []
        model, base = self.model, self.model.base_model
        names = {module: name for name, module in model.named_modules()}
        names |= {module: name for name, module in base.named_modules()}
        stack_of = {module: name for name, stack in stacks.items() if stack is not None for module in stack.modules()}
        layers = _layers(base, set(kinds))
        self._find_ffn(layers)
        embeddings = {"input": model.get_input_embeddings(), "output": model.get_output_embeddings()}
        found = []
        for module, call in self.calls.items():
            layer = layers.get(module)
            site = self.site_of.get(module)
            wide = features(module) if is_linear(module) else (0, call.output[-1])
            kind, mine = _kind_of(module, call), self.roles.get(module, ())
            part = Part(
                path=names[module],
                kind=kind,
                roles=tuple(role for role in ROLES if role in mine or embeddings.get(role) is module),
                in_features=wide[1] if kind == "norm" else wide[0],
                out_features=wide[1],
                layer=None if layer is None else layer[1],
                stack=stack_of.get(module, ""),
                site="" if site is None else kinds[site],
                by_row=call.by_row(rows, kind),
            )
            found.append((part, module))
        for role, module in embeddings.items():
            if module is None or module in self.calls or not _is_leaf(module):
                continue
            # T5's decoder and encoder have modules of their own for the same table.
            kind = _LINEAR[isinstance(module, Conv1D)] if is_linear(module) else "embedding"
            wide = features(module) if is_linear(module) else (0, sharded.shape_of(cast(Tensor, module.weight))[1])
            found.append((Part(names[module], kind, (role,), *wide, stack=stack_of.get(module, "")), module))
        return found

    def _find_ffn(self, layers: Mapping[nn.Module, tuple[nn.Module, int]]) -> None:
        linear = [module for module in self.calls if is_linear(module) and module in layers]
        by_layer: dict[nn.Module, list[nn.Module]] = {}
        for module in linear:
            by_layer.setdefault(layers[module][0], []).append(module)
        for members in by_layer.values():
            outputs = [features(m)[1] for m in members if "attention.output" in self.roles.get(m, ())]
            others = [m for m in members if m not in self.roles]
            ends = [m for m in others if outputs and features(m)[1] == outputs[-1]]
            for module in others:
                self.roles[module] = ["ffn.out" if ends and module is ends[-1] else "ffn.in"]


_LINEAR = ("linear", "conv1d")


def is_linear(module: nn.Module) -> bool:
    """Whether it is a linear layer, of torch's or of GPT-2's kind."""
    return isinstance(module, nn.Linear | Conv1D)


def features(module: nn.Module) -> tuple[int, int]:
    """Widths of a linear layer's input and output."""
    if isinstance(module, Conv1D):
        return cast("tuple[int, int]", tuple(module.weight.shape))
    return int(cast(Any, module).in_features), int(cast(Any, module).out_features)


def _is_leaf(module: nn.Module) -> bool:
    own = any(parameter is not None for parameter in module._parameters.values())
    return own and not any(next(child.parameters(), None) is not None for child in module.children())


def _kind_of(module: nn.Module, call: _Call) -> str:
    if is_linear(module):
        return _LINEAR[isinstance(module, Conv1D)]
    if isinstance(module, nn.Embedding):
        return "embedding"
    flat = all(tensor is None or tensor.ndim == 1 for tensor in module._parameters.values())
    return "norm" if flat and call.inputs == call.output else "other"


def _same_storage(one: Tensor, other: Tensor) -> bool:
    # Not by address: on the meta device all have none.
    return bool(one.untyped_storage()._cdata == other.untyped_storage()._cdata)


def _layers(base: nn.Module, sites: set[nn.Module]) -> dict[nn.Module, tuple[nn.Module, int]]:
    """For each module within a layer, the layer (an outermost member of a list, with attention in it) and its index."""
    found: dict[nn.Module, tuple[nn.Module, int]] = {}
    for module in base.modules():
        if isinstance(module, nn.ModuleList) and module not in found:
            for index, layer in enumerate(module):
                inside = list(layer.modules())
                if any(part in sites for part in inside):
                    for part in inside:
                        found.setdefault(part, (layer, index))
    return found

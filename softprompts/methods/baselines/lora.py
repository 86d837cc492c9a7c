"""LoRA: products of two thin matrices beside frozen ones.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", https://arxiv.org/abs/2106.09685

    y = W x + b + (alpha / r) B A dropout(x),   A in R^{r x in}, B in R^{out x r}

Trained: ``A`` and ``B`` of every target; ``r*(in + out)`` numbers each. A starts as PyTorch's linear layers do, B at
zero, so that the model starts as it is. A fused projection of queries, keys and values is one target.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from softprompts.errors import SoftPromptError
from softprompts.methods.about import About, Space
from softprompts.methods.contract import Component, Rows, Shape
from softprompts.methods.modules import ModuleConfig, ModuleMethod, key, with_role
from softprompts.methods.registry import register
from softprompts.soft_prompt import Frozen, Part, PartWay, SoftPrompt
from softprompts.validation import TEXTS, settings

Target = Literal["query", "key", "value", "attention.output", "ffn.in", "ffn.out"]
TARGETS: tuple[Target, ...] = get_args(Target)


@register("lora")
@settings
class LoraConfig(ModuleConfig):
    """Settings of LoRA.

    Attributes:
        rank: ``r``.
        alpha: the product counts ``alpha / r``; None for ``alpha = r``.
        dropout: of the input features of each product in training, drawn for each row and alike for all its tokens.
        targets: which layers, of "query", "key", "value", "attention.output", "ffn.in" and "ffn.out".
    """

    rank: Annotated[int, Field(ge=1)] = 8
    alpha: Annotated[float, Field(gt=0)] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Annotated[tuple[Target, ...], TEXTS, Field(min_length=1)] = ("query", "value")

    revision = 1
    searched: ClassVar[Space] = {"rank": (4, 8, 16)}
    about = About(
        line="thin trained matrices beside the frozen ones",
        paper="Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, https://arxiv.org/abs/2106.09685",
        equation="y = W x + b + (alpha/r) B A dropout(x)",
        trained="A and B of the query and value projections of every attention",
        count="r*(in + out) per target",
        per_row="two thin products beside each target",
        exports=("model", "peft"),
        differs="dropout is drawn per row and feature, alike for all tokens of a row (PEFT: also per token), so that "
        "a run draws the same whatever else is in the batch",
    )


class Lora(ModuleMethod, config=LoraConfig):
    """``A`` ``(r, in)`` and ``B`` ``(out, r)`` of every target, by its path."""

    def __init__(self, config: LoraConfig, shape: Shape):
        super().__init__(config)
        self.scale = (config.rank if config.alpha is None else config.alpha) / config.rank
        self.dropout = config.dropout
        self.a, self.b = nn.ParameterDict(), nn.ParameterDict()
        targets = with_role(config, shape, config.targets)
        self.changes = tuple(part.path for part in targets)
        for part in targets:
            down = torch.empty(config.rank, part.in_features)
            self.a[key(part.path)] = nn.Parameter(nn.init.kaiming_uniform_(down, a=math.sqrt(5)))
            self.b[key(part.path)] = nn.Parameter(torch.zeros(part.out_features, config.rank))

    def forward(self, rows: Rows | None = None) -> SoftPrompt:
        """The way through every target."""
        seed = int(torch.randint(2**62, (), device="cpu")) if self.training and self.dropout else None
        ways: dict[str, PartWay] = {}
        for index, path in enumerate(self.changes):
            a, b = self.a[key(path)], self.b[key(path)]
            ways[path] = functools.partial(self._beside, a, b, None if seed is None else seed + index)
        return SoftPrompt(modules=ways)

    def _beside(self, a: Tensor, b: Tensor, seed: int | None, frozen: Frozen, x: Tensor) -> Tensor:
        y = frozen(x)
        x = x.to(a.dtype)
        if seed is not None:
            size = (len(x), *[1] * (x.ndim - 2), x.shape[-1])
            kept = frozen.uniform(seed, size, x.device) >= self.dropout
            x = x * (kept.to(x.dtype) / (1 - self.dropout))
        change = functional.linear(functional.linear(x, a), b)
        return torch.add(y, change.to(y.dtype), alpha=self.scale)

    def merged(self, parts: Sequence[Part]) -> dict[str, dict[str, Tensor]]:
        """``W + (alpha / r) B A`` of every target, computed in the wider type of the two."""
        weights: dict[str, dict[str, Tensor]] = {}
        for part in parts:
            if part.path not in self.changes:
                continue
            weight = part.tensors["weight"]
            if not weight.is_floating_point():
                raise SoftPromptError(f"lora: '{part.path}' is quantised, and nothing can be added to its weights")
            a, b = self.a[key(part.path)].detach(), self.b[key(part.path)].detach()
            change = self.scale * (b @ a)
            weights[part.path] = {"weight": weight + (change.T if part.kind == "conv1d" else change)}
        return weights

    def components(self) -> dict[str, Component]:
        """All products, in one group."""
        return {"lora": Component([*self.a.values(), *self.b.values()], learning_rate=1.5e-3)}

"""BitFit: nothing but biases.

Ben Zaken, Ravfogel and Goldberg, "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked
Language-models", https://arxiv.org/abs/2106.10199

    y = frozen(x) + c,   c = 0 at the start

for every linear layer and norm that has a bias: training ``c`` is training the bias ``b + c``. Models without any bias
(T5, Llama) get ``c`` at every linear layer and norm of their layers and at the output, as ATTEMPT does it.
Trained: one number per output of these modules.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from softprompts.errors import SoftPromptError
from softprompts.methods.about import About
from softprompts.methods.contract import Component, Rows, Shape
from softprompts.methods.modules import LINEAR, NORM, ModuleConfig, ModuleMethod, key
from softprompts.methods.registry import register
from softprompts.soft_prompt import Frozen, Part, SoftPrompt
from softprompts.validation import settings


@register("bitfit")
@settings
class BitFitConfig(ModuleConfig):
    """BitFit has no settings of its own."""

    about = About(
        paper="Ben Zaken et al., BitFit, https://arxiv.org/abs/2106.10199",
        equation="y = frozen(x) + c",
        trained="all biases; where the model has none, new ones at the linear layers and norms of its layers and at "
        "its output",
        count="sum of the widths of these modules",
        per_row="one addition after each",
        exports=("model",),
        differs="what is added to a bias is kept, and not the bias: weight decay pulls to the frozen model's biases",
    )


class BitFit(ModuleMethod, config=BitFitConfig):
    """The vector ``(out,)`` that is added to the output of each module, by its path."""

    def __init__(self, config: BitFitConfig, shape: Shape):
        super().__init__(config)
        able = [part for part in shape.parts if part.by_row and part.kind in (*LINEAR, NORM)]
        biased = [part for part in able if part.has_bias]
        chosen = biased or [part for part in able if part.layer is not None or "output" in part.roles]
        config.require(bool(chosen), "this backbone has no linear layer or norm to put a bias on")
        self.changes = tuple(part.path for part in chosen)
        self.added = nn.ParameterDict({key(part.path): nn.Parameter(torch.zeros(part.out_features)) for part in chosen})

    def forward(self, rows: Rows | None = None) -> SoftPrompt:
        """The way through every module."""
        return SoftPrompt(modules={path: functools.partial(_plus, self.added[key(path)]) for path in self.changes})

    def merged(self, parts: Sequence[Part]) -> dict[str, dict[str, Tensor]]:
        """``b + c`` of every module."""
        biases: dict[str, dict[str, Tensor]] = {}
        for part in parts:
            if part.path not in self.changes:
                continue
            if not part.has_bias:
                raise SoftPromptError(f"bitfit: '{part.path}' has no bias, and a new one would be another architecture")
            biases[part.path] = {"bias": part.tensors["bias"] + self.added[key(part.path)].detach()}
        return biases

    def components(self) -> dict[str, Component]:
        """All biases, in one group."""
        return {"biases": Component(list(self.added.values()), learning_rate=3e-3)}


def _plus(added: Tensor, frozen: Frozen, x: Tensor) -> Tensor:
    y = frozen(x)
    return y + added.to(y.dtype)

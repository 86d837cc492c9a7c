"""Adapters: small bottlenecks behind the attention and the FFN of every layer; AdapterDrop leaves the first layers out.

Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", https://arxiv.org/abs/1902.00751
Rücklé et al., "AdapterDrop: On the Efficiency of Adapters in Transformers", https://arxiv.org/abs/2010.11918

    y = h + W_up f(W_down h + b_down) + b_up,   h = frozen(x),   W_down in R^{b x d}, W_up in R^{d x b}

``h`` is what the last linear layer of an attention or FFN makes, before the residual connection.
Trained: two adapters per layer, ``2*d*b + b + d`` numbers each, and (as Houlsby et al. do) copies of all norms.
AdapterDrop: the first ``k`` layers of each stack have none; or all have, and training leaves out the first
``k ~ U{0..L-1}`` of each pass, so that at inference any number can be left out.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field

from softprompts.methods.about import About, Space
from softprompts.methods.contract import Component, Rows, Shape
from softprompts.methods.modules import NORM, Activation, BottleneckMethod, ModuleConfig, copies, ways_with, with_role
from softprompts.methods.registry import register
from softprompts.soft_prompt import SoftPrompt
from softprompts.validation import settings


@register("adapter")
@settings
class AdapterConfig(ModuleConfig):
    """Settings of Houlsby's adapters.

    Attributes:
        reduction: the bottleneck is ``b = d / reduction`` wide.
        activation: ``f``: "swish", "gelu", "gelu_new" or "relu".
        layer_norms: also train copies of all norms.
        cross: also put one behind cross-attention.
        init_std: the weights are drawn from N(0, init_std^2), biases are 0.
    """

    reduction: Annotated[int, Field(ge=1)] = 16
    activation: Activation = "swish"
    layer_norms: bool = True
    cross: bool = False
    init_std: Annotated[float, Field(gt=0)] = 0.02

    searched: ClassVar[Space] = {"reduction": (8, 16, 32)}
    about = About(
        line="small bottlenecks behind attention and FFN",
        paper="Houlsby et al., Parameter-Efficient Transfer Learning for NLP, https://arxiv.org/abs/1902.00751",
        equation="y = h + W_up f(W_down h + b_down) + b_up, h = frozen(x)",
        trained="an adapter behind self-attention and FFN of every layer, and the norms",
        count="2*L*(2*d*b + b + d) with b = d // reduction, and those of the norms",
        per_row="two thin products per adapter",
    )


@register("adapterdrop")
@settings
class AdapterDropConfig(AdapterConfig):
    """Settings of AdapterDrop, besides those of the adapters.

    Attributes:
        dropped_layers: ``k``, layers at the bottom of each stack that are left out.
        robust: make adapters for all layers and leave out a random number of them in each training pass;
            ``dropped_layers`` is then how many are left out at inference.
    """

    dropped_layers: Annotated[int, Field(ge=0)] = 1
    robust: bool = False

    searched: ClassVar[Space] = {"reduction": (8, 16, 32), "dropped_layers": (1, 2)}
    about = About(
        line="adapters in the upper layers only",
        paper="Rücklé et al., AdapterDrop: On the Efficiency of Adapters in Transformers, "
        "https://arxiv.org/abs/2010.11918",
        equation="as adapter, in layers k..L-1; robust: k ~ U{0..L-1} in each training pass",
        trained="the adapters of these layers (robust: of all), and the norms",
        count="2*(L - k)*(2*d*b + b + d) with b = d // reduction, k layers left out in all, and those of the norms",
        per_row="two thin products per adapter that is left",
    )


class Adapter(BottleneckMethod, config=AdapterConfig):
    """The adapters, and the copies of the norms."""

    def __init__(self, config: AdapterConfig, shape: Shape):
        super().__init__(config, config.activation)
        self.dropped, self.robust = 0, False
        if isinstance(config, AdapterDropConfig):
            self.dropped, self.robust = config.dropped_layers, config.robust
        followed = [
            part
            for part in with_role(config, shape, ("attention.output", "ffn.out"))
            if config.cross or not part.site.endswith(".cross")
        ]
        self.num_layers = 1 + max((part.layer or 0 for part in followed), default=0)
        fits = self.dropped < self.num_layers
        config.require(fits, f"dropped_layers must be less than {self.num_layers}, not {self.dropped}")
        if not self.robust:
            followed = [part for part in followed if (part.layer or 0) >= self.dropped]
        self.layers = {part.path: part.layer or 0 for part in followed}
        for part in followed:
            self.add(part, max(1, part.out_features // config.reduction), config.init_std)
        norms = [part for part in shape.parts if part.kind == NORM and part.by_row] if config.layer_norms else []
        self.norms, self._norm_names = copies(norms)
        self.changes = (*self.layers, *self._norm_names)

    def forward(self, rows: Rows | None = None) -> SoftPrompt:
        """The way through every module behind which there is an adapter, and every norm."""
        first = self.dropped
        if self.robust and self.training:
            first = int(torch.randint(self.num_layers, (), device="cpu"))
        ways = {path: self.way(path) for path, layer in self.layers.items() if layer >= first}
        return SoftPrompt(modules=ways | ways_with(self.norms, self._norm_names))

    def components(self) -> dict[str, Component]:
        """The adapters, and the norms with them."""
        return {"adapter": Component([*self.bottlenecks(), *self.norms.values()], learning_rate=3e-3)}

"""AdaMix: a mixture of adapters, one of which is drawn for each training pass, merged for inference.

Wang et al., "AdaMix: Mixture-of-Adaptations for Parameter-efficient Model Tuning", https://arxiv.org/abs/2205.12410

    y = h + W_up^j f(W_down^i h + b_down^i) + b_up^j,   h = frozen(x),   W_down in R^{b x d}, W_up in R^{d x b}
    training:  i, j ~ U{1..N}, for each layer and pass;   inference:  the mean of the experts' parameters

behind the last linear layer of the FFN of every layer. All experts start alike.
Trained, per layer: ``N*(d*b + b) + (d*b + d)`` with one up-projection for all experts (as released), else ``N`` of it.
With ``consistency``, the loss has the paper's term ``(KL(p || q) + KL(q || p)) / 2`` between the predictions ``p`` and
``q`` of two passes, whose experts are drawn independently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from softprompts.methods.about import About, Space, Vital
from softprompts.methods.common import divergence
from softprompts.methods.contract import Answers, Component, Rows, Shape
from softprompts.methods.modules import Activation, BottleneckMethod, ModuleConfig, with_role
from softprompts.methods.registry import register
from softprompts.soft_prompt import SoftPrompt
from softprompts.validation import settings


@register("adamix")
@settings
class AdaMixConfig(ModuleConfig):
    """Settings of AdaMix.

    Attributes:
        num_experts: ``N``.
        bottleneck: ``b``, width of an adapter.
        share_up: one up-projection for all experts.
        activation: ``f``: "gelu", "gelu_new", "relu" or "swish".
        init_std: the weights are drawn from N(0, init_std^2), biases are 0.
        consistency: weight of the consistency term, 1 in the paper; it takes a second pass of the whole model, so that
            a step takes twice as long. 0: none, as in the released code for BERT.
    """

    num_experts: Annotated[int, Field(ge=1)] = 4
    bottleneck: Annotated[int, Field(ge=1)] = 48
    share_up: bool = True
    activation: Activation = "gelu"
    init_std: Annotated[float, Field(gt=0)] = 0.02
    consistency: Annotated[float, Field(ge=0)] = 0.0

    ignored_without: ClassVar[Mapping[str, tuple[str, ...]]] = {"consistency": ("consistency",)}
    searched: ClassVar[Space] = {"bottleneck": (24, 48, 96)}
    about = About(
        line="adapters drawn at random, merged for inference",
        paper="Wang et al., AdaMix: Mixture-of-Adaptations for Parameter-efficient Model Tuning, "
        "https://arxiv.org/abs/2205.12410",
        equation="y = h + W_up^j f(W_down^i h + b_down^i) + b_up^j, h = frozen(x), i, j ~ U{1..N}; merged at inference",
        trained="N down-projections and one up-projection behind the FFN of every layer",
        count="L*(num_experts*(d*bottleneck + bottleneck) + d*bottleneck + d)",
        once="the mean of the experts (inference)",
        per_row="two thin products per layer",
        differs="The consistency term, which takes a second pass of the whole model, is an option (`consistency`); of "
        "the released code, only RoBERTa's has it.",
    )


class AdaMix(BottleneckMethod, config=AdaMixConfig):
    """By the path of the module they follow: ``W_down`` ``(N, b, d)``, ``W_up`` ``(N|1, d, b)`` and their biases."""

    def __init__(self, config: AdaMixConfig, shape: Shape):
        super().__init__(config, config.activation)
        self.consistency = config.consistency
        self.compares = ("itself",) if config.consistency else ()
        followed = with_role(config, shape, ("ffn.out",))
        self.changes = tuple(part.path for part in followed)
        ups = 1 if config.share_up else config.num_experts
        for part in followed:
            self.add(part, config.bottleneck, config.init_std, (config.num_experts,), (ups,))

    def forward(self, rows: Rows | None = None) -> SoftPrompt:
        """The way behind every FFN: through the experts drawn in training, through their mean otherwise."""
        return SoftPrompt(modules={path: self.way(path) for path in self.changes})

    def choose(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """One expert's weight and bias in training, the mean of all otherwise."""
        if not self.training:
            return weight.mean(0), bias.mean(0)
        expert = int(torch.randint(len(weight), (), device="cpu"))
        return weight[expert], bias[expert]

    def compare(self, own: Answers, others: Mapping[str, Answers]) -> Tensor:
        """The consistency term, with a gradient through both passes."""
        p, q = own.logits, others["itself"].logits
        return self.consistency * (divergence(p, q) + divergence(q, p)) / 2

    def vitals(self, rows: Rows | None = None) -> list[Vital]:
        """How far the down-projections of experts are from their mean, relative to their norm."""
        apart = [(weight - weight.mean(0)).norm() / weight.norm() for weight in self.down.values()]
        return [Vital("experts.apart", torch.stack(apart).mean(), 0.01, "experts: all of them are the same")]

    def components(self) -> dict[str, Component]:
        """All experts, in one group."""
        return {"experts": Component(self.bottlenecks(), learning_rate=4e-3)}

"""Residual prompt tuning: a prompt plus what a small network makes of it.

Razdaibiedina, Mao, Khabsa, Lewis, Hou, Ba and Almahairi, "Residual Prompt Tuning: Improving Prompt Tuning with Residual
Reparameterization", Findings of ACL 2023, https://arxiv.org/abs/2305.03937

    P'_i = P_i + phi(P_i),    phi(x) = LayerNorm(W_up ReLU(W_down x + b_1) + b_2),    i = 1..l

One ``phi`` for all tokens, or one for each. Trained: ``P (l, d)`` and ``phi``, ``2*d*b + b + d`` numbers and ``2*d`` in
LayerNorm. Dropped after training, which leaves a plain prompt.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from softprompts.methods.about import PLAIN_FORMS, About, Space, Vital
from softprompts.methods.common import sampled_rows
from softprompts.methods.contract import Component, Method, MethodConfig, Rows, Shape
from softprompts.methods.registry import register
from softprompts.soft_prompt import SoftPrompt
from softprompts.validation import settings


@register("residual")
@settings
class ResidualConfig(MethodConfig):
    """Settings of residual prompt tuning.

    Attributes:
        bottleneck: ``b``, width inside the network (released code: 800).
        shared_mlp: one network for all tokens, as the released code has it by default; else one per token.
        layer_norm: LayerNorm at the end of the network, before the sum.
        dropout: dropout before LayerNorm in training.
        vocabulary_limit: draw the starting prompt from this many first tokens only; None for all.
    """

    bottleneck: Annotated[int, Field(ge=1)] = 800
    shared_mlp: bool = True
    layer_norm: bool = True
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    vocabulary_limit: Annotated[int, Field(ge=1)] | None = None

    uses_tokens = True
    searched: ClassVar[Space] = {"bottleneck": (128, 400, 800)}
    about = About(
        line="a prompt plus what a small network makes of it",
        paper='Razdaibiedina et al., "Residual Prompt Tuning", Findings of ACL 2023, https://arxiv.org/abs/2305.03937',
        equation="P'_i = P_i + LayerNorm(W_up ReLU(W_down P_i + b_1) + b_2)",
        trained="prompt P (l, d) and the network",
        count="l*d + 2*d*bottleneck + bottleneck + d + 2*d (one network, LayerNorm)",
        once="the prompt",
        folds_to="tokens",
        exports=PLAIN_FORMS,
        differs="Starting rows are different tokens (released code: drawn with replacement).",
    )


class Residual(Method, config=ResidualConfig):
    """Prompt ``(l, d)`` and ``n`` networks, side by side: 1 or ``l``.

    Their weights are ``down (n, d, b)``, ``up (n, b, d)`` and biases ``(n, 1, b)``, ``(n, 1, d)``, starting as linear
    layers do; LayerNorm's ``scale`` and ``shift (n, 1, d)`` are None without it.
    """

    def __init__(self, config: ResidualConfig, shape: Shape):
        super().__init__(config)
        self.dropout = config.dropout
        width, inner = shape.hidden_size, config.bottleneck
        self.prompt = nn.Parameter(sampled_rows(shape, config.num_virtual_tokens, config.vocabulary_limit))
        self.networks = 1 if config.shared_mlp else config.num_virtual_tokens

        def uniform(rows: int, columns: int, inputs: int) -> nn.Parameter:
            bound = 1 / math.sqrt(inputs)
            return nn.Parameter(nn.init.uniform_(torch.empty(self.networks, rows, columns), -bound, bound))

        self.down, self.down_bias = uniform(width, inner, width), uniform(1, inner, width)
        self.up, self.up_bias = uniform(inner, width, inner), uniform(1, width, inner)
        normed = config.layer_norm
        self.scale = nn.Parameter(torch.ones(self.networks, 1, width)) if normed else None
        self.shift = nn.Parameter(torch.zeros(self.networks, 1, width)) if normed else None

    def forward(self, rows: Rows | None = None) -> SoftPrompt:
        """Tokens ``(1, l, d)``."""
        length, width = self.prompt.shape
        given = self.prompt.view(self.networks, length // self.networks, width)
        inside = torch.baddbmm(self.down_bias, given, self.down).relu()
        change = torch.baddbmm(self.up_bias, inside, self.up)
        change = functional.dropout(change, self.dropout, self.training)
        if self.scale is not None and self.shift is not None:
            change = functional.layer_norm(change, (width,)) * self.scale + self.shift
        return SoftPrompt(tokens=(given + change).view(1, length, width))

    def vitals(self, rows: Rows | None = None) -> list[Vital]:
        """What the network adds, relative to the prompt's norm."""
        tokens = self(rows).tokens
        added = (tokens - self.prompt).norm() / self.prompt.norm()
        return [Vital("network.norm", added, 0.01, "network: adds nothing to the prompt")]

    def components(self) -> dict[str, Component]:
        """The prompt and the network, which wants a lower rate."""
        network = [self.down, self.down_bias, self.up, self.up_bias]
        norm = [parameter for parameter in (self.scale, self.shift) if parameter is not None]
        return {
            "prompt": Component([self.prompt], learning_rate=2e-2),
            "mlp": Component([*network, *norm], learning_rate=1e-3),
        }

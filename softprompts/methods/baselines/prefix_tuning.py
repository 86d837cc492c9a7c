"""Prefix tuning: trained keys and values in front of those of every attention site.

Li and Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", ACL 2021,
https://arxiv.org/abs/2101.00190; Liu et al., "P-Tuning v2", ACL 2022, https://arxiv.org/abs/2110.07602

    K'_q = [P_k^q ; K_q],    V'_q = [P_v^q ; V_q],    P_k^q, P_v^q in R^{l x w} for every site q

Trained: the table, ``2*S*l*w`` numbers; or, with ``reparameterize``, an embedding ``(l, d)`` and a network
``d -> h -> 2*S*w`` with tanh that makes the table and is dropped after training.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from softprompts.methods.about import About
from softprompts.methods.common import PrefixConfig, PrefixMethod, plain_prefix, require_sites
from softprompts.methods.contract import Component, Method, Rows, Shape
from softprompts.methods.registry import register
from softprompts.soft_prompt import SoftPrompt
from softprompts.validation import settings


@register("prefix-tuning")
@settings
class PrefixTuningConfig(PrefixConfig):
    """Settings of prefix tuning.

    Attributes:
        reparameterize: train a network that makes the table instead of the table.
        mlp_hidden_size: ``h``, width of that network.
        init, init_text: where the table starts, see `PrefixConfig`; a network that makes it starts from "normal".
        init_std: standard deviation of the starting values (biases start at zero); None: 0.5 for the table, 0.02 (that
            of P-tuning v2, which small budgets found too small for the table) for embedding and network.
    """

    reparameterize: bool = False
    mlp_hidden_size: Annotated[int, Field(ge=1)] = 512
    init_std: Annotated[float, Field(gt=0)] | None = None

    about = About(
        line="trained keys and values at every attention",
        start_here=True,
        paper="Li and Liang, ACL 2021, https://arxiv.org/abs/2101.00190; P-tuning v2: Liu et al., ACL 2022, "
        "https://arxiv.org/abs/2110.07602",
        equation="K'_q = [P_k^q ; K_q], V'_q = [P_v^q ; V_q] for every site q",
        trained="the table of keys and values (l, 2*S*w); or a network that makes it",
        count="2*S*l*w",
        sizes=(
            *({"num_virtual_tokens": length} for length in (8, 20, 40, 128)),
            {"num_virtual_tokens": 20, "sites": ("decoder.self",)},
            {"num_virtual_tokens": 20, "reparameterize": True},
        ),
        once="with `reparameterize` the network",
        folds_to="prefix",
        exports=("peft",),
        differs="Every attention site has a prefix of its own, of encoder, decoder and cross-attention "
        "(`sites` chooses). PEFT and code built on it reach only the decoder of T5, where layers i and i + L/2 share a "
        "prefix and half of the parameters get no gradient. Real tokens keep their positions. The table starts from "
        "N(0, 0.5^2): the 0.02 of P-tuning v2 measured too small for small budgets.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = self.init == "normal" or not self.reparameterize
        self.require(fits, f"init='{self.init}' is a start of the table, not of a network: leave out reparameterize")

    def build(self, shape: Shape) -> Method:
        """The table, or the network that makes it."""
        if self.reparameterize:
            return ReparameterizedPrefix(self, shape)
        return PrefixMethod(self, shape)


class ReparameterizedPrefix(Method):
    """A network that makes the prefix table: ``tanh(embedding W_1 + b_1) W_2 + b_2``."""

    def __init__(self, config: PrefixTuningConfig, shape: Shape):
        super().__init__(config)
        require_sites(config, shape)
        self.num_sites = shape.num_sites
        self.embedding = nn.Parameter(torch.empty(config.num_virtual_tokens, shape.hidden_size))
        self.inner = nn.Linear(shape.hidden_size, config.mlp_hidden_size)
        self.outer = nn.Linear(config.mlp_hidden_size, 2 * shape.num_sites * shape.kv_width)
        for weight in (self.embedding, self.inner.weight, self.outer.weight):
            nn.init.normal_(weight, std=0.02 if config.init_std is None else config.init_std)
        for layer in (self.inner, self.outer):
            nn.init.zeros_(layer.bias)

    def forward(self, rows: Rows | None = None) -> SoftPrompt:
        """Keys and values ``(S, 1, l, w)``."""
        return plain_prefix(self.outer(self.inner(self.embedding).tanh()), self.num_sites)

    def components(self) -> dict[str, Component]:
        """The embedding, and the network at a lower rate."""
        network = [*self.inner.parameters(), *self.outer.parameters()]
        return {
            "prefix": Component([self.embedding], learning_rate=3e-2),
            # The rate of the table is far too high for a dense network.
            "mlp": Component(network, learning_rate=1e-3),
        }

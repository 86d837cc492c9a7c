"""SuperPos-Prompt: every prompt token is a weighted sum of sampled token embeddings, weights and embeddings trained.

SadraeiJavaeri, Asgari, McHardy and Rabiee, "SuperPos-Prompt: Enhancing Soft Prompt Tuning of Language Models with
Superposition of Multi Token Embeddings", 2024, https://arxiv.org/abs/2406.05279

    p_i = E_i p'_i = sum_j p'_ij e_ij,    i = 1..l        (softmax variant of the appendix: p_i = E_i softmax(p'_i))

Trained: ``E (l, m, d)`` and ``W = p' (l, m)``; ``l*m*d + l*m`` numbers. All ``E_i`` start from the same ``m`` tokens
and then go their own ways. Weight decay shrinks the embeddings and loses what they know, so only ``W`` gets it.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from softprompts.methods.about import PLAIN_FORMS, About, Space, View, Vital
from softprompts.methods.common import sampled_rows
from softprompts.methods.contract import Component, Method, MethodConfig, Rows, Shape
from softprompts.methods.registry import register
from softprompts.soft_prompt import SoftPrompt
from softprompts.validation import settings


@register("superpos")
@settings
class SuperPosConfig(MethodConfig):
    """Settings of SuperPos-Prompt.

    Attributes:
        num_sampled_tokens: ``m``, how many tokens every prompt token mixes.
        softmax: normalise the weights; the paper's ablation, clearly worse.
        weights_init: start of the weights, which the paper leaves open. "normal": N(0, 1/m), which gives prompt tokens
            about the norm of a token embedding; "uniform": in +-1/sqrt(m), as of a linear layer; "zeros": with softmax
            only, the mean of the tokens. None: "zeros" with softmax, otherwise "normal".
        weight_decay: of the weights, whatever the run's; the embeddings have none.
        vocabulary_limit: draw from this many first tokens only; None for all.
    """

    num_sampled_tokens: Annotated[int, Field(ge=1)] = 128
    softmax: bool = False
    weights_init: Literal["normal", "uniform", "zeros"] | None = None
    weight_decay: Annotated[float, Field(ge=0)] = 1e-5
    vocabulary_limit: Annotated[int, Field(ge=1)] | None = None

    uses_tokens = True
    revision = 2
    searched: ClassVar[Space] = {"num_sampled_tokens": (32, 128)}
    about = About(
        line="prompt tokens as weighted sums of embeddings",
        paper="SadraeiJavaeri, Asgari, McHardy and Rabiee, 2024, https://arxiv.org/abs/2406.05279",
        equation="p_i = E_i p'_i = sum_j p'_ij e_ij",
        trained="embeddings E (l, m, d) and weights p' (l, m)",
        count="l*m*d + l*m",
        symbols={"m": "num_sampled_tokens"},
        once="the weighted sums",
        folds_to="tokens",
        exports=PLAIN_FORMS,
        differs="No code was released. The paper leaves the start of the weights open: N(0, 1/m), which gives prompt "
        "tokens about the norm of a token embedding. One rate for embeddings and weights as in the paper, but 3e-3 "
        "(paper: 1e-2, with which tokens on the packaged encoder grow to 14 times the embeddings in 150 steps).",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # Without softmax zero weights make a zero prompt, which passes no gradient to the embeddings.
        self.require(self.softmax or self.weights_init != "zeros", "weights_init='zeros' needs softmax=True")


class SuperPos(Method, config=SuperPosConfig):
    """Embeddings ``(l, m, d)`` and weights ``(l, m)``."""

    config: SuperPosConfig

    def __init__(self, config: SuperPosConfig, shape: Shape):
        super().__init__(config)
        length, tokens = config.num_virtual_tokens, config.num_sampled_tokens
        rows = sampled_rows(shape, tokens, config.vocabulary_limit)
        self.embeddings = nn.Parameter(rows.repeat(length, 1, 1))
        self.weights = nn.Parameter(torch.zeros(length, tokens))
        init = config.weights_init or ("zeros" if config.softmax else "normal")
        scale = 1 / math.sqrt(tokens)
        if init == "normal":
            nn.init.normal_(self.weights, std=scale)
        elif init == "uniform":
            nn.init.uniform_(self.weights, -scale, scale)

    def forward(self, rows: Rows | None = None) -> SoftPrompt:
        """Tokens ``(1, l, d)``."""
        return SoftPrompt(tokens=torch.einsum("lm,lmd->ld", self.shares(), self.embeddings).unsqueeze(0))

    def shares(self) -> Tensor:
        """``p' (l, m)``, normalised where the config says so."""
        return self.weights.softmax(-1) if self.config.softmax else self.weights

    def views(self, rows: Rows | None = None) -> list[View]:
        """The weights (their cosines are the paper's Figure 2d), and the embeddings that they are for."""
        axes = ("token", "sampled", "width")
        return [View("superposition", self.shares(), axes[:2]), View("embeddings", self.embeddings, axes)]

    def vitals(self, rows: Rows | None = None) -> list[Vital]:
        """How many tokens each prompt token mixes: ``(sum |p'|)^2 / sum p'^2``, m where all weigh the same."""
        sizes = self.shares().abs()
        mixed = (sizes.sum(1).square() / sizes.square().sum(1)).mean()
        return [
            Vital("superposition.tokens", mixed, 2.0, "superposition: prompt tokens are single tokens"),
            Vital("moved.weights", None, 0.01, "superposition: the weights stay as they started"),
        ]

    def components(self) -> dict[str, Component]:
        """The embeddings, and the weights with their decay, both at one rate as in the paper."""
        return {
            "embeddings": Component([self.embeddings], learning_rate=3e-3, weight_decay=0.0),
            "weights": Component([self.weights], learning_rate=3e-3, weight_decay=self.config.weight_decay),
        }

"""ATTEMPT: a mixture of frozen source prompts and a trained one, chosen anew for each input.

Asai, Salehi, Peters and Hajishirzi, "ATTEMPT: Parameter-Efficient Multi-task Tuning via Attentional Mixtures of Soft
Prompts", EMNLP 2022, https://arxiv.org/abs/2205.11961

    x^  = max over the tokens of E(x),    P^_j = max over the rows of P_j
    h   = LayerNorm(W_up SiLU(W_down x^)),    W_down in R^{b x d},  W_up in R^{d x b}
    a_j = softmax_j(<P^_j, h> / T),    j over the t sources and the target
    P   = sum_j a_j P_j + P_T,    X' = [P ; E(x)]

Trained: the target prompt ``P_T``, ``W_down``, ``W_up`` and the LayerNorm; ``l*d + 2*b*d + 2*d`` numbers.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from softprompts.methods import sources
from softprompts.methods.about import About, View, Vital
from softprompts.methods.common import route_vitals, sampled_rows
from softprompts.methods.contract import Component, Method, Rows, Shape
from softprompts.methods.registry import register
from softprompts.methods.source_settings import SourcedConfig
from softprompts.soft_prompt import SoftPrompt
from softprompts.validation import settings


@register("attempt")
@settings
class AttemptConfig(SourcedConfig):
    """Settings of ATTEMPT.

    Attributes:
        sources: folders of saved prompts (or run folders, or hub ids). One of another length is repeated from its
            first token on, or cut.
        target_init: where the target prompt starts: "source" for the first source, "vocabulary" for embeddings of
            different tokens.
        vocabulary_limit: draw from this many first tokens only (5,000 in released code); None for all.
        bottleneck: ``b``, width inside the attention's network.
        temperature: ``T``; None for ``e*d``, as in the paper (2,087 at T5-base). Embeddings smaller than those of T5
            want a smaller one: at ``e*d`` they give nearly the same weight to every prompt.
        train_norm: train the LayerNorm too, as the paper counts; the released code leaves it as it is.
        restored: number of sources of a saved prompt that is about to be loaded; saving sets it.
    """

    target_init: Literal["source", "vocabulary"] = "source"
    vocabulary_limit: Annotated[int, Field(ge=1)] | None = None
    bottleneck: Annotated[int, Field(ge=1)] = 100
    temperature: Annotated[float, Field(gt=0)] | None = None
    train_norm: bool = True

    uses_tokens = True
    about = About(
        line="source prompts, mixed anew for each input",
        paper="Asai et al., ATTEMPT: Parameter-Efficient Multi-task Tuning via Attentional Mixtures of Soft Prompts, "
        "EMNLP 2022, https://arxiv.org/abs/2205.11961",
        equation="P = sum_j a_j P_j + P_T, a = softmax_j(<max P_j, LayerNorm(W_up SiLU(W_down max E(x)))> / T)",
        trained="the target prompt P_T, W_down, W_up and the LayerNorm",
        count="l*d + 2*b*d + 2*d",
        symbols={"b": "bottleneck"},
        settings={"restored": 6},
        sizes=({"num_virtual_tokens": 100},),
        once="the pooled prompts",
        per_row="the pooled input, the attention and the mixture",
        differs="The input is pooled over its real tokens; the released code pools over padding too, so that a row "
        "depends on its batch. The LayerNorm is trained as in the paper; the released code freezes it.",
    )

    def build(self, shape: Shape) -> Method:
        """The module, its attention freshly initialised."""
        length, width = self.num_virtual_tokens, shape.hidden_size
        if self.restored:
            return Attempt(self, sources.blank(self.restored, length, width), sources.blank(length, width))
        self.require(bool(self.sources), "it mixes source prompts: name at least one in sources")
        prompts = torch.stack(sources.load_tokens(self.method, self.sources, width, length, shape.identity))
        if self.target_init == "source":
            return Attempt(self, prompts, prompts[0].clone())
        return Attempt(self, prompts, sampled_rows(shape, length, self.vocabulary_limit))


class Attempt(Method):
    """Sources ``(t, l, d)`` that stay as they are, the target prompt ``(l, d)``, and the attention's network."""

    per_row = True
    config: AttemptConfig
    sources: Tensor

    def __init__(self, config: AttemptConfig, prompts: Tensor, target: Tensor):
        super().__init__(config)
        width = target.shape[1]
        self.temperature = math.e * width if config.temperature is None else config.temperature
        self.register_buffer("sources", prompts)
        self.prompt = nn.Parameter(target)
        self.down = nn.Linear(width, config.bottleneck, bias=False)
        self.up = nn.Linear(config.bottleneck, width, bias=False)
        self.norm = nn.LayerNorm(width, elementwise_affine=config.train_norm)
        self.borrows = False  # whether another prompt trains the attention

    def attention(self, rows: Rows) -> Tensor:
        """Weights ``(R, t+1)`` of the sources and, last, of the target."""
        pooled = rows.max().to(self.down.weight)
        hidden = self.norm(self.up(functional.silu(self.down(pooled))))
        prompts = torch.cat([self.sources.amax(1), self.prompt.amax(0, keepdim=True)])
        scores: Tensor = hidden @ prompts.T / self.temperature
        return scores.softmax(-1)

    def forward(self, rows: Rows | None = None) -> SoftPrompt:
        """Tokens ``(R, l, d)``."""
        if rows is None:
            raise ValueError("attention over prompts needs the rows")
        prompts = torch.cat([self.sources, self.prompt.unsqueeze(0)])
        return SoftPrompt(tokens=torch.einsum("rt,tld->rld", self.attention(rows), prompts) + self.prompt)

    def views(self, rows: Rows | None = None) -> list[View]:
        """Each row's attention to the sources and the target."""
        names = [*(f"source {number}" for number in range(len(self.sources))), "target"]
        return [] if rows is None else [View("routes", self.attention(rows), ("row", "source"), {"source": names})]

    def vitals(self, rows: Rows | None = None) -> list[Vital]:
        """How the attention of rows is spread over the sources and the target."""
        return [] if rows is None else route_vitals(self.attention(rows), 0.02, "attention: all rows get the same mix")

    def components(self) -> dict[str, Component]:
        """The target prompt, and the attention's network."""
        network = [*self.down.parameters(), *self.up.parameters(), *self.norm.parameters()]
        return {
            "prompt": Component([self.prompt], learning_rate=2e-2),
            "attention": Component([] if self.borrows else network, learning_rate=1e-2),
        }

    def share_with(self, other: Method) -> None:
        """Takes the attention's network from another attempt prompt of the same sizes."""
        fits = (
            isinstance(other, Attempt)
            and other is not self
            and other.down.weight.shape == self.down.weight.shape
            and other.config.train_norm == self.config.train_norm
        )
        self.config.require(fits, "only attempt prompts of one bottleneck and train_norm can share their attention")
        assert isinstance(other, Attempt)
        self.down, self.up, self.norm, self.borrows = other.down, other.up, other.norm, True

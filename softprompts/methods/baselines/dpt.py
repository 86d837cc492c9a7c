"""DPT, decomposed prompt tuning: a prompt of low rank.

Xiao, Xu, Li, Lu and Li, "Decomposed Prompt Tuning via Low-Rank Reparameterization", Findings of EMNLP 2023,
https://arxiv.org/abs/2310.10094

    P = A B,    A in R^{l x b},  B in R^{b x d}

Trained: ``A`` and ``B``; ``(l + d)*b`` numbers. Multiplied out after training, which leaves a plain prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from softprompts.methods.about import About, Span
from softprompts.methods.common import real_number, whole_number
from softprompts.methods.contract import Component, Method, MethodConfig, Rows, Shape
from softprompts.methods.registry import register
from softprompts.soft_prompt import SoftPrompt


@register("dpt")
@dataclass(frozen=True, kw_only=True)
class DPTConfig(MethodConfig):
    """Settings of decomposed prompt tuning.

    Attributes:
        num_virtual_tokens: ``l``, long as in the paper: few tokens have a low rank as they are.
        rank: ``b``, at most ``l``.
        init_scale: both factors start uniform in +- this (released code: 0.5).
    """

    num_virtual_tokens: int = 100
    rank: int = 10
    init_scale: float = 0.5

    uses_tokens: ClassVar[bool] = True
    about: ClassVar[About | None] = About(
        paper='Xiao et al., "Decomposed Prompt Tuning via Low-Rank Reparameterization", Findings of EMNLP 2023, '
        "https://arxiv.org/abs/2310.10094",
        equation="P = A B",
        trained="factors A (l, rank) and B (rank, d)",
        count="(l + d)*rank",
        once="the prompt",
        folds_to="tokens",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number(self, "rank", 1)
        real_number(self, "init_scale", zero=False)
        self.require(
            self.rank <= self.num_virtual_tokens,
            f"rank={self.rank} is more than num_virtual_tokens={self.num_virtual_tokens}; set it lower",
        )

    @classmethod
    def search_space(cls) -> Mapping[str, Span | Sequence[Any]]:
        """Also the rank; no prompts longer than the paper's."""
        return {**super().search_space(), "num_virtual_tokens": (20, 50, 100), "rank": (5, 10, 20)}

    def build(self, shape: Shape) -> Method:
        """The module, freshly initialised."""
        return DPT(self, shape)


class DPT(Method):
    """Factors ``A (l, b)`` and ``B (b, d)``."""

    def __init__(self, config: DPTConfig, shape: Shape):
        super().__init__(config)
        length, rank, scale = config.num_virtual_tokens, config.rank, config.init_scale
        self.a = nn.Parameter(nn.init.uniform_(torch.empty(length, rank), -scale, scale))
        self.b = nn.Parameter(nn.init.uniform_(torch.empty(rank, shape.hidden_size), -scale, scale))

    def forward(self, rows: Rows | None = None) -> SoftPrompt:
        """Tokens ``(1, l, d)``."""
        return SoftPrompt(tokens=(self.a @ self.b).unsqueeze(0))

    def components(self) -> dict[str, Component]:
        """Both factors."""
        return {"factors": Component([self.a, self.b], learning_rate=1e-2)}

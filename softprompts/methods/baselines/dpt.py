"""DPT, decomposed prompt tuning: a prompt of low rank.

Xiao, Xu, Li, Lu and Li, "Decomposed Prompt Tuning via Low-Rank Reparameterization", Findings of EMNLP 2023,
https://arxiv.org/abs/2310.10094

    P = A B,    A in R^{l x b},  B in R^{b x d}

Trained: ``A`` and ``B``; ``(l + d)*b`` numbers. Multiplied out after training, which leaves a plain prompt.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from softprompts.methods.about import PLAIN_FORMS, About, Space
from softprompts.methods.common import sampled_rows
from softprompts.methods.contract import Component, Method, MethodConfig, Rows, Shape
from softprompts.methods.registry import register
from softprompts.soft_prompt import SoftPrompt
from softprompts.validation import settings


@register("dpt")
@settings
class DPTConfig(MethodConfig):
    """Settings of decomposed prompt tuning.

    Attributes:
        num_virtual_tokens: ``l``, long as in the paper: few tokens have a low rank as they are.
        rank: ``b``, at most ``l``.
        init_scale: both factors start uniform in +- this; None: so that the numbers of ``A B`` are as large as those of
            token embeddings (released code: 0.5).
    """

    num_virtual_tokens: Annotated[int, Field(ge=1)] = 100
    rank: Annotated[int, Field(ge=1)] = 10
    init_scale: Annotated[float, Field(gt=0)] | None = None

    uses_tokens = True
    searched: ClassVar[Space] = {"num_virtual_tokens": (20, 50, 100), "rank": (5, 10, 20)}
    about = About(
        paper='Xiao et al., "Decomposed Prompt Tuning via Low-Rank Reparameterization", Findings of EMNLP 2023, '
        "https://arxiv.org/abs/2310.10094",
        equation="P = A B",
        trained="factors A (l, rank) and B (rank, d)",
        count="(l + d)*rank",
        once="the prompt",
        folds_to="tokens",
        exports=PLAIN_FORMS,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            self.rank <= self.num_virtual_tokens,
            f"rank={self.rank} is more than num_virtual_tokens={self.num_virtual_tokens}; set it lower",
        )


class DPT(Method, config=DPTConfig):
    """Factors ``A (l, b)`` and ``B (b, d)``."""

    def __init__(self, config: DPTConfig, shape: Shape):
        super().__init__(config)
        length, rank, scale = config.num_virtual_tokens, config.rank, config.init_scale or 1.0
        a = nn.init.uniform_(torch.empty(length, rank), -scale, scale)
        b = nn.init.uniform_(torch.empty(rank, shape.hidden_size), -scale, scale)
        if config.init_scale is None:  # the numbers of A B have variance rank/9 by now
            size = (3 * sampled_rows(shape, length).square().mean().sqrt() / math.sqrt(rank)).sqrt()
            a, b = size * a, size * b
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)

    def forward(self, rows: Rows | None = None) -> SoftPrompt:
        """Tokens ``(1, l, d)``."""
        return SoftPrompt(tokens=(self.a @ self.b).unsqueeze(0))

    def components(self) -> dict[str, Component]:
        """Both factors."""
        return {"factors": Component([self.a, self.b], learning_rate=1e-2)}

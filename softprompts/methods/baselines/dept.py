"""DePT: a short prompt and a low-rank change of the input embeddings.

Shi and Lipani, "DePT: Decomposed Prompt Tuning for Parameter-Efficient Fine-tuning", ICLR 2024,
https://arxiv.org/abs/2309.05173

    X' = [P_s ; E(x) + c A B],    P_s in R^{s x d},  A in R^{m x r},  B in R^{r x d}

Row ``i`` of ``A B`` goes to a text's ``i``-th token, whatever that is. Trained: ``s*d + (m + d)*r`` numbers, as many as
in a plain prompt of ``l`` tokens where ``l*d = s*d + (m + d)*r``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import nn

from softprompts.methods.about import About, Space, Vital
from softprompts.methods.common import sampled_rows
from softprompts.methods.contract import Component, Method, Rows, Shape
from softprompts.methods.registry import register
from softprompts.methods.source_settings import StartedConfig
from softprompts.soft_prompt import SoftPrompt
from softprompts.validation import settings


@register("dept")
@settings
class DePTConfig(StartedConfig):
    """Settings of DePT.

    Attributes:
        num_virtual_tokens: ``s``, length of the prompt.
        rank: ``r``.
        max_length: ``m``, how many input tokens get a change.
        scale: ``c``. "paper": 1; "released": ``8/sqrt(r)``, as in the released code.
        vocabulary_limit: draw the starting prompt from this many first tokens only; None for all.
        source: folder of a saved dept prompt with the same sizes (or run folder, or hub id) that all tensors start
            from, as in the paper's few-shot experiments; None: a fresh start.
        source_b: take ``B`` from the source too; False: it starts at 0, so that the embeddings change only once it has
            learned (an option of the released code).
    """

    num_virtual_tokens: Annotated[int, Field(ge=1)] = 60
    rank: Annotated[int, Field(ge=1)] = 30
    max_length: Annotated[int, Field(ge=1)] = 256
    scale: Literal["paper", "released"] = "paper"
    vocabulary_limit: Annotated[int, Field(ge=1)] | None = None
    source_b: bool = True

    uses_tokens = True
    decisive = ("scale",)
    revision = 1
    ignored_without: ClassVar[Mapping[str, tuple[str, ...]]] = {"source": ("source", "source_b")}
    searched: ClassVar[Space] = {"num_virtual_tokens": (20, 40, 60), "rank": (10, 30, 45)}
    about = About(
        line="a short prompt and a low-rank input update",
        paper='Shi and Lipani, "DePT: Decomposed Prompt Tuning for Parameter-Efficient Fine-tuning", ICLR 2024, '
        "https://arxiv.org/abs/2309.05173",
        equation="X' = [P ; E(x) + c A B], c = 1 (released: 8/sqrt(rank))",
        trained="prompt P (l, d), factors A (max_length, rank) and B (rank, d)",
        count="l*d + (max_length + d)*rank",
        once="prompt and A B",
        per_row="a sum with the embeddings",
        folds_to="tokens and update",
        differs="c = 1 as in the paper; 8/sqrt(rank), as in the released code, is an option. The prompt starts from "
        "different tokens, as in the paper (released code: a repeated text), A from U(+-1/sqrt(rank)), as in the "
        "released code (paper: Gaussian). Changes go to real tokens only, on whichever side the padding is.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.source_b or self.source is not None, "source_b=False is about a source: name one in source")

    def without_files(self, **changes: Any) -> Self:
        """The config without the source; ``source_b`` has no meaning without one."""
        return super().without_files(source_b=True, **changes)

    def build(self, shape: Shape) -> Method:
        """The module, freshly initialised."""
        return self.started(DePT(self, shape), shape, () if self.source_b else ("b",))


class DePT(Method):
    """Prompt ``(s, d)``, factors ``A (m, r)`` and ``B (r, d)``."""

    config: DePTConfig

    def __init__(self, config: DePTConfig, shape: Shape):
        super().__init__(config)
        rank = config.rank
        self.scale = 8 / math.sqrt(rank) if config.scale == "released" else 1.0
        self.prompt = nn.Parameter(sampled_rows(shape, config.num_virtual_tokens, config.vocabulary_limit))
        bound = 1 / math.sqrt(rank)
        self.a = nn.Parameter(nn.init.uniform_(torch.empty(config.max_length, rank), -bound, bound))
        self.b = nn.Parameter(torch.zeros(rank, shape.hidden_size))  # no change at the start

    def forward(self, rows: Rows | None = None) -> SoftPrompt:
        """Tokens ``(1, s, d)`` and update ``(1, m, d)``."""
        return SoftPrompt(tokens=self.prompt.unsqueeze(0), update=(self.scale * self.a @ self.b).unsqueeze(0))

    def vitals(self, rows: Rows | None = None) -> list[Vital]:
        """From where on the change of the embeddings counts."""
        return [Vital("update.norm", None, 0.01, "decomposition: the embeddings stay as they are")]

    def components(self) -> dict[str, Component]:
        """The prompt and the factors, at the two rates that the paper is about."""
        return {
            "prompt": Component([self.prompt], learning_rate=6e-3),
            "low_rank": Component([self.a, self.b], learning_rate=5e-4),  # of the paper's 1e-4, 5e-4 and 5e-3
        }

"""SMoP: every input takes one of several short prompts.

Choi, Kim, Park, Mok and Lee, "SMoP: Towards Efficient and Effective Prompt Tuning with Sparse Mixture-of-Prompts",
EMNLP 2023, https://aclanthology.org/2023.emnlp-main.884

    p(x) = softmax(W mean embedding of x),    c = argmax_j p_j(x),    X' = [p_c(x) P_c ; E(x)],    P_j in R^{l x d}

The router learns through the factor ``p_c`` alone. With several prompts at a time, their sum goes in front.
Trained: ``k`` prompts and the router ``W (k, d)``; ``k*l*d + k*d`` numbers.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from softprompts.methods.about import About, Space, View, Vital
from softprompts.methods.common import Router, perturbed, route_vitals, sampled_rows
from softprompts.methods.contract import Component, Method, MethodConfig, Rows, Shape
from softprompts.methods.registry import register
from softprompts.soft_prompt import SoftPrompt
from softprompts.validation import settings


@register("smop")
@settings
class SMoPConfig(MethodConfig):
    """Settings of SMoP.

    Attributes:
        num_virtual_tokens: ``l``, length of each prompt.
        num_prompts: ``k``.
        top_k: how many of them an input takes.
        router_input: what the router sees of the mean embedding: "standardised" (see `Router`), or "raw", the mean
            itself, as in the paper.
        router_dropout: dropout on the router's logits in training, where there is no noise.
        router_noise: multiply the logits by ``1 + N(0, 1)`` in training, as the released code's command does; a prompt
            that is never chosen never learns.
        init: where prompts start. "vocabulary": embeddings of different tokens. "random": N(0, 1), as in the released
            code.
        vocabulary_limit: draw from this many first tokens only; None for all.
    """

    num_virtual_tokens: Annotated[int, Field(ge=1)] = 5
    num_prompts: Annotated[int, Field(ge=2)] = 4  # one is prompt tuning
    top_k: Annotated[int, Field(ge=1)] = 1
    router_input: Literal["standardised", "raw"] = "raw"
    router_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    router_noise: bool = True
    init: Literal["vocabulary", "random"] = "vocabulary"
    vocabulary_limit: Annotated[int, Field(ge=1)] | None = None

    uses_tokens = True
    absent: ClassVar[dict[str, Any]] = {"router_input": "raw"}
    searched: ClassVar[Space] = {"num_prompts": (2, 4, 8)}
    about = About(
        line="each input takes one of several short prompts",
        paper='Choi et al., "SMoP: Towards Efficient and Effective Prompt Tuning with Sparse Mixture-of-Prompts", '
        "EMNLP 2023, https://aclanthology.org/2023.emnlp-main.884",
        equation="p(x) = softmax(W mean(E(x))), c = argmax_j p_j(x), X' = [p_c(x) P_c ; E(x)]",
        trained="num_prompts prompts P_j (l, d) and router W (num_prompts, d)",
        count="num_prompts*l*d + num_prompts*d",
        per_row="router, and the scaled choice of a prompt",
        differs="The released code with one prompt per input gives each row the sum of all rows' choices in the batch; "
        "here, as in the paper, a row's prompt depends on that row alone. Prompts start from tokens (released code: "
        "N(0, 1)).",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.top_k <= self.num_prompts, f"top_k={self.top_k} is more than num_prompts={self.num_prompts}")


class SMoP(Method, config=SMoPConfig):
    """Prompts ``(k, l, d)`` and router ``d -> k``."""

    per_row = True
    config: SMoPConfig

    def __init__(self, config: SMoPConfig, shape: Shape):
        super().__init__(config)
        size = (config.num_prompts, config.num_virtual_tokens, shape.hidden_size)
        if config.init == "random":
            prompts = torch.randn(size)
        else:
            prompts = sampled_rows(shape, size[0] * size[1], config.vocabulary_limit).view(size)
        self.prompts = nn.Parameter(prompts)
        self.router = Router(shape, config.num_prompts, config.router_input == "standardised")

    def forward(self, rows: Rows | None = None) -> SoftPrompt:
        """Tokens ``(R, l, d)``."""
        if rows is None:
            raise ValueError("a router over several prompts needs the rows")
        shares, chosen = self.route(rows)
        return SoftPrompt(tokens=torch.einsum("rk,kld->rld", shares * chosen, self.prompts))

    def route(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """``p (R, k)``, and which of the prompts each row gets: 0 or 1, ``(R, k)``."""
        logits = self.router(self.router.seen(rows))
        logits = perturbed(logits, self.config.router_dropout, self.config.router_noise, self.training)
        # Stable: of two equal ones the first is taken, whatever the batch.
        chosen = logits.sort(dim=-1, descending=True, stable=True).indices[:, : self.config.top_k]
        return logits.softmax(-1), torch.zeros_like(logits).scatter(1, chosen, 1.0)

    def views(self, rows: Rows | None = None) -> list[View]:
        """The prompts to choose from, and how the router chooses."""
        views = [View("tokens", self.prompts, ("prompt", "token", "width"))]
        if rows is not None:
            shares, chosen = self.route(rows)
            views += [View("routes", shares, ("row", "prompt")), View("chosen", chosen, ("row", "prompt"))]
        return views

    def vitals(self, rows: Rows | None = None) -> list[Vital]:
        """How rows are routed, and how many prompts are taken: the exponential of the entropy of the choices."""
        if rows is None:
            return []
        shares, chosen = self.route(rows)
        taken = torch.special.entr(chosen.mean(0) / self.config.top_k).sum().exp()
        least = 1.1 if self.config.top_k == 1 else None
        return [
            *route_vitals(shares, 0.02, "router: all rows get the same shares of the prompts"),
            Vital("routes.taken", taken, least, "router: all rows get the same prompt"),
        ]

    def components(self) -> dict[str, Component]:
        """The prompts and the router."""
        return {
            # High, as what reaches the model is a prompt times about 1/k.
            "prompts": Component([self.prompts], learning_rate=5e-2),
            "router": Component(list(self.router.parameters()), learning_rate=1e-3),
        }

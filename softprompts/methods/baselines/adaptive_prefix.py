"""Adaptive prefix tuning: a prefix with gates per token, from what each layer gets, and one gate per layer.

Zhang, Tan, Xu, Yao, Huang and Huang, "Towards Adaptive Prefix Tuning for Parameter-Efficient Language Model
Fine-tuning", ACL 2023, https://arxiv.org/abs/2305.15212

    alpha_i = sigmoid(h_{i-1} W_i),    P^_i = lambda_i alpha_i o [P_ik ; P_iv],    i = 1..S

``h_{i-1}`` is one vector per row: what site ``i`` is called with, at the first token or on average (where layers
normalise before they attend, the normalised states). **A reading**: neither the paper's text nor its code was at
hand, so the equation, the starting values and what stands for ``h_{i-1}`` are not checked against either.

Trained: the prefix, ``2*S*l*w`` numbers, ``W``, ``S*d*l``, and ``lambda``, ``S``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from softprompts.methods.about import About, View, Vital
from softprompts.methods.common import PrefixConfig, PrefixMethod, gated, gated_by_states
from softprompts.methods.contract import Component, Rows, Shape
from softprompts.methods.registry import register
from softprompts.soft_prompt import GateOf, SoftPrompt
from softprompts.validation import settings


@register("adaptive-prefix")
@settings
class AdaptivePrefixConfig(PrefixConfig):
    """Settings of adaptive prefix tuning; the three flags are the paper's ablations.

    Attributes:
        token_gate: gates ``alpha``, one per token and site.
        layer_scale: gates ``lambda``, one per site.
        hidden_state: the token gates depend on the input; without, they are the sigmoid of a free vector.
        summary: "first": the state of the first token ([CLS] on encoders). "mean": the mean over all tokens, in a
            causal model over its context only. None: "mean" for causal models, whose first token knows nothing, else
            "first". A decoder beside an encoder shows its first token only. While text is generated, gates stay those
            of the first step.
        init, init_text, init_std: where the prefix starts, see `PrefixConfig`.
    """

    token_gate: bool = True
    layer_scale: bool = True
    hidden_state: bool = True
    summary: Literal["first", "mean"] | None = None

    modifies_prefix = True
    about = About(
        line="a prefix with a gate per token and per layer",
        paper="Zhang et al., Towards Adaptive Prefix Tuning for Parameter-Efficient Language Model Fine-tuning, "
        "ACL 2023, https://arxiv.org/abs/2305.15212",
        equation="P^_i = lambda_i sigmoid(h_{i-1} W_i) o [P_ik ; P_iv]",
        trained="the prefix, a projection of the states and a scale per site",
        count="2*S*l*w + S*d*l + S",
        per_row="the gates, at each site from its own input",
        folds_to="prefix, with hidden_state=False or token_gate=False only",
        differs="a reading: neither text nor code of the paper was at hand",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.token_gate or self.layer_scale, "without both gates this is prefix-tuning; keep one of them")
        if self.summary is not None:
            self.require(self.reads_states, "summary needs token_gate=True and hidden_state=True")

    @property
    def reads_states(self) -> bool:
        """Whether the gates depend on what the sites are called with."""
        return self.token_gate and self.hidden_state


class AdaptivePrefix(PrefixMethod, config=AdaptivePrefixConfig):
    """Prefix ``(l, 2*S*w)``, projection ``W (S, d, l)`` or free gates ``(S, l)``, scales ``(S,)``; None where off.

    With all gates it starts as a plain prefix: ``sigmoid(0) = 1/2``, times a scale of 2.
    """

    def __init__(self, config: AdaptivePrefixConfig, shape: Shape, own_prefix: bool = True):
        super().__init__(config, shape, own_prefix)
        self.reads_states = config.reads_states
        sites, length, width = shape.num_sites, config.num_virtual_tokens, shape.site_width or 0
        self.mean = config.summary == "mean" or (config.summary is None and shape.causal)
        self.length = length
        self.projection: nn.Parameter | None = None
        self.free: nn.Parameter | None = None
        if config.reads_states:
            config.require(width > 0, "the layers of this backbone differ in width; set hidden_state=False")
            self.projection = nn.Parameter(torch.zeros(sites, width, length))
        elif config.token_gate:
            self.free = nn.Parameter(torch.zeros(sites, length))
        start = 2.0 if config.token_gate else 1.0
        self.scales = nn.Parameter(torch.full((sites,), start)) if config.layer_scale else None

    def modify(self, prompt: SoftPrompt, rows: Rows | None = None) -> SoftPrompt:
        """Puts the gates ``(S, 1, l)`` on a prefix, and the function that makes those of a site."""
        if self.scales is not None:
            prompt = gated(prompt, self.scales[:, None, None].expand(-1, 1, self.length))
        if self.free is not None:
            prompt = gated(prompt, self.free.sigmoid().unsqueeze(1))
        if self.projection is not None:
            prompt = gated_by_states(prompt, token_gates(self.projection, self.mean))
        return prompt

    def views(self, rows: Rows | None = None) -> list[View]:
        """The token gates ``alpha``, where they do not depend on what layers get."""
        return [] if self.free is None else [View("masks", self.free.sigmoid().T, ("token", "site"))]

    def vitals(self, rows: Rows | None = None) -> list[Vital]:
        """Mean norm of what states are projected on: about the deviation of a gate's logit for states of size 1."""
        if self.projection is None:
            return []
        idle = "token gates: do not depend on the input"
        return [Vital("token_gates.norm", self.projection.norm(dim=1).mean(), 0.02, idle)]

    def components(self) -> dict[str, Component]:
        """The prefix, and the gates in use."""
        parts = super().components()
        gates = [parameter for parameter in (self.projection, self.free) if parameter is not None]
        if gates:
            parts["token_gates"] = Component(gates, learning_rate=1e-2 if self.free is None else 3e-2)
        if self.scales is not None:
            parts["layer_gates"] = Component([self.scales], learning_rate=1e-2)
        return parts

    def cannot_fold(self) -> str | None:
        """Gates from hidden states do not fold."""
        return "its gates depend on what each layer gets" if self.reads_states else None


def token_gates(projection: Tensor, mean: bool) -> GateOf:
    """``alpha (R, l)`` of site ``i`` from its states ``(R, n, d)``, with a projection ``(S, d, l)``."""

    def alpha(place: int, states: Tensor, mask: Tensor | None) -> Tensor:
        return (summary(states, mask, mean).to(projection) @ projection[place]).sigmoid()

    return alpha


def summary(states: Tensor, mask: Tensor | None, mean: bool) -> Tensor:
    """One state per row, ``(R, d)``: the mean or the first of those in the mask; a mean over none is zero."""
    if mask is None:
        return states.mean(1) if mean else states[:, 0]
    if mean:
        return Rows(states, mask).mean()
    first = mask.long().argmax(1)
    return states[torch.arange(len(states), device=states.device), first]

"""Multi-mask prefix tuning: a prefix gated per input by a mixture of masks.

Tu, Nguyen, Nguyen and Dinh, "Multi-mask Prefix Tuning: Applying Multiple Adaptive Masks on Deep Prompt Tuning"

    p(x)  = softmax(L_mu(mean embedding of x))            (Eq. 4), the mean standardised, see `Router`
    theta = sum_j p_j(x) theta_j,  theta_j in R^{l x S}   (Eq. 5)
    P~    = sigmoid(theta) o P                            (Eq. 6)

One mask entry gates the key and the value of one virtual token at one site (layer).
Trained: the shared prefix ``P``, ``k`` masks and the router ``L_mu``; ``2*S*l*w + k*l*S + k*d`` numbers.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from softprompts.methods.about import About, Space, View, Vital
from softprompts.methods.common import PrefixConfig, PrefixMethod, Router, gated, penalised, perturbed, route_vitals
from softprompts.methods.contract import Component, Rows, Shape
from softprompts.methods.registry import register
from softprompts.soft_prompt import SoftPrompt
from softprompts.validation import settings


@register("multi-mask")
@settings
class MultiMaskConfig(PrefixConfig):
    """Settings of multi-mask prefix tuning.

    Attributes:
        num_masks: ``k``. With a single mask the gate does not depend on the input.
        router_input: what the router sees of the mean embedding. "standardised": it has the scale that makes logits
            differ from row to row whatever the backbone, see `Router`. "raw": the mean itself, as in the paper.
        mask_mean, mask_std: masks start from N(``mask_mean``, ``mask_std``^2): gates are as open as in the released
            code (2.5 and 0.5), and differ from mask to mask, where those are about 0.92 all.
        router_dropout: dropout on the router's logits in training.
        router_noise: instead of dropout, multiply the logits by ``1 + N(0, 1)`` in training, as the released code does.
        l1_lambda: weight of the sparsity term ``mean |sigmoid(masks)|``, the mean over all mask entries; the paper has
            such a term but neither its form nor its weight.
        init, init_text, init_std: where the prefix starts, see `PrefixConfig` (released code: "normal" and 1).
        routes: "learned", or without the router's choice, to measure what it is worth: "uniform" gives every row the
            same share of all masks; "shuffled" gives it the shares of the row before it in the batch.
    """

    num_masks: Annotated[int, Field(ge=1)] = 4
    router_input: Literal["standardised", "raw"] = "standardised"
    mask_mean: float = 3.0
    mask_std: Annotated[float, Field(gt=0)] = 1.5
    router_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    router_noise: bool = False
    l1_lambda: Annotated[float, Field(ge=0)] = 0.0
    routes: Literal["learned", "uniform", "shuffled"] = "learned"

    searched: ClassVar[Space] = {"num_masks": (2, 4, 8)}
    about = About(
        paper='Tu, Nguyen, Nguyen and Dinh, "Multi-mask Prefix Tuning"',
        equation="P~ = sigmoid(sum_j p_j(x) theta_j) o P, p(x) = softmax(L_mu(mean embedding of x))",
        trained="the prefix P (l, 2*S*w), k masks theta_j (l, S) and the router L_mu (k, d)",
        count="2*S*l*w + k*l*S + k*d",
        symbols={"k": "num_masks"},
        sizes=({"sites": ("decoder.self",)}, {"num_virtual_tokens": 20, "num_masks": 1}, {"num_virtual_tokens": 5}),
        per_row="router and gate (l, S)",
        folds_to="prefix, with one mask or uniform routes only",
        differs="One mask entry gates key and value of a token at one site, as in the paper; released code tiles the "
        "masks over a list of keys and values, so that the two of a layer get different columns, reaches only the "
        "decoder of T5, shares prefixes between its layers, and trains a second table that nothing reads. Dropout on "
        "the router as in the paper (its scripts use noise: `router_noise`). The paper's L1 term has no weight and is "
        "not in its code: off by default. The router sees the mean embedding standardised by the embedding table, as "
        "the mean itself hardly differs from row to row where embeddings are small (`router_input='raw'` is the "
        "paper's). Masks start from N(3, 1.5^2), released code: N(2.5, 0.5^2), where all gates are much the same.",
    )
    modifies_prefix = True
    revision = 1
    absent: ClassVar[dict[str, Any]] = {"router_input": "raw", "mask_mean": 2.5, "mask_std": 0.5}

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values; learned routes are left out: ids of runs are older than this setting."""
        values = super().to_dict()
        if self.routes == "learned":
            del values["routes"]
        return values


class MultiMask(PrefixMethod, config=MultiMaskConfig):
    """Prefix ``(l, 2*S*w)``, masks ``(k, l, S)`` and router ``d -> k``."""

    config: MultiMaskConfig

    def __init__(self, config: MultiMaskConfig, shape: Shape, own_prefix: bool = True):
        super().__init__(config, shape, own_prefix)
        self.per_row = config.num_masks > 1 and config.routes != "uniform"
        self.masks = nn.Parameter(torch.empty(config.num_masks, config.num_virtual_tokens, shape.num_sites))
        nn.init.normal_(self.masks, mean=config.mask_mean, std=config.mask_std)
        self.router = Router(shape, config.num_masks, self.per_row and config.router_input == "standardised")

    def mixture(self, rows: Rows | None) -> Tensor:
        """Each row's shares of the masks, ``(R, k)`` (Eq. 4); ``(1, k)`` with a single mask or uniform routes."""
        weight = self.router.weight
        if self.per_row:
            if rows is None:
                raise ValueError("a router over several masks needs the rows")
            logits = self.router(self.router.seen(rows))
        else:
            # Equal shares whatever the input; a zero input keeps the router in the graph (its gradient is 0).
            logits = self.router(weight.new_zeros(1, weight.shape[1]))
        shares = perturbed(logits, self.config.router_dropout, self.config.router_noise, self.training).softmax(-1)
        return shares.roll(1, 0) if self.config.routes == "shuffled" else shares

    def modify(self, prompt: SoftPrompt, rows: Rows | None = None) -> SoftPrompt:
        """Puts the gates ``(S, R, l)`` on a prefix, ``(S, 1, l)`` with a single mask, and the term on the loss."""
        weight = self.config.l1_lambda
        prompt = gated(prompt, torch.einsum("rk,kls->srl", self.mixture(rows), self.masks).sigmoid())
        return penalised(prompt, weight * self.masks.sigmoid().mean()) if weight else prompt

    def views(self, rows: Rows | None = None) -> list[View]:
        """The gate of each mask (the paper's Figure 2), and what the router gives each row of them."""
        views = [View("masks", self.masks.sigmoid(), ("mask", "token", "site"))]
        if self.per_row and rows is not None:
            views.append(View("routes", self.mixture(rows), ("row", "mask")))
        return views

    def vitals(self, rows: Rows | None = None) -> list[Vital]:
        """How rows are routed; how far masks are apart, as the mean difference of their gates over pairs of masks."""
        if not self.per_row or rows is None:
            return []
        gates, masks = self.masks.sigmoid(), len(self.masks)
        apart = (gates.unsqueeze(0) - gates.unsqueeze(1)).abs().mean((2, 3)).sum() / (masks * (masks - 1))
        return [
            *route_vitals(self.mixture(rows), 0.02, "router: all rows get the same masks"),
            Vital("masks.apart", apart, 0.02, "masks: all of them are the same"),
            Vital("gates.spread", None, 0.005, "gates: all rows get the same prefix"),
        ]

    def components(self) -> dict[str, Component]:
        """The shared prefix, the masks and the router, which want different rates."""
        masks = Component([self.masks], learning_rate=3e-2)
        # Standardised means share a part: at 1e-3 their logits move together until one mask takes all rows.
        router = Component(list(self.router.parameters()), learning_rate=1e-4)
        return {**super().components(), "masks": masks, "router": router}

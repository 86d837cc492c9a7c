"""Selective prefix tuning: a prefix whose attention is masked by its own scores, with rows driven apart.

Zhang, Li, Wang and Zhao, "Selective Prefix Tuning for Pre-trained Language Models", Findings of ACL 2024

    a_tr = m(s_tr) exp(s_tr) / (sum_prefix m(s) exp(s) + sum_content exp(s)),  m(s) = sigmoid(alpha s)    (Eq. 5-6)
    KSL^q = mean over pairs i < j of |cos((P_k)_i^q, (P_k)_j^q)|, VSL^q likewise                          (Eq. 7-8)
    SL = 1/2 sum_q (KSL^q + VSL^q),  loss + lambda SL                                                     (Eq. 9-10)

The vectors are whole rows of width ``w``, not per head. Trained: the prefix, ``2*S*l*w`` numbers.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from softprompts.methods.about import About, Space, View, Vital
from softprompts.methods.common import PrefixConfig, PrefixMethod, penalised, plain_prefix
from softprompts.methods.contract import Rows, Shape
from softprompts.methods.registry import register
from softprompts.soft_prompt import SoftPrompt
from softprompts.validation import settings


@register("selective-prefix")
@settings
class SelectivePrefixConfig(PrefixConfig):
    """Settings of selective prefix tuning.

    Attributes:
        alpha: steepness of the mask, more than 1 in the paper; None for no mask (the loss alone).
        selective_loss: ``lambda``; 0 for no loss (the mask alone). The released scripts average over the sites
            instead of adding up: to follow one that has weight ``a``, set ``a / S``.
        init, init_text, init_std: where the prefix starts, see `PrefixConfig` (released code: "normal" and 0.02; 0.5
            measured better at small budgets).
    """

    alpha: Annotated[float, Field(gt=0)] | None = 4.0
    selective_loss: Annotated[float, Field(ge=0)] = 1e-2

    searched: ClassVar[Space] = {"selective_loss": (0.0, 1e-3, 1e-2)}
    about = About(
        line="a prefix masked by its own attention scores",
        paper="Zhang, Li, Wang and Zhao, Findings of ACL 2024",
        equation="prefix weights m(s) exp(s) before normalisation, m(s) = sigmoid(alpha s); loss + lambda SL",
        trained="the table of keys and values (l, 2*S*w)",
        count="2*S*l*w",
        sizes=tuple({"num_virtual_tokens": length} for length in (8, 20, 40, 128)),
        once="the loss SL, mean |cos| between rows of the prefix",
        per_row="the mask, from the scores of every query",
        folds_to="prefix, without the mask only (`alpha=None`)",
        differs="SL adds up over sites as in Eq. 9; released scripts average (their weight a is `a / S` here). Scores "
        "are divided by the root of the head's width, as in the code, not by that of d as printed. Dropout on scores "
        "and on keys, which only the code has, is left out. The weight is 1e-2, with which the loss acts from a start "
        "of N(0, 0.5^2); 1e-4, as in the paper, does not, since its gradient falls with the size of the prefix. On "
        "every kind of backbone, not on encoders alone.",
    )
    modifies_prefix = True

    @property
    def changes_scores(self) -> bool:
        """See `MethodConfig`; without ``alpha`` the prefix is a plain one."""
        return self.alpha is not None


class SelectivePrefix(PrefixMethod, config=SelectivePrefixConfig):
    """A prefix table, with the mask and the loss."""

    def __init__(self, config: SelectivePrefixConfig, shape: Shape, own_prefix: bool = True):
        super().__init__(config, shape, own_prefix)
        self.alpha, self.selective_loss = config.alpha, config.selective_loss

    def modify(self, prompt: SoftPrompt, rows: Rows | None = None) -> SoftPrompt:
        """Puts the mask's steepness on a prefix, and the term (Eq. 9) on the loss; gates change no angle."""
        keys, values = prompt.keys, prompt.values
        assert keys is not None
        assert values is not None
        if self.alpha is not None:
            prompt = dataclasses.replace(prompt, selectivity=self.alpha)
        if self.selective_loss:
            cosines = mean_cosine(keys) + mean_cosine(values)
            prompt = penalised(prompt, self.selective_loss * 0.5 * cosines.sum())
        return prompt

    def views(self, rows: Rows | None = None) -> list[View]:
        """``alpha`` of the mask (the curves of the paper's Figure 5)."""
        return [] if self.alpha is None else [View("selective", torch.tensor(self.alpha))]

    def vitals(self, rows: Rows | None = None) -> list[Vital]:
        """Mean ``|cos|`` between rows of its own prefix, over keys and values of all sites; the weight of the loss."""
        vitals = []
        if self.prefix is not None:
            own = plain_prefix(self.prefix, self.num_sites)
            assert own.keys is not None
            assert own.values is not None
            vitals.append(Vital("cosine", torch.cat([mean_cosine(own.keys), mean_cosine(own.values)]).mean()))
        if self.selective_loss:
            vitals.append(Vital("penalty", None, 0.001, "selective loss: has no say in the gradient"))
        return vitals

    def cannot_fold(self) -> str | None:
        """Only the variant without the mask folds."""
        return None if self.alpha is None else "its mask depends on the queries"


def mean_cosine(prefix: Tensor) -> Tensor:
    """Mean ``|cos|`` over pairs of rows, ``(S,)``, of a prefix ``(S, R|1, l, w)``; 0 if there is no pair (Eq. 7)."""
    rows = functional.normalize(prefix, dim=-1)
    length = rows.shape[2]
    cosines = (rows @ rows.transpose(2, 3)).triu(diagonal=1).abs()
    return cosines.sum((2, 3)).mean(1) / max(length * (length - 1) // 2, 1)

"""SPoT: prompt tuning that starts from the prompts of source tasks.

Vu, Lester, Constant, Al-Rfou and Cer, "SPoT: Better Frozen Model Adaptation through Soft Prompt Transfer", ACL 2022,
https://arxiv.org/abs/2110.07904

    P = sum_j w_j P_j at the start,    X' = [P ; E(x)]

    average:       w_j = 1/t
    weighted:      w_j = s_j / sum_i s_i,    s_j = max(cos(mean of the rows of P_j, mean of the rows of P_target), 0)
    most-similar:  w_j = 1 for the largest s_j, else 0

Trained: ``P``; ``l*d`` numbers, as in prompt tuning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn import functional

from softprompts.methods import sources
from softprompts.methods.about import PLAIN_FORMS, About
from softprompts.methods.common import PromptMethod
from softprompts.methods.contract import Method, Shape
from softprompts.methods.registry import register
from softprompts.methods.source_settings import SourcedConfig
from softprompts.validation import PATH, settings


@register("spot")
@settings
class SPoTConfig(SourcedConfig):
    """Settings of SPoT.

    Attributes:
        sources: folders of saved prompts (or run folders, or hub ids). One of another length is repeated from its
            first token on, or cut.
        combine: how several become one: "average", "weighted" by their similarity to ``target``, or "most-similar".
        target: a saved prompt of the target task, tuned for a short while, that similarity is measured to.
        restored: number of sources of a saved prompt that is about to be loaded; saving sets it.
    """

    combine: Literal["average", "weighted", "most-similar"] = "average"
    target: Annotated[str, PATH] | None = None

    uses_tokens = True
    paths = ("sources", "target")
    about = About(
        line="a prompt started from those of other tasks",
        paper="Vu et al., SPoT: Better Frozen Model Adaptation through Soft Prompt Transfer, ACL 2022, "
        "https://arxiv.org/abs/2110.07904",
        equation="X' = [P ; E(x)], P = sum_j w_j P_j at the start",
        trained="the prompt P",
        count="l*d",
        settings={"restored": 1},
        once="the prompt",
        folds_to="tokens",
        exports=PLAIN_FORMS,
        differs="Sources with a cosine below 0 get no weight in 'weighted'. Sources of another length are repeated or "
        "cut.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        average, target = self.combine == "average", self.target is not None
        self.require(not (average and target), "combine='average' has no use for a target")
        known = average or target or self.restored > 0
        self.require(known, f"combine='{self.combine}' needs target, a prompt of the target task to be similar to")

    def build(self, shape: Shape) -> Method:
        """The module, with the prompt that the sources make."""
        if self.restored:
            return PromptMethod(self, sources.blank(self.num_virtual_tokens, shape.hidden_size), 5e-3)
        self.require(bool(self.sources), "it starts from source prompts: name at least one in sources")
        prompts = sources.load_tokens(self.method, self.files(), shape.hidden_size, identity=shape.identity)
        target = prompts.pop() if self.target is not None else None
        return PromptMethod(self, self.combined(prompts, target), 5e-3)

    def combined(self, prompts: Sequence[Tensor], target: Tensor | None) -> Tensor:
        """The starting prompt ``(l, d)`` from those of the sources, ``(l_j, d)`` each, and of the target."""
        if target is None:
            weights = torch.full((len(prompts),), 1 / len(prompts))
        else:
            means = torch.stack([prompt.mean(0) for prompt in prompts])
            similarity = functional.cosine_similarity(means, target.mean(0).unsqueeze(0))
            if self.combine == "most-similar":
                weights = functional.one_hot(similarity.argmax(), len(prompts)).float()
            else:
                self.require(bool((similarity > 0).any()), "no source is similar to the target: no cosine is above 0")
                weights = similarity.clamp(min=0) / similarity.clamp(min=0).sum()
        rows = torch.arange(self.num_virtual_tokens)
        fitted = torch.stack([prompt[rows % len(prompt)] for prompt in prompts])
        return torch.einsum("t,tld->ld", weights, fitted)

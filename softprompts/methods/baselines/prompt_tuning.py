"""Prompt tuning: trained embeddings in front of the input.

Lester, Al-Rfou and Constant, "The Power of Scale for Parameter-Efficient Prompt Tuning", EMNLP 2021,
https://arxiv.org/abs/2104.08691

    X' = [P ; E(x)],    P in R^{l x d}

Trained: ``P``; ``l*d`` numbers.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from softprompts.methods.about import PLAIN_FORMS, About, Space
from softprompts.methods.common import PromptMethod, repeated, sampled_rows
from softprompts.methods.contract import Method, MethodConfig, Shape
from softprompts.methods.registry import register
from softprompts.validation import TEXTS, settings


@register("prompt-tuning")
@settings
class PromptTuningConfig(MethodConfig):
    """Settings of prompt tuning.

    Attributes:
        init: where the prompt starts. "vocabulary": embeddings of different tokens. "text": embeddings of
            ``init_text``, repeated or cut to ``l``. "labels": one row per label word (the mean over its pieces),
            the rest as for "vocabulary". "random": uniform in +-``init_scale``. "normal": N(0, 1), as in PEFT and the
            code of SMoP.
        vocabulary_limit: draw from this many first tokens only (5,000 in the paper, where tokens are sorted by
            frequency); None for all.
        init_text: the text for "text".
        label_words: the words for "labels".
        init_scale: half the width of the range for "random".
    """

    init: Literal["vocabulary", "text", "labels", "random", "normal"] = "vocabulary"
    vocabulary_limit: Annotated[int, Field(ge=1)] | None = None
    init_text: str | None = None
    label_words: Annotated[tuple[str, ...], TEXTS] | None = None
    init_scale: Annotated[float, Field(gt=0)] = 0.5

    uses_tokens = True
    searched: ClassVar[Space] = {"init": ("vocabulary", "random")}
    about = About(
        start_here=True,
        paper="Lester, Al-Rfou and Constant, EMNLP 2021, https://arxiv.org/abs/2104.08691",
        equation="X' = [P ; E(x)]",
        trained="the prompt P (l, d)",
        count="l*d",
        sizes=({"num_virtual_tokens": 100},),
        folds_to="tokens",
        exports=PLAIN_FORMS,
        differs="Starts from tokens of the whole vocabulary, since few tokenizers sort it by frequency "
        "(`vocabulary_limit=5000` is the paper's); on encoders with a pooler the prompt goes behind the first token, "
        "which the pooler reads.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        words, rows = len(self.label_words or ()), self.num_virtual_tokens
        self.require(words <= rows, f"{words} label_words do not fit into num_virtual_tokens={rows} rows")
        # A text or words that another init would silently ignore are a mistake.
        for field, init in (("init_text", "text"), ("label_words", "labels")):
            if self.init == init:
                self.require(bool(getattr(self, field)), f"init='{init}' needs {field}")
            else:
                self.require(getattr(self, field) is None, f"{field} needs init='{init}', not '{self.init}'")

    def build(self, shape: Shape) -> Method:
        """The module, freshly initialised."""
        return PromptMethod(self, initial_prompt(self, shape), 2e-2)


def initial_prompt(config: PromptTuningConfig, shape: Shape) -> Tensor:
    """The starting prompt ``(l, d)``."""
    length, vocabulary = config.num_virtual_tokens, shape.vocabulary
    if config.init == "random":
        return torch.empty(length, shape.hidden_size).uniform_(-config.init_scale, config.init_scale)
    if config.init == "normal":
        return torch.randn(length, shape.hidden_size)
    if config.init == "text":
        return vocabulary.rows(repeated(vocabulary.encode(config.init_text or ""), length))
    words = config.label_words or ()
    labels = [vocabulary.rows(vocabulary.encode(word)).mean(0, keepdim=True) for word in words]
    return torch.cat([*labels, sampled_rows(shape, length - len(words), config.vocabulary_limit)])

"""Multitask prompt tuning: a prompt shared by several tasks, times a low-rank matrix of each task.

Wang, Panda, Karlinsky, Feris, Sun and Kim, "Multitask Prompt Tuning Enables Parameter-Efficient Transfer Learning",
ICLR 2023, https://arxiv.org/abs/2303.02861

    P_k = P* o (U_k V_k),    P* in R^{l x d},  U_k in R^{l x R},  V_k in R^{R x d};    X' = [P_k ; E(x)]

The paper has rank ``R = 1``: ``P* o (u_k v_k^T)``. A target task starts from the ``P*`` of the source tasks and the
average of their ``U_k`` and ``V_k``. Source tasks learn from teachers, prompts ``T`` that were tuned on one task each:

    loss = NLL + lambda (tau^2 KL(p_T || p_k) + |h_T - h_k|^2 / d)

at every label, with predictions ``p`` softened by the temperature ``tau`` and last hidden states ``h``.
Trained: ``P*``, ``U`` and ``V``; ``l*d + R*(l + d)`` numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from softprompts.methods import sources
from softprompts.methods.about import PLAIN_FORMS, About, Vital
from softprompts.methods.common import divergence, sampled_rows
from softprompts.methods.contract import Answers, Component, Method, Rows, Shape
from softprompts.methods.registry import register
from softprompts.methods.source_settings import SourcedConfig
from softprompts.soft_prompt import SoftPrompt
from softprompts.validation import PATH, settings


@register("mpt")
@settings
class MPTConfig(SourcedConfig):
    """Settings of multitask prompt tuning.

    Attributes:
        rank: ``R`` of the task's matrix.
        sources: folders of saved mpt prompts (or run folders, or hub ids) that share one ``P*``, to start from;
            none: ``P*`` starts from the vocabulary.
        vocabulary_limit: draw from this many first tokens only; None for all.
        factors_init: where ``U V`` starts without sources: "ones" is a matrix of ones, so that the prompt is ``P*``;
            "normal" draws ``U`` and ``V`` from N(0, 0.02^2), as PEFT does, and the prompt starts close to zero.
        teacher: folder of a saved prompt of the same task, of any method (or run folder, or hub id), to learn from.
        distillation: ``lambda``, the weight of what is learned from the teacher.
        temperature: ``tau``.
        match_states: learn the teacher's last hidden states too: at every label of a language model's answer, else of
            all tokens of the input.
        restored: number of sources of a saved prompt that is about to be loaded; saving sets it.
    """

    rank: Annotated[int, Field(ge=1)] = 1
    vocabulary_limit: Annotated[int, Field(ge=1)] | None = None
    factors_init: Literal["ones", "normal"] = "ones"
    teacher: Annotated[str, PATH] | None = None
    distillation: Annotated[float, Field(ge=0)] = 0.9
    temperature: Annotated[float, Field(gt=0)] = 1.0
    match_states: bool = True

    uses_tokens = True
    paths = ("sources", "teacher")
    ignored_without: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "teacher": ("teacher", "distillation", "temperature", "match_states")
    }
    about = About(
        line="a shared prompt times a low-rank part per task",
        paper="Wang et al., Multitask Prompt Tuning Enables Parameter-Efficient Transfer Learning, ICLR 2023, "
        "https://arxiv.org/abs/2303.02861",
        equation="P_k = P* o (U_k V_k), X' = [P_k ; E(x)]",
        trained="the shared prompt P* and the task's factors U, V of rank R",
        count="l*d + R*(l + d)",
        symbols={"R": "rank"},
        once="the prompt",
        folds_to="tokens",
        exports=PLAIN_FORMS,
        differs="Starts with U V = 1, where the prompt is a sample of the vocabulary; PEFT starts near zero. Source "
        "tasks are trained together (`softprompts.experiments.multitask`), each with a batch in every step, where the "
        "paper draws tasks. Hidden states are those of the last layer, a mean over their width.",
    )

    def taught_by(self) -> str | None:
        """The teacher, unless its weight in the loss is 0."""
        return self.teacher if self.distillation else None

    def build(self, shape: Shape) -> Method:
        """The module, freshly initialised or from its sources."""
        length, width, rank = self.num_virtual_tokens, shape.hidden_size, self.rank
        if self.restored:
            return MPT(self, sources.blank(length, width), sources.blank(length, rank), sources.blank(rank, width))
        if self.sources:
            return MPT(self, *self.inherited(shape))
        shared = sampled_rows(shape, length, self.vocabulary_limit)
        left, right = torch.randn(length, rank) * 0.02, torch.randn(rank, width) * 0.02
        if self.factors_init == "ones":
            # The other ranks add nothing at first, but their left factors are there for the right ones to learn from.
            left[:, 0] = 1
            right.zero_()[0] = 1
        return MPT(self, shared, left, right)

    def inherited(self, shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
        """``P*`` of the sources and the averages of their factors."""
        loaded = sources.load_methods(self.method, self.sources, shape.hidden_size, shape.identity, type(self))
        methods = [method for method in loaded if isinstance(method, MPT)]
        first = methods[0]
        for path, method in zip(self.sources, methods, strict=True):
            length, rank = method.left.shape
            self.require(
                (length, rank) == (self.num_virtual_tokens, self.rank),
                f"the source {path} has num_virtual_tokens={length} and rank={rank}, "
                f"not {self.num_virtual_tokens} and {self.rank}",
            )
            self.require(
                torch.equal(method.shared, first.shared),
                f"the sources {self.sources[0]} and {path} have no shared prompt in common: they were trained apart",
            )
        left = torch.stack([method.left.detach().float() for method in methods]).mean(0)
        right = torch.stack([method.right.detach().float() for method in methods]).mean(0)
        return first.shared.detach().float(), left, right


class MPT(Method):
    """The shared prompt ``(l, d)`` and the factors ``(l, R)`` and ``(R, d)`` of the task."""

    config: MPTConfig

    def __init__(self, config: MPTConfig, shared: Tensor, left: Tensor, right: Tensor):
        super().__init__(config)
        self.shared, self.left, self.right = nn.Parameter(shared), nn.Parameter(left), nn.Parameter(right)
        if config.taught_by() is not None:
            self.compares, self.compares_states = ("teacher",), config.match_states
        self.borrows = False  # whether another prompt trains the shared one

    def forward(self, rows: Rows | None = None) -> SoftPrompt:
        """Tokens ``(1, l, d)``."""
        return SoftPrompt(tokens=(self.shared * (self.left @ self.right)).unsqueeze(0))

    def compare(self, own: Answers, others: Mapping[str, Answers]) -> Tensor:
        """The distance from the teacher's predictions and, with ``match_states``, from its hidden states."""
        teacher, heat = others["teacher"], self.config.temperature
        loss = heat**2 * divergence(teacher.logits / heat, own.logits / heat)
        if own.states is not None and teacher.states is not None and own.real is not None:
            errors = (own.states - teacher.states).square().mean(-1) * own.real
            loss = loss + errors.sum(1) / own.real.sum(1).clamp(min=1)
        return self.config.distillation * loss

    def vitals(self, rows: Rows | None = None) -> list[Vital]:
        """Mean difference of the task's factors from 1."""
        apart = (self.left @ self.right - 1).abs().mean()
        return [Vital("task.apart", apart, 0.01, "task factors: leave the shared prompt as it is")]

    def components(self) -> dict[str, Component]:
        """The shared prompt, and the factors of the task."""
        return {
            "prompt": Component([] if self.borrows else [self.shared], learning_rate=5e-3),
            "task": Component([self.left, self.right], learning_rate=5e-3),
        }

    def share_with(self, other: Method) -> None:
        """Takes ``P*`` from another mpt prompt of the same length."""
        fits = isinstance(other, MPT) and other is not self and other.shared.shape == self.shared.shape
        self.config.require(fits, "only mpt prompts of one length can share their P*")
        assert isinstance(other, MPT)
        self.shared, self.borrows = other.shared, True

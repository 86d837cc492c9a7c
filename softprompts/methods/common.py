"""Functions that several methods share: starting values, prefix tables, gates, routers, losses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from softprompts.errors import SoftPromptError
from softprompts.methods.about import Vital
from softprompts.methods.contract import Component, Method, MethodConfig, Rows, Shape
from softprompts.soft_prompt import GateOf, SoftPrompt
from softprompts.validation import settings


def sampled_rows(shape: Shape, count: int, limit: int | None = None) -> Tensor:
    """Embeddings ``(count, d)`` of different tokens, drawn from the first ``limit`` of the vocabulary."""
    return shape.vocabulary.rows(shape.vocabulary.sample(count, limit))


def repeated(ids: Sequence[int], count: int) -> list[int]:
    """The ids repeated or cut to ``count``."""
    return [ids[i % len(ids)] for i in range(count)]


class PromptMethod(Method):
    """A prompt ``(l, d)`` that is trained itself."""

    def __init__(self, config: MethodConfig, prompt: Tensor, learning_rate: float):
        super().__init__(config)
        self.prompt = nn.Parameter(prompt)
        self.learning_rate = learning_rate

    def forward(self, rows: Rows | None = None) -> SoftPrompt:
        """Tokens ``(1, l, d)``."""
        return SoftPrompt(tokens=self.prompt.unsqueeze(0))

    def components(self) -> dict[str, Component]:
        """The prompt."""
        return {"prompt": Component([self.prompt], self.learning_rate)}


def require_sites(config: MethodConfig, shape: Shape) -> None:
    """Raises a `SoftPromptError` where a backbone takes no prefix."""
    if shape.num_sites == 0:
        raise SoftPromptError(f"{config.method}: this backbone has no attention site that takes a prefix")


@settings
class PrefixConfig(MethodConfig):
    """The settings that methods with a prefix have: where it starts.

    Attributes:
        init: "normal": from N(0, ``init_std``^2). "vocabulary": from the keys and values that attention sites see of
            different tokens, which run through the frozen model as one row. "text": from those of ``init_text``,
            repeated or cut to ``l`` tokens.
        init_text: the text for "text".
        init_std: standard deviation for "normal".
    """

    init: Literal["normal", "vocabulary", "text"] = "normal"
    init_text: str | None = None
    init_std: Annotated[float, Field(gt=0)] | None = 0.5

    uses_prefix = True
    absent: ClassVar[dict[str, Any]] = {"init": "normal", "init_text": None}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init == "text":
            self.require(bool(self.init_text), "init='text' needs init_text")
        else:  # it would be ignored in silence
            self.require(self.init_text is None, f"init_text needs init='text', not '{self.init}'")


def prefix_table(config: PrefixConfig, shape: Shape) -> nn.Parameter:
    """A prefix ``(l, 2*S*w)`` as it starts; see `plain_prefix` for the order of its columns."""
    require_sites(config, shape)
    length = config.num_virtual_tokens
    if config.init == "normal":
        table = torch.empty(length, 2 * shape.num_sites * shape.kv_width)
        return nn.Parameter(nn.init.normal_(table, std=config.init_std or 0.5))
    if shape.prefix_of is None:
        raise SoftPromptError(f"{config.method}: there is no model to run tokens through: set init='normal'")
    vocabulary = shape.vocabulary
    text = config.init_text
    ids = vocabulary.sample(length) if text is None else repeated(vocabulary.encode(text), length)
    try:
        parts = torch.stack(shape.prefix_of(ids), 2)
    except SoftPromptError as error:
        raise SoftPromptError(f"{config.method}: {error}") from error
    return nn.Parameter(parts.permute(1, 0, 2, 3).reshape(length, -1))


class PrefixMethod(Method):
    """A method with a prefix of its own, which `modify` changes; or without one, to modify that of another method."""

    def __init__(self, config: PrefixConfig, shape: Shape, own_prefix: bool = True):
        super().__init__(config)
        self.num_sites = shape.num_sites
        self.prefix = prefix_table(config, shape) if own_prefix else None

    def forward(self, rows: Rows | None = None) -> SoftPrompt:
        """Keys and values ``(S, 1, l, w)``, as `modify` changes them.

        Raises:
            ValueError: the method was built to modify the prefix of another.
        """
        if self.prefix is None:
            raise ValueError("this method was built without a prefix of its own: call modify")
        return self.modify(plain_prefix(self.prefix, self.num_sites), rows)

    def modify(self, prompt: SoftPrompt, rows: Rows | None = None) -> SoftPrompt:
        """Leaves the prefix as it is; subclasses change it."""
        return prompt

    def components(self) -> dict[str, Component]:
        """The prefix, where there is one."""
        return {} if self.prefix is None else {"prefix": Component([self.prefix], learning_rate=3e-2)}


def plain_prefix(table: Tensor, num_sites: int) -> SoftPrompt:
    """A prompt of keys and values ``(S, 1, l, w)`` alone, from a table ``(l, 2*S*w)``.

    A row of the table holds key 0, value 0, key 1, value 1, ... as in P-tuning v2, so its tables fit as they are.
    """
    keys, values = table.view(len(table), num_sites, 2, -1).permute(2, 1, 0, 3).unsqueeze(2).unbind(0)
    return SoftPrompt(keys=keys, values=values)


class Router(nn.Linear):
    """The logits ``W x (R, k)`` of a router that sees the mean embedding of each row.

    The mean itself hardly differs from row to row, and its scale is the backbone's. Standardised,
    ``x = 4 (mean - center) / spread`` with the mean and standard deviation of each dimension over all embeddings: means
    of 16 independent tokens have variance 1 then, and so do logits of rows of ``W`` with norm 1, as it starts.

    Args:
        shape: the backbone.
        choices: ``k``.
        standardised: whether it sees the standardised mean; otherwise the mean itself.
    """

    center: Tensor | None
    spread: Tensor | None

    def __init__(self, shape: Shape, choices: int, standardised: bool):
        super().__init__(shape.hidden_size, choices, bias=False)
        nn.init.orthogonal_(self.weight)
        center, spread = shape.vocabulary.statistics() if standardised else (None, None)
        self.register_buffer("center", center)  # buffers are saved with the prompt
        self.register_buffer("spread", spread)

    def seen(self, rows: Rows) -> Tensor:
        """``x (R, d)``."""
        mean = rows.mean().to(self.weight)
        if self.center is None or self.spread is None:
            return mean
        constant = self.spread <= 1e-6 * self.center.abs()  # a dimension that is the same in all embeddings
        seen = 4 * (mean - self.center) / self.spread.masked_fill(constant, 1.0)
        return seen.masked_fill(~rows.mask.any(1, keepdim=True), 0.0)  # a row without a token is like the average


def perturbed(logits: Tensor, dropout: float, noise: bool, training: bool) -> Tensor:
    """A router's logits ``(R, k)``, perturbed in training: times ``1 + N(0, 1)`` with ``noise``, else with dropout."""
    if noise and training:
        return logits + torch.randn_like(logits) * logits.detach()
    return functional.dropout(logits, dropout, training)


def route_vitals(shares: Tensor, least: float, idle: str) -> list[Vital]:
    """How rows are spread over what they choose from, from their shares ``(R, k)``.

    ``routes.spread``: standard deviation over rows, mean over routes; less than ``least`` means ``idle``.
    ``routes.entropy``: that of a row's shares, mean over rows; 1 where all routes have the same share, 0 where one has
    all. ``routes.balance``: the same of the mean shares.
    """
    longest = math.log(shares.shape[1])
    spread = shares.std(0, correction=0).mean()
    return [
        Vital("routes.spread", spread, least, idle),
        Vital("routes.entropy", torch.special.entr(shares).sum(1).mean() / longest),
        Vital("routes.balance", torch.special.entr(shares.mean(0)).sum() / longest),
    ]


def gated(prompt: SoftPrompt, gates: Tensor) -> SoftPrompt:
    """The prompt with gates ``(S, R|1, l)`` on top of those that it has."""
    return dataclasses.replace(prompt, gates=gates if prompt.gates is None else prompt.gates * gates)


def gated_by_states(prompt: SoftPrompt, gate_of: GateOf) -> SoftPrompt:
    """The prompt with gates that depend on what sites are called with, on top of those that it has."""
    before = prompt.gate_of
    if before is None:
        return dataclasses.replace(prompt, gate_of=gate_of)
    return dataclasses.replace(
        prompt, gate_of=lambda place, states, mask: before(place, states, mask) * gate_of(place, states, mask)
    )


def divergence(of: Tensor, to: Tensor) -> Tensor:
    """``KL(p || q)`` of each line, ``(P,)``, for the distributions of two sets of logits ``(P, C)``.

    Logits may be -inf where both are. Of scores, ``(P, 1)``, it is that of two normal distributions of variance 1
    around them: half the squared difference.
    """
    if of.shape[1] == 1:
        return (of - to)[:, 0].square() / 2
    # -inf minus -inf would be NaN.
    p, q = (logits.clamp(min=-1e30).log_softmax(-1) for logits in (of, to))
    return (p.exp() * (p - q)).sum(-1)


def penalised(prompt: SoftPrompt, penalty: Tensor) -> SoftPrompt:
    """The prompt with a term of the loss on top of those that it has."""
    return dataclasses.replace(prompt, penalty=penalty if prompt.penalty is None else prompt.penalty + penalty)

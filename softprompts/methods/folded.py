"""Folding: the plain tensors that a prompt comes down to once it is trained.

Whatever a method computes without looking at the input (networks, mixtures, low-rank products, one gate) is computed
once and stored; the rest is dropped. A folded prompt gives the same tensors bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from softprompts.errors import SoftPromptError
from softprompts.methods.common import require_sites
from softprompts.methods.contract import Component, Method, MethodConfig, Rows, Shape
from softprompts.methods.registry import register
from softprompts.soft_prompt import SoftPrompt
from softprompts.validation import settings

_ROWS_AXIS = {"tokens": 0, "update": 0, "keys": 1, "values": 1}  # of the fields of a `SoftPrompt` that are stored


@register("folded")
@settings
class FoldedConfig(MethodConfig):
    """The kinds and sizes of a folded prompt's tensors; `fold` fills it in.

    Attributes:
        num_virtual_tokens: ``l``, length of the tokens and of the prefix; 0 if there are neither.
        prefix_length: length of the prefix where it is another than that of the tokens.
        source: the method that the prompt was trained with.
        has_tokens: there are tokens ``(l, d)``.
        update_length: ``m`` of an update ``(m, d)``; 0 for none.
        has_prefix: there are keys and values ``(S, l, w)``.
    """

    num_virtual_tokens: Annotated[int, Field(ge=0)] = 0
    source: str = ""
    has_tokens: bool = False
    update_length: Annotated[int, Field(ge=0)] = 0
    has_prefix: bool = False
    prefix_length: Annotated[int, Field(ge=1)] | None = None

    listed = False

    def __post_init__(self) -> None:
        super().__post_init__()
        both = self.has_tokens and self.has_prefix
        self.require(self.prefix_length is None or both, "prefix_length needs both tokens and a prefix")
        self.require(self.has_tokens or self.update_length > 0 or self.has_prefix, "a prompt without any tensor")
        self.require(
            (self.num_virtual_tokens > 0) == (self.has_tokens or self.has_prefix),
            "num_virtual_tokens must be 0 exactly when there are neither tokens nor a prefix",
        )
        # These differ between folded prompts, as their sources do.
        object.__setattr__(self, "uses_tokens", self.has_tokens)
        object.__setattr__(self, "uses_prefix", self.has_prefix)

    def build(self, shape: Shape) -> Method:
        """Zeros of the right sizes, to load the stored tensors into."""
        if self.has_prefix:
            require_sites(self, shape)
        length, width = self.num_virtual_tokens, shape.hidden_size
        prefix = (shape.num_sites, self.prefix_length or length, shape.kv_width)
        sizes: dict[str, tuple[int, ...]] = {"tokens": (length, width)} if self.has_tokens else {}
        sizes |= {"update": (self.update_length, width)} if self.update_length else {}
        sizes |= {"keys": prefix, "values": prefix} if self.has_prefix else {}
        return Folded(self, {name: torch.zeros(size) for name, size in sizes.items()})


class Folded(Method):
    """Tokens ``(l, d)``, update ``(m, d)``, keys and values ``(S, l, w)``; None for what it lacks."""

    tokens: nn.Parameter | None
    update: nn.Parameter | None
    keys: nn.Parameter | None
    values: nn.Parameter | None

    def __init__(self, config: FoldedConfig, tensors: Mapping[str, Tensor | None]):
        super().__init__(config)
        for name in _ROWS_AXIS:
            tensor = tensors.get(name)
            self.register_parameter(name, None if tensor is None else nn.Parameter(tensor))

    def forward(self, rows: Rows | None = None) -> SoftPrompt:
        """The stored tensors, each with an axis of length 1 for the rows."""
        tensors = ((name, getattr(self, name), axis) for name, axis in _ROWS_AXIS.items())
        return SoftPrompt(**{name: None if x is None else x.unsqueeze(axis) for name, x, axis in tensors})

    def components(self) -> dict[str, Component]:
        """The prompt, the prefix and the update, as far as the folded prompt has them."""
        parts: dict[str, Component] = {}
        if self.tokens is not None:
            parts["prompt"] = Component([self.tokens], learning_rate=2e-2)
        if self.keys is not None and self.values is not None:
            parts["prefix"] = Component([self.keys, self.values], learning_rate=3e-2)
        if self.update is not None:
            parts["update"] = Component([self.update], learning_rate=5e-3)
        return parts


def fold(method: Method) -> tuple[FoldedConfig, Method]:
    """The plain form of a prompt, with its config; the method itself is left as it was.

    Raises:
        SoftPromptError: the prompt has no plain form.
    """
    config = method.config
    reason = method.cannot_fold()
    if reason is not None:
        raise SoftPromptError(f"{config.method}: this prompt cannot be folded: {reason}")
    training = method.training
    with torch.no_grad():
        prompt = method.eval()(None)
    method.train(training)

    # Copies, as the tensors may be views of the method's own parameters; the axis of the rows (1 long) goes.
    tokens, update = (None if x is None else x[0].clone() for x in (prompt.tokens, prompt.update))
    gates = 1.0 if prompt.gates is None else prompt.gates[:, 0].unsqueeze(-1)
    keys, values = (None if x is None else (x[:, 0] * gates).clone() for x in (prompt.keys, prompt.values))
    length, prefix_length = (0 if x is None else x.shape[-2] for x in (tokens, keys))
    folded = FoldedConfig(
        num_virtual_tokens=length or prefix_length,
        sites=config.sites,
        placement=config.placement,
        positions=config.positions,
        source=config.source if isinstance(config, FoldedConfig) else config.method,
        has_tokens=tokens is not None,
        update_length=0 if update is None else len(update),
        has_prefix=keys is not None,
        prefix_length=prefix_length if length and prefix_length not in (0, length) else None,
    )
    return folded, Folded(folded, {"tokens": tokens, "update": update, "keys": keys, "values": values})

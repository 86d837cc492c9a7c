"""The baseline below all prompts: the frozen model with nothing but its task head trained.

y = head(f_frozen(x))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from softprompts.methods.about import RATES, About, Span
from softprompts.methods.contract import Component, Method, MethodConfig, Rows, Shape
from softprompts.methods.registry import register
from softprompts.soft_prompt import SoftPrompt


@register("head-only")
@dataclass(frozen=True, kw_only=True)
class HeadOnlyConfig(MethodConfig):
    """No prompt at all; only models with a task head can train this.

    Attributes:
        num_virtual_tokens: always 0.
    """

    num_virtual_tokens: int = 0

    about: ClassVar[About | None] = About(
        paper="the usual linear baseline",
        equation="y = head(f(x))",
        trained="nothing but the task head",
        count="0",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.num_virtual_tokens == 0, "num_virtual_tokens must be 0: there is no prompt")

    def min_virtual_tokens(self) -> int:
        """None is fine here."""
        return 0

    @classmethod
    def search_space(cls) -> Mapping[str, Span | Sequence[Any]]:
        """The head's rate: there is no other."""
        return {"learning_rates.head": RATES}

    def build(self, shape: Shape) -> Method:
        """A module without parameters."""
        return HeadOnly(self)


class HeadOnly(Method):
    """Hands over an empty soft prompt."""

    def forward(self, rows: Rows | None = None) -> SoftPrompt:
        """Nothing."""
        return SoftPrompt()

    def components(self) -> dict[str, Component]:
        """None; the head is the prompt's own."""
        return {}

    def cannot_fold(self) -> str | None:
        """There is nothing to fold."""
        return "it has no prompt"

"""The baseline below all prompts: the frozen model with nothing but its task head trained.

y = head(f_frozen(x))
"""

from __future__ import annotations

from typing import Literal

from softprompts.methods.about import About
from softprompts.methods.contract import Component, Method, MethodConfig, Rows, Shape
from softprompts.methods.registry import register
from softprompts.soft_prompt import SoftPrompt
from softprompts.validation import settings


@register("head-only")
@settings
class HeadOnlyConfig(MethodConfig):
    """No prompt at all; only models with a task head can train this.

    Attributes:
        num_virtual_tokens: always 0.
    """

    num_virtual_tokens: Literal[0] = 0

    head_learning_rate = 0.3  # 30 times that of a head beside a prompt: docs/defaults.md
    revision = 1
    about = About(
        line="only a task head: what prompts have to beat",
        paper="the usual linear baseline",
        equation="y = head(f(x))",
        trained="nothing but the task head",
        count="0",
        start_here=True,
        exports=("model",),
    )

    def build(self, shape: Shape) -> Method:
        """A module without parameters."""
        return HeadOnly(self)


class HeadOnly(Method):
    """A module without parameters, whose soft prompt is empty."""

    def forward(self, rows: Rows | None = None) -> SoftPrompt:
        """An empty soft prompt."""
        return SoftPrompt()

    def components(self) -> dict[str, Component]:
        """No component but the head, which every prompt has where its model has one."""
        return {}

    def cannot_fold(self) -> str | None:
        """There is nothing to fold."""
        return "it has no prompt"

"""Full fine-tuning, as a prompt: a trained copy of every parameter of the backbone.

    y = f_theta(x),   theta = theta_frozen at the start

It is there to be compared with; it costs what fine-tuning costs, and the frozen model stays in memory beside the copy.
Trained: all parameters of all modules that see the rows of a batch one by one; tied ones once. A table of relative
positions (that of T5) is the same for all rows, and a routed expert sees tokens of many rows: they stay frozen, as rows
of other prompts go by them too, unless `shared_tables` is set.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from softprompts.methods.about import About
from softprompts.methods.contract import Component, Rows, Shape
from softprompts.methods.modules import ModuleConfig, ModuleMethod, copies, ways_with
from softprompts.methods.registry import register
from softprompts.soft_prompt import Part, SoftPrompt
from softprompts.validation import settings


@register("full")
@settings
class FullConfig(ModuleConfig):
    """Settings of full fine-tuning.

    Attributes:
        shared_tables: also train modules that do not see the rows one by one (T5's relative positions: 768 numbers of
            T5-base). Such a prompt cannot share a batch with others.
    """

    shared_tables: bool = False

    about = About(
        line="a trained copy of every parameter",
        paper="the usual baseline",
        equation="y = f_theta(x)",
        trained="a copy of every parameter of the backbone",
        count="those of the backbone",
        per_row="all of the backbone, with weights of the prompt's own",
        exports=("model",),
        differs="tables of relative positions, which rows share (T5-base: 768 numbers), stay frozen by default",
    )


class Full(ModuleMethod, config=FullConfig):
    """The copies, by path and name."""

    def __init__(self, config: FullConfig, shape: Shape):
        super().__init__(config)
        parts = [part for part in shape.parts if part.by_row or config.shared_tables]
        config.require(bool(parts), "this backbone has no module with parameters")
        for part in parts:
            config.require(
                not part.packed and all(tensor.is_floating_point() for tensor in part.tensors.values()),
                f"'{part.path}' is quantised, and its weights cannot be trained: load the model without quantisation, "
                "or use lora or adapter",
            )
        self.changes = tuple(part.path for part in parts)
        self.theta, self._names = copies(parts)

    def forward(self, rows: Rows | None = None) -> SoftPrompt:
        """The way through every module."""
        return SoftPrompt(modules=ways_with(self.theta, self._names))

    def merged(self, parts: Sequence[Part]) -> dict[str, dict[str, Tensor]]:
        """The copies themselves."""
        return {
            path: {name: self.theta[copy].detach() for name, copy in copied.items()}
            for path, copied in self._names.items()
        }

    def components(self) -> dict[str, Component]:
        """All copies, in one group."""
        return {"backbone": Component(list(self.theta.values()), learning_rate=1e-4)}

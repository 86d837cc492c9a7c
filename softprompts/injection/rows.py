"""TODO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softprompts.errors import SoftPromptError


def in_batch_order(parts: list[Tensor], groups: Mapping[str | None, Tensor | None], dim: int = 0) -> Tensor:
    """Joins the groups' tensors, each with its rows along ``dim``, in the order of the batch.

    Args:
        parts: one tensor per group.
        groups: see `Pass.groups_of`.
        dim: the axis of the rows.
    """
    if len(parts) == 1:
        return parts[0]
    order = torch.cat([index for index in groups.values() if index is not None])
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    return torch.cat(parts, dim).index_select(dim, place)


def repeat_rows(tensor: Tensor, rows: int) -> Tensor:
    """Repeats each row to reach ``rows``, as beam search does; a single shared row stays one."""
    if tensor.shape[0] in (1, rows):
        return tensor
    if rows % tensor.shape[0]:
        raise SoftPromptError(f"a pass of {tensor.shape[0]} rows cannot serve {rows}; were rows added on the way?")
    return tensor.repeat_interleave(rows // tensor.shape[0], 0)


@dataclass(frozen=True)
class Split:
    """How the rows of a batch are sorted by prompt.

    Attributes:
        sizes: rows of each prompt, in the order in which they are put.
        order: ``(R,)``, the rows prompt by prompt; None where that is how they come.
        back: ``(R,)``, the place of each row in that order; None likewise.
    """

    sizes: dict[str | None, int]
    order: Tensor | None
    back: Tensor | None

    @staticmethod
    def of(names: Sequence[str | None], device: torch.device) -> Split:
        """The split of rows that have these prompts."""
        members: dict[str | None, list[int]] = {}
        for row, name in enumerate(names):
            members.setdefault(name, []).append(row)
        order = [row for rows in members.values() for row in rows]
        sizes = {name: len(rows) for name, rows in members.items()}
        if order == list(range(len(order))):
            return Split(sizes, None, None)
        at = torch.tensor(order, device=device)
        return Split(sizes, at, at.argsort())

    def sorted(self, value: Any) -> Any:
        """A tensor with a row for each of the batch's, prompt by prompt; anything else as it is."""
        return value.index_select(0, self.order) if self._has_rows(value) and self.order is not None else value

    def apart(self, value: Any) -> list[Any]:
        """What `sorted` gave, one piece per prompt."""
        return list(value.split(list(self.sizes.values()))) if self._has_rows(value) else [value] * len(self.sizes)

    def together(self, parts: Sequence[Tensor]) -> Tensor:
        """The pieces' outputs in the order of the batch; an output for all rows, ``(1, ...)``, is given to each."""
        full = [
            part.expand(count, *part.shape[1:]) if len(part) == 1 else part
            for part, count in zip(parts, self.sizes.values(), strict=True)
        ]
        joined = torch.cat(full)
        return joined if self.back is None else joined.index_select(0, self.back)

    def _has_rows(self, value: Any) -> bool:
        # An axis of that length in a tensor of one axis counts tokens.
        return isinstance(value, Tensor) and value.ndim > 1 and len(value) == sum(self.sizes.values())


# Where a module that is called with some positions of all rows finds which rows they are of.
PLACES = "_softprompt_places"

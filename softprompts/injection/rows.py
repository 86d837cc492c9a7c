"""The rows of a batch, grouped by prompt, and rows repeated for beams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from softprompts.errors import SoftPromptError

# An output embedding that is called with a few positions of all rows finds here which row each position is of.
ROW_OF_POSITION = "_softprompt_row_of_position"


class RowGroups:
    """The rows of a batch, grouped by their ``owners``: the prompt of each row, None for a row without one.

    Attributes:
        names: the prompt of each group, in the order of their first rows.
        sizes: the number of rows of each group.
    """

    def __init__(self, owners: Sequence[str | None], device: torch.device):
        members: dict[str | None, list[int]] = {}
        for row, name in enumerate(owners):
            members.setdefault(name, []).append(row)
        self.names, self.sizes = list(members), [len(rows) for rows in members.values()]
        order = [row for rows in members.values() for row in rows]
        self._order: Tensor | None = None  # the rows group by group; None where they come so
        self._back: Tensor | None = None  # the place of each row in that order
        if order != list(range(len(order))):
            self._order = torch.tensor(order, device=device)
            self._back = self._order.argsort()

    def sort(self, tensor: Tensor) -> Tensor:
        """The tensor's rows (axis 0) group by group."""
        return tensor if self._order is None else tensor.index_select(0, self._order.to(tensor.device))

    def split(self, tensor: Tensor) -> list[Tensor]:
        """The rows (axis 0) of each group."""
        return [tensor] if len(self.names) == 1 else list(self.sort(tensor).split(self.sizes))

    def join(self, parts: Sequence[Tensor], dim: int = 0) -> Tensor:
        """The reverse of `split` along any axis; a part with a single row stands for all rows of its group."""
        if len(parts) == 1:
            return parts[0]
        shapes = [[*part.shape] for part in parts]
        for shape, size in zip(shapes, self.sizes, strict=True):
            shape[dim] = size
        joined = torch.cat([part.expand(shape) for part, shape in zip(parts, shapes, strict=True)], dim)
        return joined if self._back is None else joined.index_select(dim, self._back.to(joined.device))

    def per_row(self, values: Sequence[Any], device: torch.device) -> Any:
        """One value a group, as one value where all are equal, else ``(R,)``."""
        if len(set(values)) == 1:
            return values[0]
        return self.join([torch.tensor([value], device=device) for value in values])


def repeat_rows(tensor: Tensor, rows: int) -> Tensor:
    """Repeats each row to reach ``rows``, as beam search does; a single shared row stays one."""
    if tensor.shape[0] in (1, rows):
        return tensor
    if rows % tensor.shape[0]:
        raise SoftPromptError(f"a pass of {tensor.shape[0]} rows cannot serve {rows}; were rows added on the way?")
    return tensor.repeat_interleave(rows // tensor.shape[0], 0)

"""Attending from one column only, where a task head reads no other from the last layer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

# Where an attention module finds the function that gives the column to read, called with its query.
READ_COLUMN = "_softprompt_read_column"
Attend = Callable[..., tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class ReadColumn:
    """The column of a pass that is read.

    Attributes:
        column: one for all rows, or ``(M,)``.
        width: how many columns the pass has, prompt tokens included.
    """

    column: int | Tensor
    width: int

    def pick(self, tensor: Tensor, dim: int) -> Tensor:
        """The read column of axis ``dim``, an axis of length 1 then; rows are axis 0."""
        if isinstance(self.column, int):
            return tensor.narrow(dim, self.column, 1)
        column = self.column.to(tensor.device).view(-1, *[1] * (tensor.ndim - 1))
        shape = [len(column), *tensor.shape[1:]]
        tensor = tensor.expand(shape)
        shape[dim] = 1
        return tensor.gather(dim, column.expand(shape))

    def narrow(self, value: Any) -> Any:
        """Hidden states ``(M, width, d)`` at the read column, ``(M, 1, d)``; anything else as it is."""
        wide = isinstance(value, Tensor) and value.ndim == 3 and value.shape[1] == self.width > 1
        return self.pick(value, 1) if wide else value


def narrowed(attend: Attend) -> Attend:
    """An attention function that attends from the read column alone where the calling module is told so.

    Its output still has all columns, as the caller expects, but all are those of the one that is read.
    """

    @functools.wraps(attend)
    def narrow(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        column_of = module.__dict__.get(READ_COLUMN)
        read: ReadColumn | None = None if column_of is None else column_of(query)
        if read is None:
            return attend(module, query, key, value, attention_mask, **kwargs)
        if attention_mask is not None and attention_mask.shape[2] > 1:
            attention_mask = read.pick(attention_mask, 2)
        output, weights = attend(module, read.pick(query, 2), key, value, attention_mask, **kwargs)
        return output.expand(-1, query.shape[2], -1, -1), weights

    return narrow

"""TODO."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import (
    broadcast,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def from_main(state: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The main process's values of some byte tensors on the CPU, the same shapes everywhere."""
    joined = torch.cat([value.flatten() for value in state.values()])
    received = broadcast(joined.to(device), from_process=0).cpu()
    parts = received.split([value.numel() for value in state.values()])
    return {name: part.view_as(value).clone() for (name, value), part in zip(state.items(), parts, strict=True)}


class RowDraws(TorchDispatchMode):
    """Random numbers for all rows of a batch, of which a process with every ``world``-th row keeps its own.

    Within this context an operation that draws for a tensor with as many rows as the process has draws for the whole
    batch: the process gets what one process would have drawn for these rows, and its generators end up where that
    one's would.

    Args:
        rank: the process.
        world: number of processes.
        total: rows of the batch.
    """

    def __init__(self, rank: int, world: int, total: int):
        super().__init__()  # type: ignore[no-untyped-call]
        self.own = slice(rank, None, world)
        self.rows = len(range(rank, total, world))
        self.total = total

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags or not args:
            return func(*args, **kwargs)
        given = args[0]
        if isinstance(given, Tensor) and given.dim() and given.shape[0] == self.rows:
            # The other rows' values are not known here, and any that are valid do: they decide no draw of ours.
            whole = given[:1].repeat(self.total, *[1] * (given.dim() - 1))
            whole[self.own] = given
            drawn = func(whole, *args[1:], **kwargs)
            if drawn is whole:  # in place
                return given.copy_(whole[self.own])
            return tuple(map(self._take, drawn)) if isinstance(drawn, tuple | list) else self._take(drawn)
        if isinstance(given, list | tuple) and given and given[0] == self.rows:  # torch.rand and its like
            return self._take(func([self.total, *given[1:]], *args[1:], **kwargs))
        return func(*args, **kwargs)

    def _take(self, drawn: Any) -> Any:
        return drawn[self.own].clone() if isinstance(drawn, Tensor) and drawn.dim() else drawn

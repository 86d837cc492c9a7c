"""Logits at the few positions that a loss reads, where the vocabulary is wide."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from softprompts.injection.rows import ROW_OF_POSITION


@contextlib.contextmanager
def at_places(head: nn.Module, shape: Sequence[int], places: Tensor) -> Iterator[list[bool]]:
    """Within this context, an output embedding makes logits of some positions only, ``(1, P, V)``.

    Args:
        head: the module that turns hidden states ``(R, T, d)`` into logits.
        shape: ``(R, T)``; it runs as ever on anything else.
        places: ``(P,)``, indices into the ``R*T`` positions.

    Yields:
        A list that is empty until it has happened.
    """
    done: list[bool] = []

    def gather(module: nn.Module, args: tuple[Any, ...]) -> Any:
        if not args or args[0].ndim != 3 or args[0].shape[:2] != shape:
            return None
        done.append(True)
        module.__dict__[ROW_OF_POSITION] = (places // shape[1], shape[0])
        return (args[0].flatten(0, 1).index_select(0, places.to(args[0].device))[None], *args[1:])

    handle = head.register_forward_pre_hook(gather)
    try:
        yield done
    finally:
        handle.remove()
        head.__dict__.pop(ROW_OF_POSITION, None)

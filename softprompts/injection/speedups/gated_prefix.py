"""Gated prefixes of which nothing with a row per row of the batch is kept for the backward pass but the gates."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from softprompts.attention.prefix import gated


def gate(part: Tensor, rows: Tensor | None, gates: Tensor) -> Tensor:
    """See `softprompts.attention.prefix.gated`."""
    return cast(Tensor, _Gated.apply(part, rows, gates))  # type: ignore[no-untyped-call]


class _Gated(torch.autograd.Function):
    """`gated`, whose products are computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, rows: Tensor | None, gates: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(part, rows, gates)
        return gated(part, rows, gates)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        part, rows, gates = ctx.saved_tensors
        grad_part = grad_gates = None
        if rows is None and part.shape[0] == 1 and gates.shape[0] > 1:  # without anything as large as ``grad``
            if ctx.needs_input_grad[0]:
                grad_part = torch.einsum("mlw,ml->lw", grad, gates).unsqueeze(0)
            if ctx.needs_input_grad[2]:
                grad_gates = torch.einsum("mlw,lw->ml", grad, part[0])
            return grad_part, None, grad_gates
        if ctx.needs_input_grad[0]:
            scaled = grad * gates.unsqueeze(-1)
            if rows is None:
                grad_part = scaled.sum_to_size(part.shape)
            else:
                grad_part = torch.zeros_like(part).index_add_(0, rows, scaled)
        if ctx.needs_input_grad[2]:
            own = part if rows is None else part.index_select(0, rows)
            grad_gates = (grad * own).sum(-1).sum_to_size(gates.shape)
        return grad_part, None, grad_gates

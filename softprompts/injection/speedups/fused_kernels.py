"""Fused attention kernels that also tell the log-sum-exp of their scores, and can be trusted.

Torch's operators for this are not part of its public interface, and what they want of strides, padding and alignment
differs between devices. So each is tried on first use, for each device, type of number and kind of call: where its
output or a gradient of what is made of it differs from the formula written out, it is never used again, and said so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

_HIDDEN = -1e4  # hides a column in any type of number; lower ones become infinite inside of some kernels
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 5e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class Fused(Protocol):
    """A fused kernel. All scores are ``scale * query @ key^T + bias``; nothing as large as they are is kept."""

    def covers(self, query: Tensor) -> bool:
        """Whether the kernel is there and takes queries of this device, type and width."""

    def bias(self, bias: Tensor, query: Tensor) -> Tensor:
        """A bias that can be expanded to ``(M, H, q, k)``, as the kernel wants it."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Output ``(M, H, q, head_dim)``, log-sum-exp of the scores ``(M, H, q)``, and what `backward` needs."""

    def backward(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        output: Tensor,
        lse: Tensor,
        kept: tuple[Tensor, ...],
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of query, key and value where the weights are ``exp(score - lse)`` and give ``output``."""


class CpuFlash:
    """The kernel under `torch.nn.functional.scaled_dot_product_attention` on the CPU."""

    def __init__(self) -> None:
        self._forward = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
        self._backward = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)

    def covers(self, query: Tensor) -> bool:
        """See `Fused`."""
        return query.device.type == "cpu" and self._forward is not None and self._backward is not None

    def bias(self, bias: Tensor, query: Tensor) -> Tensor:
        """See `Fused`."""
        return bias

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """See `Fused`."""
        output, lse = self._forward(query, key, value, 0.0, False, attn_mask=bias, scale=scale)  # type: ignore[misc]
        return output, lse, ()

    def backward(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        output: Tensor,
        lse: Tensor,
        kept: tuple[Tensor, ...],
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Fused`."""
        gradients: tuple[Tensor, Tensor, Tensor] = self._backward(  # type: ignore[misc]
            grad, query, key, value, output, lse.contiguous(), 0.0, False, attn_mask=bias, scale=scale
        )
        return gradients


class CudaEfficient:
    """The memory-efficient kernel of CUDA builds: any mask, float32 and both halves.

    It wants heads of 16 bytes, rows of a bias that begin at multiples of 16 numbers, and memory in the order
    ``(M, q, H, head_dim)``; its log-sum-exps are padded to a multiple of 32 queries.
    """

    def __init__(self) -> None:
        self._forward = getattr(torch.ops.aten, "_scaled_dot_product_efficient_attention", None)
        self._backward = getattr(torch.ops.aten, "_scaled_dot_product_efficient_attention_backward", None)

    def covers(self, query: Tensor) -> bool:
        """See `Fused`."""
        return (
            query.device.type == "cuda"
            and query.dtype in (torch.float32, torch.float16, torch.bfloat16)
            and query.shape[-1] * query.element_size() % 16 == 0
            and self._forward is not None
            and self._backward is not None
        )

    def bias(self, bias: Tensor, query: Tensor) -> Tensor:
        """See `Fused`."""
        columns = bias.shape[-1]
        bias = F.pad(bias.to(query.dtype).clamp(min=_HIDDEN), (0, -columns % 16)).contiguous()[..., :columns]
        return bias.expand(*query.shape[:3], columns)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """See `Fused`."""
        output, padded, seed, offset = self._forward(  # type: ignore[misc]
            _dense(query), _dense(key), _dense(value), bias, True, 0.0, False, scale=scale
        )
        return output, padded[..., : query.shape[2]], (padded, seed, offset)

    def backward(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        output: Tensor,
        lse: Tensor,
        kept: tuple[Tensor, ...],
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Fused`."""
        padded, seed, offset = kept
        padded = padded.clone()  # with what the kernel itself wrote behind the last query
        padded[..., : lse.shape[2]] = lse
        grad_query, grad_key, grad_value, _ = self._backward(  # type: ignore[misc]
            _dense(grad), _dense(query), _dense(key), _dense(value), bias, _dense(output), padded, seed, offset, 0.0,
            [True, True, True, False], False, scale=scale,
        )  # fmt: skip
        return grad_query, grad_key, grad_value


def _dense(tensor: Tensor) -> Tensor:
    """``(M, H, n, head_dim)`` with memory in the order ``(M, n, H, head_dim)``; no copy where it is so already."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


KERNELS: list[Fused] = [CpuFlash(), CudaEfficient()]

# Fused output as a function of query, key, value, prefix key, prefix value and bias; see `verified`.
Attend = Callable[..., Tensor]
_verdicts: dict[Any, bool] = {}


def verified(kernel: Fused, query: Tensor, masked: bool, attend: Attend, formula: Attend) -> bool:
    """Whether a kernel gives what the formula gives, found out once per device, type, head width and kind of call.

    Args:
        kernel: the kernel.
        query: any query of the kind in question.
        masked: whether it goes with a bias.
        attend: ``attend(kernel, query, key, value, prefix_key, prefix_value, bias)``, made of the kernel.
        formula: the same without a kernel, written out.
    """
    sort = (type(kernel), query.device, query.dtype, query.shape[-1], masked)
    if sort not in _verdicts:
        problem = _problem(kernel, query, masked, attend, formula)
        _verdicts[sort] = problem is None
        if problem is not None:
            warnings.warn(
                f"selective attention takes its slower form on {query.device} in {query.dtype}: torch's fused kernel "
                f"({type(kernel).__name__}) {problem}",
                stacklevel=2,
            )
    return _verdicts[sort]


def _problem(kernel: Fused, query: Tensor, masked: bool, attend: Attend, formula: Attend) -> str | None:
    """What is wrong with a kernel, or None."""
    width, heads, queries, keys, length = query.shape[-1], 2, 37, 45, 3
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, heads, queries, width), (2, heads, keys, width), (2, heads, keys, width)]
    shapes += [(1, heads, length, width)] * 2 + [(2, heads, queries, width)]
    *given, weights = [torch.randn(shape, generator=generator) for shape in shapes]
    hidden = torch.zeros(2, 1, 1, keys, dtype=torch.float64)
    hidden[1, ..., keys - 9 :] = torch.finfo(query.dtype).min
    found: list[list[Tensor]] = []
    try:
        with torch.enable_grad(), torch.autocast(query.device.type, enabled=False):
            for dtype, function in ((torch.float64, formula), (query.dtype, attend)):
                # Rounded alike in both, so that only the computation differs.
                leaves = [value.to(query.dtype).to(query.device, dtype).requires_grad_() for value in given]
                bias = hidden.to(query.device, dtype) if masked else None
                extra = (kernel,) if function is attend else ()
                output = function(*extra, *leaves, bias)
                gradients = torch.autograd.grad((output * weights.to(output)).sum(), leaves)
                found.append([output.detach(), *gradients])
        exact, got = found
        for wanted, value in zip(exact, got, strict=True):
            error = (value.double() - wanted).abs().max() / wanted.abs().max()
            if not float(error) < _TOLERANCE[query.dtype]:  # NaN is no less than anything
                return f"is off by {float(error):.1g}"
    except (RuntimeError, TypeError, NotImplementedError) as error:
        return f"fails ({(str(error).strip().splitlines() or [type(error).__name__])[0]})"
    return None

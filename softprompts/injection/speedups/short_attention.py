"""Attention of short inputs by plain matrix products, where torch's flash kernel for CPUs is the slower way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softprompts.injection.speedups import frozen_linear

# Scores of one head up to which plain products beat torch's flash kernel on a CPU. Measured on the packaged encoder, a
# training step was 6 to 16 % faster at 16 to 48 tokens and a prefix of 10, and the same at 64.
SHORT = 48 * 64
# In bfloat16 that kernel's backward takes as long as in float32 and longer, while products take half as long. Measured
# on a processor with AVX512-BF16, plain products were 5.9 times as fast at 32 tokens and 1.8 times at 512.
SHORT_IN_HALF = 512 * 640


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Tensor | None:
    """``softmax(q k^T / sqrt(d) + mask) v`` as it stands, ``(B, N, heads, d)``; None where a kernel is faster."""
    if not _short(query, key, value, **kwargs):
        return None
    scaling = kwargs.get("scaling")
    scores = torch.matmul(query * (query.shape[-1] ** -0.5 if scaling is None else scaling), key.transpose(-1, -2))
    if mask is not None:
        scores = scores.add_(mask)  # a product's gradient does not need its value
    weights = scores.softmax(-1, dtype=scores.dtype)  # computed in float32, whatever the type; so autocast leaves it
    return torch.matmul(weights, value).transpose(1, 2).contiguous()


def _short(query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0, **_: Any) -> bool:
    """Whether torch's flash kernel for CPUs, which is made for long sequences, is the slower way."""
    longest = SHORT_IN_HALF if query.dtype == torch.bfloat16 and frozen_linear.half_pays() else SHORT
    return (
        query.device.type == "cpu"
        and query.shape[2] * key.shape[2] <= longest
        and query.shape[1] == key.shape[1] == value.shape[1]
        and (query.dtype in (torch.float32, torch.float64) or longest > SHORT)
        and not dropout
        and not torch.compiler.is_compiling()
    )

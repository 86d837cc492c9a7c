"""Attention with Selective Prefix Tuning's mask (Eq. 4-6 of the paper), per head.

A prefix column with score ``s`` keeps the weight ``sigmoid(alpha * s) * exp(s)`` before normalisation, which is the
same as adding ``logsigmoid(alpha * s)`` to its score. That term depends on the query, so no kernel that takes a bias
can add it: here are all scores at once, as the formula reads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def select(scores: Tensor, alpha: float | Tensor) -> Tensor:
    """Scores ``(M, H, q, l)`` of prefix columns with the logarithm of their mask added.

    ``alpha`` is a float, or ``(M,)`` with NaN for rows with plain attention.
    """
    if not isinstance(alpha, Tensor):
        return scores + F.logsigmoid(alpha * scores)
    steep = alpha.view(-1, 1, 1, 1)
    chosen = scores + F.logsigmoid(steep.nan_to_num(1.0).to(scores.dtype) * scores)
    return torch.where(steep.isnan(), scores, chosen)


def selecting(
    query: Tensor,
    prefix_key: Tensor,
    alpha: float | Tensor,
    bias: Tensor | None,
    columns: int,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """A bias ``(M, H, q, columns)`` with which any kernel that adds a bias to its scores attends selectively.

    Whatever else the kernel does, such as sinks in the denominator, stays as it is. ``s`` of the formula is the score
    behind the kernel's ``softcap``; ``columns`` are those of prefix and content, other arguments those of `by_scores`.
    """
    scores = (query @ prefix_key.transpose(-1, -2)) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    gain = F.pad(select(scores, alpha) - scores, (0, columns - scores.shape[-1]))
    return gain if bias is None else bias + gain


def by_scores(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    alpha: float | Tensor,
    bias: Tensor | None,
    scale: float,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Output ``(M, H, q, head_dim)`` and weights ``(M, H, q, l + k)``.

    Args:
        query: ``(M, H, q, head_dim)``.
        key: ``(M, H, k, head_dim)``; heads already repeated to the query's number.
        value: like ``key``.
        prefix_key: ``(M|1, H, l, head_dim)``.
        prefix_value: like ``prefix_key``.
        alpha: see `select`.
        bias: added to the scores of all ``l + k`` columns.
        scale: factor of the scores.
        dropout: of the weights.
    """
    length = prefix_key.shape[2]
    query = query * scale
    chosen = select(query @ prefix_key.transpose(-1, -2), alpha)
    scores = torch.cat([chosen, query @ key.transpose(-1, -2)], dim=-1)
    if bias is not None:
        scores = scores + bias
    wide = torch.float32 if scores.dtype in (torch.float16, torch.bfloat16) else scores.dtype
    weights = scores.softmax(-1, dtype=wide).to(query.dtype)
    weights = F.dropout(weights, dropout, training=dropout > 0)
    return weights[..., :length] @ prefix_value + weights[..., length:] @ value, weights

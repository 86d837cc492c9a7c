"""Attention with Selective Prefix Tuning's mask (Eq. 4-6 of the paper), per head.

A prefix column with score ``s`` keeps the weight ``sigmoid(alpha * s) * exp(s)`` before normalisation, which is the
same as adding ``logsigmoid(alpha * s)`` to its score. That term depends on the query, so no kernel that takes a bias
can add it. Two ways to compute it, equal up to rounding:

- `by_scores`: all scores at once, as the formula reads; anywhere, and it can return the weights;
- `by_merging`: the content through the CPU's fused kernel, the few prefix columns by hand, merged by their
  log-sum-exps. No score matrix of the content is kept for the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_flash = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_flash_backward = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)


def can_merge(query: Tensor, dropout: float, softcap: float | None) -> bool:
    """Whether `by_merging` covers this call."""
    return (
        query.device.type == "cpu"
        and dropout == 0
        and softcap is None
        and _flash is not None
        and _flash_backward is not None
        and not torch.compiler.is_compiling()
    )


def select(scores: Tensor, alpha: float | Tensor) -> Tensor:
    """Scores of prefix columns with the logarithm of their mask added.

    Args:
        scores: ``(M, H, q, l)``.
        alpha: a float, or ``(M,)`` with NaN for rows with plain attention.
    """
    if not isinstance(alpha, Tensor):
        return scores + F.logsigmoid(alpha * scores)
    steep = alpha.view(-1, 1, 1, 1)
    chosen = scores + F.logsigmoid(steep.nan_to_num(1.0).to(scores.dtype) * scores)
    return torch.where(steep.isnan(), scores, chosen)


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
    softcap: float | None = None,
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
        softcap: Gemma 2's bound on scores.
    """
    length = prefix_key.shape[2]
    query = query * scale
    chosen = select(query @ prefix_key.transpose(-1, -2), alpha)
    scores = torch.cat([chosen, query @ key.transpose(-1, -2)], dim=-1)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if bias is not None:
        scores = scores + bias
    wide = torch.float32 if scores.dtype in (torch.float16, torch.bfloat16) else scores.dtype
    weights = scores.softmax(-1, dtype=wide).to(query.dtype)
    weights = F.dropout(weights, dropout, training=dropout > 0)
    return weights[..., :length] @ prefix_value + weights[..., length:] @ value, weights


def by_merging(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    alpha: float | Tensor,
    bias: Tensor | None,
    prefix_bias: Tensor | None,
    scale: float,
) -> Tensor:
    """Output ``(M, H, q, head_dim)``; arguments as for `by_scores`, but the bias split at the prefix.

    Args:
        query: ``(M, H, q, head_dim)``.
        key: ``(M, H, k, head_dim)``.
        value: like ``key``.
        prefix_key: ``(M|1, H, l, head_dim)``.
        prefix_value: like ``prefix_key``.
        alpha: see `select`.
        bias: constant, added to the scores of the ``k`` content columns.
        prefix_bias: constant, added to the scores of the ``l`` prefix columns.
        scale: factor of the scores.
    """
    output: Tensor = _Merged.apply(  # type: ignore[no-untyped-call]
        query, key, value, prefix_key, prefix_value, alpha, bias, prefix_bias, scale
    )
    return output


class _Merged(torch.autograd.Function):
    """Content and prefix attend apart; their outputs are weighted by their shares of the whole log-sum-exp.

    The fused kernel's backward rebuilds the content's weights as ``exp(score - lse)``. Given the *whole* output and
    log-sum-exp in place of the content's own, those are the true weights, and what it returns are the true gradients.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        prefix_key: Tensor,
        prefix_value: Tensor,
        alpha: float | Tensor,
        bias: Tensor | None,
        prefix_bias: Tensor | None,
        scale: float,
    ) -> Tensor:
        content, lse = _flash(query, key, value, 0.0, False, attn_mask=bias, scale=scale)  # type: ignore[misc]
        prefix_key = prefix_key * scale  # a few columns, where the scores are many
        scores = (query @ prefix_key.transpose(-1, -2)).to(lse.dtype)
        chosen = select(scores, alpha)
        if prefix_bias is not None:
            chosen = chosen + prefix_bias
        # The content as one more column. Where all of it is masked its share is 0, however low the bound.
        lse = lse.clamp(min=-1e4)
        logs = torch.cat([chosen, lse[..., None]], dim=-1).log_softmax(-1)
        weights, share = logs.exp_().split([scores.shape[-1], 1], dim=-1)
        whole = lse - share.log().squeeze(-1)
        output = torch.addcmul((weights.to(query.dtype) @ prefix_value).to(lse.dtype), content.to(lse.dtype), share)
        output = output.to(query.dtype)
        ctx.save_for_backward(
            query, key, value, prefix_key, prefix_value, bias, output, whole, weights, scores,
            alpha if isinstance(alpha, Tensor) else None,
        )  # fmt: skip
        ctx.alpha, ctx.scale = alpha, scale
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        query, key, value, prefix_key, prefix_value, bias, output, whole, weights, scores, steep = ctx.saved_tensors
        grad_query, grad_key, grad_value = _flash_backward(  # type: ignore[misc]
            grad, query, key, value, output, whole, 0.0, False, attn_mask=bias, scale=ctx.scale
        )
        delta = (grad * output).sum(-1, keepdim=True)
        # d/ds [s + logsigmoid(alpha s)] = 1 + alpha sigmoid(-alpha s)
        if steep is None:
            gain = torch.addcmul(weights, weights, (scores * -ctx.alpha).sigmoid_(), value=ctx.alpha)
        else:
            steep = steep.view(-1, 1, 1, 1).to(scores.dtype)
            gain = weights * (torch.sigmoid(-steep * scores) * steep + 1).nan_to_num(1.0)
        grad_scores = (grad @ prefix_value.transpose(-1, -2)).sub_(delta).to(gain.dtype).mul_(gain).to(query.dtype)
        grad_query = grad_query + grad_scores @ prefix_key
        grad_prefix_key = (grad_scores.transpose(-1, -2) @ query) * ctx.scale
        grad_prefix_value = weights.to(query.dtype).transpose(-1, -2) @ grad
        if prefix_key.shape[0] == 1:
            grad_prefix_key = grad_prefix_key.sum(0, keepdim=True)
            grad_prefix_value = grad_prefix_value.sum(0, keepdim=True)
        return grad_query, grad_key, grad_value, grad_prefix_key, grad_prefix_value, None, None, None, None

"""Selective attention through a fused kernel: no score matrix of the content is kept for the backward pass.

The content goes through the kernel, the few prefix columns are computed by hand, and the two are merged by their
log-sum-exps. Equal to `softprompts.attention.selective.by_scores` up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from softprompts.attention.prefix import Prefix, once
from softprompts.attention.selective import by_scores
from softprompts.injection.speedups.fused_kernels import KERNELS, Fused, verified

LONG = 512  # tokens


def attend(
    prefix: Prefix,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    bias: Tensor | None,
    scale: float,
    *,
    placed: bool,
    dropout: float = 0.0,
) -> Tensor | None:
    """Output ``(M, H, q, head_dim)``, or None where only `by_scores` can do this call.

    Args:
        prefix: the site's prefix.
        query: as for `by_scores`, like ``key``, ``value``, ``prefix_key``, ``prefix_value``, ``bias`` and ``scale``.
        key: see `by_scores`.
        value: see `by_scores`.
        prefix_key: see `by_scores`.
        prefix_value: see `by_scores`.
        bias: see `by_scores`.
        scale: see `by_scores`.
        placed: whether the prefix has positions, and so a bias of its own.
        dropout: of the weights.
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.shape[2] <= LONG:
        return None  # the backward of the CPU's kernel is slower than plain products, for which long rows lack memory
    kernel = kernel_for(query, bias is not None, dropout)
    if kernel is None or prefix.selectivity is None:
        return None
    length = prefix_key.shape[2]
    # A prefix without positions has no bias, and without a mask of its own every row owns all of its columns.
    of_prefix = None if bias is None or (prefix.mask is None and not placed) else bias[..., :length]
    of_content = None
    if bias is not None:
        whole = bias
        of_content = once(prefix, ("content", query.shape), (bias,), lambda: kernel.bias(whole[..., length:], query))
    return by_merging(
        kernel, query, key, value, prefix_key, prefix_value, prefix.selectivity, of_content, of_prefix, scale
    )


def kernel_for(query: Tensor, masked: bool, dropout: float = 0.0) -> Fused | None:
    """The kernel with which `by_merging` can do this call; None where only `by_scores` can.

    Args:
        query: ``(M, H, q, head_dim)``.
        masked: whether there is a bias.
        dropout: of the weights.
    """
    if dropout or torch.compiler.is_compiling():
        return None
    kernel = next((kernel for kernel in KERNELS if kernel.covers(query)), None)
    return kernel if kernel is not None and verified(kernel, query, masked, _trial, _trial_formula) else None


def _trial(
    kernel: Fused,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    bias: Tensor | None,
) -> Tensor:
    bias = None if bias is None else kernel.bias(bias, query)
    return by_merging(kernel, query, key, value, prefix_key, prefix_value, 4.0, bias, None, 0.25)


def _trial_formula(
    query: Tensor, key: Tensor, value: Tensor, prefix_key: Tensor, prefix_value: Tensor, bias: Tensor | None
) -> Tensor:
    whole = None if bias is None else F.pad(bias, (prefix_key.shape[2], 0))
    return by_scores(query, key, value, prefix_key, prefix_value, 4.0, whole, 0.25)[0]


def by_merging(
    kernel: Fused,
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
        kernel: see `kernel_for`.
        query: ``(M, H, q, head_dim)``.
        key: ``(M, H, k, head_dim)``.
        value: like ``key``.
        prefix_key: ``(M|1, H, l, head_dim)``.
        prefix_value: like ``prefix_key``.
        alpha: see `select`.
        bias: constant, added to the scores of the ``k`` content columns; as ``kernel.bias`` gives it.
        prefix_bias: constant, added to the scores of the ``l`` prefix columns.
        scale: factor of the scores.
    """
    output: Tensor = _Merged.apply(  # type: ignore[no-untyped-call]
        kernel, query, key, value, prefix_key, prefix_value, alpha, bias, prefix_bias, scale
    )
    return output


class _Merged(torch.autograd.Function):
    """Content and prefix attend apart; their outputs are weighted by their shares of the whole log-sum-exp.

    The fused kernel's backward rebuilds the content's weights as ``exp(score - lse)``. Given the *whole* output and
    log-sum-exp in place of the content's own, those are the true weights, and what it returns are the true gradients.

    The prefix part works on groups of rows that share a prefix: a head's rows of the whole batch where the prefix is
    the same for all, else a head's rows of one batch row. See `_Groups`.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        kernel: Fused,
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
        content, lse, kept = kernel.forward(query, key, value, bias, scale)
        groups = _Groups(query, shared=prefix_key.shape[0] == 1)
        keys, values = groups.prefix(prefix_key) * scale, groups.prefix(prefix_value)
        steep = groups.rows(alpha.to(lse.dtype).view(-1, 1, 1, 1)).mT if isinstance(alpha, Tensor) else alpha
        # Columns before rows, (G, l, N): a softmax over so few numbers is quick only along an outer dimension.
        scores = torch.bmm(keys, groups.rows(query).mT).to(lse.dtype)
        chosen = _select_rows(scores, steep)
        if prefix_bias is not None:
            chosen = chosen + groups.rows(prefix_bias).mT
        # The content as one more column. Where all of it is masked its share is 0, however low the bound.
        lse = groups.rows(lse[..., None]).mT.clamp(min=-1e4)
        weights, share = torch.cat([chosen, lse], dim=1).softmax(1).split([scores.shape[1], 1], dim=1)
        whole = groups.back((lse - share.log()).mT)[..., 0]
        output = (groups.rows(content) * share.mT.to(content.dtype)).baddbmm_(weights.mT.to(content.dtype), values)
        output = groups.back(output)
        ctx.save_for_backward(
            query, key, value, keys, values, bias, output, whole, weights, scores,
            steep if isinstance(steep, Tensor) else None, *kept,
        )  # fmt: skip
        ctx.kernel = kernel
        ctx.alpha, ctx.scale, ctx.groups, ctx.shape = alpha, scale, groups, prefix_key.shape
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        query, key, value, keys, values, bias, output, whole, weights, scores, steep, *kept = ctx.saved_tensors
        groups = ctx.groups
        grad_query, grad_key, grad_value = ctx.kernel.backward(
            grad, query, key, value, bias, output, whole, tuple(kept), ctx.scale
        )
        delta = groups.rows((grad * output).sum(-1, keepdim=True)).mT
        grad = groups.rows(grad)
        # d/ds [s + logsigmoid(alpha s)] = 1 + alpha sigmoid(-alpha s)
        if steep is None:
            gain = torch.addcmul(weights, weights, (scores * -ctx.alpha).sigmoid_(), value=ctx.alpha)
        else:
            gain = weights * (torch.sigmoid(-steep * scores) * steep + 1).nan_to_num(1.0)
        grad_scores = torch.bmm(values, grad.mT).sub_(delta).to(gain.dtype).mul_(gain).to(query.dtype)
        grad_query = groups.back(torch.baddbmm(groups.rows(grad_query), grad_scores.mT, keys))
        grad_keys = torch.bmm(grad_scores, groups.rows(query)) * ctx.scale
        grad_values = torch.bmm(weights.to(query.dtype), grad)
        return (
            None, grad_query, grad_key, grad_value, grad_keys.view(ctx.shape), grad_values.view(ctx.shape),
            None, None, None, None,
        )  # fmt: skip


def _select_rows(scores: Tensor, steep: float | Tensor) -> Tensor:
    """`select` for scores in groups."""
    if not isinstance(steep, Tensor):
        return scores + F.logsigmoid(scores * steep)
    return torch.where(steep.isnan(), scores, scores + F.logsigmoid(steep.nan_to_num(1.0) * scores))


class _Groups:
    """Puts ``(M, H, q, x)`` into the groups that share a prefix and back.

    With one prefix for all rows they are ``(H, M*q, x)``: a few large matrix products instead of ``M*H`` small ones,
    and no copy where memory is laid out as ``(M, q, H, x)``, as in transformers. Otherwise they are ``(M*H, q, x)``.
    """

    def __init__(self, query: Tensor, shared: bool):
        self.batch, self.heads, self.queries = query.shape[:3]
        self.shared = shared

    def rows(self, tensor: Tensor) -> Tensor:
        """Groups of something that is, or can be expanded to, ``(M, H, q, x)``."""
        tensor = tensor.expand(self.batch, self.heads, self.queries, -1)
        if self.shared:
            return tensor.permute(1, 0, 2, 3).reshape(self.heads, self.batch * self.queries, -1)
        return tensor.reshape(self.batch * self.heads, self.queries, -1)

    def prefix(self, tensor: Tensor) -> Tensor:
        """``(M|1, H, l, x)`` as one matrix per group."""
        return tensor.reshape(-1, *tensor.shape[2:])

    def back(self, tensor: Tensor) -> Tensor:
        """The reverse of `rows`."""
        if self.shared:
            return tensor.reshape(self.heads, self.batch, self.queries, -1).transpose(0, 1)
        return tensor.reshape(self.batch, self.heads, self.queries, -1)

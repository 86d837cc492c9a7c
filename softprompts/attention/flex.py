"""Plain prefixes for torch's flex_attention: a block mask with more columns on its left."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask
from transformers.integrations.flex_attention import flex_attention_forward

from softprompts.attention.prefix import Kernel, Prefix, in_front, once, require_known, widened_bias, widened_mask
from softprompts.errors import SoftPromptError

NAMES = ("flex_attention",)


def kernel(module: nn.Module, name: str) -> Kernel:
    """Gives transformers' function, which reads a bias that all rows share row by row."""

    def run(module: nn.Module, query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        bias = kwargs.get("position_bias")
        if bias is not None:
            kwargs["position_bias"] = bias.expand(query.shape[0], -1, -1, -1)
        return flex_attention_forward(module, query, *args, **kwargs)

    return run


def attend(
    prefix: Prefix,
    name: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attends with a prefix in front of keys and values; ``attention_mask`` is a block mask or is added to scores."""
    require_known(kwargs)
    if prefix.selectivity is not None:
        raise SoftPromptError(f"{name} takes a prefix, but no scores of ours: choose 'sdpa' or 'eager'")
    rows, (queries, columns) = query.shape[0], (query.shape[2], key.shape[2])
    bias = kwargs.get("position_bias")
    if bias is not None:
        kwargs["position_bias"] = once(
            prefix, "bias", (bias,), lambda: widened_bias(bias[..., :columns], prefix, module)
        )
    mask = once(
        prefix,
        ("flex", rows, queries, columns),
        (attention_mask, prefix.mask),
        lambda: _widened(attention_mask, prefix, query, key),
    )
    key, value = in_front(prefix, key, value)
    return kernel(module, name)(module, query, key, value, mask, **kwargs)


def _widened(mask: Any, prefix: Prefix, query: Tensor, key: Tensor) -> Any:
    rows, length = query.shape[0], prefix.keys.shape[1]
    if isinstance(mask, Tensor):
        made = widened_mask(mask, prefix, query, key, causal=False)
        return None if made is None else made.expand(rows, -1, -1, -1)
    if mask is None and prefix.mask is None:
        return None
    owned = None if prefix.mask is None else prefix.mask.to(query.device)

    def visible(row: Tensor, head: Tensor, at: Tensor, column: Tensor) -> Tensor:
        own = column < length if owned is None else (column < length) & owned[row, column.clamp(max=length - 1)]
        real = column >= length
        return own | (real if mask is None else real & mask.mask_mod(row, head, at, (column - length).clamp(min=0)))

    columns = length + key.shape[2]
    return create_block_mask(visible, rows, None, query.shape[2], columns, device=query.device, _compile=True)

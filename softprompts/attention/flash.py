"""Plain prefixes for FlashAttention: more keys in front, and nothing else.

Its causal mask is aligned at the bottom right, so that all queries see keys in front. Where rows have padding, prefixes
of different lengths or several sequences each (packed rows), queries and keys go in without gaps, one sequence after
the other, each with its row's prefix in front.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.modeling_flash_attention_utils import (
    _is_packed_sequence,
    flash_attn_supports_top_left_mask,
    prepare_fa_kwargs_from_position_ids,
)

from softprompts.attention.prefix import Kernel, Prefix, in_front, once, require_known
from softprompts.errors import SoftPromptError

NAMES = () if flash_attn_supports_top_left_mask() else tuple(f"flash_attention_{version}" for version in (2, 3, 4))
_PACKED = ("position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


class _With:
    """An object as it is but for some attributes."""

    def __init__(self, whole: Any, **changed: Any):
        self.__dict__.update(changed, _whole=whole)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)


def kernel(module: nn.Module, name: str) -> Kernel:
    """Gives transformers' function, which reads the name of the kernel from the module's config.

    Where a mask of other tokens than the queries' comes with it, as in cross-attention, that function takes it for one
    of the queries too; here all queries attend then.
    """
    seen: Any = _With(module, config=_With(module.config, _attn_implementation=name))

    def whole(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        return cast("tuple[Tensor, Tensor | None]", flash_attention_forward(seen, *args, **kwargs))

    def run(
        _: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        rows, queries, causal = query.shape[0], query.shape[2], kwargs.get("is_causal")
        crosses = mask is not None and mask.ndim == 2 and queries not in (1, mask.shape[1])
        if mask is None or not crosses or (cast(Any, module).is_causal if causal is None else causal):
            return whole(query, key, value, mask, **kwargs)
        key, value = (part[:, :, : mask.shape[1]] for part in (key, value))
        parts = _sequences(torch.ones(rows, queries, dtype=torch.bool, device=query.device)), _sequences(mask.bool())
        return _by_sequences(whole, parts, query, key, value, **kwargs)

    return run


@dataclass
class _Sequences:
    """Which of the columns of all rows, one row after the other, make the sequences, and how long these are."""

    columns: Tensor
    lengths: list[int]

    def of(self, heads: Tensor) -> Tensor:
        """``(1, heads, total, head_dim)`` of ``(M, heads, n, head_dim)``."""
        return heads.transpose(1, 2).flatten(0, 1).index_select(0, self.columns).transpose(0, 1)[None]

    @property
    def bounds(self) -> Tensor:
        """Where each begins, and where the last ends."""
        ends = torch.tensor(self.lengths, device=self.columns.device).cumsum(0, dtype=torch.int32)
        return F.pad(ends, (1, 0))


def attend(
    prefix: Prefix,
    name: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attends by the kernel of that name; the mask is one of columns, ``(M, k)``."""
    require_known(kwargs)
    if prefix.selectivity is not None or (attention_mask is not None and attention_mask.ndim != 2):
        raise SoftPromptError(f"{name} takes a prefix, but no scores or masks of ours: choose 'sdpa' or 'eager'")
    if attention_mask is not None:  # a cache of fixed size is empty behind it
        key, value = (part[:, :, : attention_mask.shape[1]] for part in (key, value))
    if sliding_window is not None and key.shape[2] > sliding_window:
        raise SoftPromptError(
            f"{name} would cut a prefix off at its window of {sliding_window} tokens, which {key.shape[2]} exceed: "
            "load the model with attn_implementation='sdpa', 'eager' or 'flex_attention'"
        )
    causal = bool(cast(Any, module).is_causal) if is_causal is None else is_causal
    queries, columns = query.shape[2], key.shape[2]
    key, value = in_front(prefix, key, value)
    source = (attention_mask, prefix.mask, kwargs.get("position_ids"), kwargs.get("cu_seq_lens_q"))
    parts = once(
        prefix, ("flash", queries, columns, causal), source, lambda: _parts(prefix, query, columns, causal, *source)
    )
    run, kwargs = kernel(module, name), {other: kwargs[other] for other in kwargs if other not in _PACKED}
    kwargs["is_causal"] = causal
    if parts is None:
        return run(module, query, key, value, None, **kwargs)
    return _by_sequences(functools.partial(run, module), parts, query, key, value, **kwargs)


def _by_sequences(
    run: Callable[..., tuple[Tensor, Any]],
    parts: tuple[_Sequences, _Sequences],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Runs a kernel on the sequences of queries and of keys; queries that are in none get zeros."""
    asking, asked = parts
    kwargs |= {"cu_seq_lens_q": asking.bounds, "max_length_q": max(asking.lengths)}
    kwargs |= {"cu_seq_lens_k": asked.bounds, "max_length_k": max(asked.lengths)}
    output, _ = run(asking.of(query), asked.of(key), asked.of(value), None, **kwargs)
    rows, queries = query.shape[0], query.shape[2]
    whole = output.new_zeros(rows * queries, *output.shape[2:]).index_copy(0, asking.columns, output[0])
    return whole.unflatten(0, (rows, queries)), None


def _parts(
    prefix: Prefix,
    query: Tensor,
    columns: int,
    causal: bool,
    mask: Tensor | None,
    owned: Tensor | None,
    positions: Tensor | None,
    bounds: Tensor | None,
) -> tuple[_Sequences, _Sequences] | None:
    """The sequences of queries and of keys, a prefix in front; None where all rows are whole and alike."""
    rows, length, queries, device = query.shape[0], prefix.keys.shape[1], query.shape[2], query.device
    if mask is None and bounds is None and _is_packed_sequence(positions, rows):
        (bounds, _), _ = prepare_fa_kwargs_from_position_ids(positions)
    if mask is None and owned is None and bounds is None:
        return None
    every = torch.ones(rows, max(length, queries, columns), dtype=torch.bool, device=device)
    owned = every[:, :length] if owned is None else owned.to(device)
    if mask is None and bounds is not None:
        lengths, own = bounds.diff().tolist(), owned[0].nonzero().flatten()
        tokens = torch.arange(queries, device=device)
        keys = [part for piece in (tokens + length).split(lengths) for part in (own, piece)]
        return _Sequences(tokens, lengths), _Sequences(torch.cat(keys), [len(own) + number for number in lengths])
    real = every[:, :columns] if mask is None else mask.bool()
    asking = real[:, -queries:] if causal else every[:, :queries]
    asked = torch.cat([owned, real], 1)
    return _sequences(asking), _sequences(asked)


def _sequences(rows: Tensor) -> _Sequences:
    return _Sequences(rows.flatten().nonzero().flatten(), rows.sum(1).tolist())

"""Prefix attention: the one place where prefix keys and values join a frozen model.

Transformers looks up its attention kernels by name. Under ``softprompts|sdpa`` and ``softprompts|eager`` it finds ours:
each puts the prefix of the calling attention module in front of its keys and values and then runs the kernel of that
name; `softprompts.attention.kernels` has the list of all. The prefix is added at attention time and never enters the KV
cache, so generation, beam search and cache types need no special case, and real tokens keep their positions.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from softprompts.attention.selective import by_scores, selecting
from softprompts.errors import SoftPromptError

KERNELS = ("sdpa", "eager")
# Faster ways to the same numbers, by kind of attention ("plain", "selective"): put here by
# `softprompts.injection.speedups`. Each returns None where it does not apply.
ACCELERATED: dict[str, Callable[..., Tensor | None]] = {}
_SITE = "_softprompt_site"
_MASKS = 64  # more than layers of all kinds make of the masks of a step
_LOWEST = torch.finfo(torch.float32).min  # what hides a column: eager kernels go on in float32, also from float64
# Tensors of an attention call, with more axes than rows and columns, that are right with more keys too.
_WITHOUT_KEYS = ("position_bias", "position_ids", "s_aux", "sinks", "hidden_states", "inputs_embeds", "pixel_values")
Kernel = Callable[..., tuple[Tensor, Tensor | None]]
_EAGER: dict[type[nn.Module], Kernel] = {}
_EAGER_NAME = "eager_attention_forward"


def implementation(kernel: str) -> str:
    """The name under which ``kernel`` with prefixes is registered."""
    return f"softprompts|{kernel}"


def plain_kernel(name: str) -> str:
    """The kernel behind a name that a config may have from an attached model; others as they are."""
    return str(name).removeprefix(implementation(""))


@dataclass
class Prefix:
    """What one attention site adds to its keys and values."""

    keys: Tensor  # (M|1, l, w), or (P, l, w) with ``rows``
    values: Tensor
    mask: Tensor | None  # (M, l) bool, which columns a row owns; None when all rows own all
    selectivity: float | Tensor | None  # alpha of Selective Prefix Tuning, or (M,); NaN: plain attention
    widened: dict[Any, tuple[Any, Any]] = field(default_factory=dict)  # masks of this pass; layers share them
    rows: Tensor | None = None  # (M,), which of P prefixes a row has; None where keys and values are those of the rows
    gates: Tensor | None = None  # (M|1, l), what keys and values are multiplied with; None: 1
    # How many positions before a row's first token the prefix starts, one for all or (M,); 0: it has no positions.
    ahead: int | Tensor = 0
    seen: Any = 0  # columns in the cache of an encoder-decoder's decoder


@dataclass
class Recorder:
    """In place of a prefix: takes down the keys and values that attention sites see, and adds nothing to them.

    Attributes:
        seen: keys and values ``(1, kv_heads, n, head_dim)`` by the index of the site; of a module that attends several
            times (ALBERT has one for all layers) the first time.
    """

    seen: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def of(self, sites: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Keys and values ``(S, n, w)`` of these sites in float32."""
        device = self.seen[sites[0]][0].device
        flat = [[part[0].transpose(0, 1).flatten(1).float().to(device) for part in self.seen[site]] for site in sites]
        keys, values = (torch.stack(parts) for parts in zip(*flat, strict=True))
        return keys, values


PrefixOf = Callable[[int, int], "Prefix | Recorder | None"]


def mark_site(module: nn.Module, prefix_of: PrefixOf, index: int, biased_by: nn.Module | None = None) -> None:
    """Makes an attention module ask ``prefix_of(index, rows)`` for its prefix whenever it attends.

    ``biased_by`` is the module whose ``compute_bias`` gives the bias of relative positions; None where there is none.
    """
    module.__dict__[_SITE] = (prefix_of, index, biased_by)


def site_of(module: nn.Module) -> int:
    """The index that `mark_site` gave a module."""
    return cast(int, module.__dict__[_SITE][1])


def unmark_site(module: nn.Module) -> None:
    """Undoes `mark_site`."""
    module.__dict__.pop(_SITE, None)


def _asked(module: nn.Module, rows: int) -> Prefix | Recorder | None:
    site = module.__dict__.get(_SITE)
    return cast("Prefix | Recorder | None", site[0](site[1], rows)) if site is not None else None


def prefix_at(module: nn.Module, rows: int) -> Prefix | None:
    """What an attention site is going to add for a batch of so many rows; None where that is nothing."""
    asked = _asked(module, rows)
    return None if isinstance(asked, Recorder) else asked


def _kernel(module: nn.Module, name: str) -> Kernel:
    return _eager(type(module)) if name == "eager" else cast("Kernel", ALL_ATTENTION_FUNCTIONS[name])


def _eager(kind: type[nn.Module]) -> Kernel:
    """The eager kernel of a class of attention modules: every modeling file has its own, and some have several."""
    if kind not in _EAGER:
        forwards = [inspect.unwrap(vars(base)["forward"]) for base in kind.__mro__ if "forward" in vars(base)]
        named = [(made, name) for made in forwards for name in made.__code__.co_names if name.endswith(_EAGER_NAME)]
        _EAGER[kind] = (
            named[0][0].__globals__[named[0][1]] if named else vars(sys.modules[kind.__module__])[_EAGER_NAME]
        )
    return _EAGER[kind]


def with_prefix(
    name: str, attend_prefixed: Kernel | None = None, kernel: Callable[[nn.Module, str], Kernel] = _kernel
) -> Kernel:
    """The kernel of that name, with the prefix of the calling module in front of keys and values."""
    prefixed = attend_with if attend_prefixed is None else attend_prefixed

    def attend(module: nn.Module, query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        prefix = _asked(module, query.shape[0])
        if isinstance(prefix, Recorder):
            prefix.seen.setdefault(site_of(module), (args[0], args[1]))
            prefix = None
        if prefix is None:
            return kernel(module, name)(module, query, *args, **kwargs)
        return prefixed(prefix, name, module, query, *args, **kwargs)

    return attend


def attend_with(
    prefix: Prefix,
    name: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attends by the kernel of that name, with a prefix in front of keys and values."""
    require_known(kwargs)
    causal = kwargs.pop("is_causal", None)
    causal = bool(getattr(module, "is_causal", False) if causal is None else causal)
    if attention_mask is None and causal and key.shape[2] > query.shape[2] > 1:
        # First step into a preallocated cache: what lies behind the last query is still empty.
        key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
    bias = kwargs.get("position_bias")
    if bias is not None:
        kwargs["position_bias"] = once(
            prefix, "bias", (bias,), lambda: widened_bias(bias[..., : key.shape[2]], prefix, module)
        )
    mask = once(
        prefix,
        ("mask", query.shape[2], key.shape[2], causal),
        (attention_mask, prefix.mask),
        lambda: widened_mask(attention_mask, prefix, query, key, causal),
    )
    if prefix.selectivity is not None and name == "sdpa":
        return _selective(prefix, query, key, value, mask, **kwargs), None
    # Eager kernels add the mask to scores, and sdpa would make a float mask of mask and bias anew in every layer.
    mask = _combined(prefix, mask, kwargs.pop("position_bias", None) if name == "sdpa" else None, query)
    prefix_key = prefix_heads(prefix, prefix.keys, key)
    if prefix.selectivity is not None:
        heads = prefix_key.repeat_interleave(query.shape[1] // key.shape[1], 1)
        columns, bounds = key.shape[2] + heads.shape[2], (kwargs.get("scaling"), kwargs.get("softcap"))
        mask = selecting(query, heads, prefix.selectivity, mask, columns, *bounds)
    key, value = in_front(prefix, key, value, prefix_key)
    if name == "sdpa" and "plain" in ACCELERATED:
        output = ACCELERATED["plain"](query, key, value, mask, **kwargs)
        if output is not None:
            return output, None
    return _kernel(module, name)(module, query, key, value, mask, is_causal=False, **kwargs)


def require_known(arguments: Mapping[str, Any]) -> None:
    """Refuses arguments of an attention call that may number keys, which a prefix would shift.

    Raises:
        SoftPromptError: there is one.
    """
    for name, value in arguments.items():
        if isinstance(value, Tensor) and value.ndim > 2 and name not in _WITHOUT_KEYS:
            raise SoftPromptError(f"its attention is told '{name}' and would not see a prefix; input prompts work")
    if arguments.get("cache") is not None:
        raise SoftPromptError("continuous batching pages keys, where a prefix has no place: use generate")


def once(prefix: Prefix, what: Any, source: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """Layers receive the same mask object: widen it once per pass (``source`` is kept so that its ids stay its own)."""
    if torch.compiler.is_compiling():  # where an id would be a constant, and every batch be compiled anew
        return make()
    name = (what, *map(id, source))
    if len(prefix.widened) > _MASKS:  # of earlier steps of a generation
        prefix.widened.clear()
    if name not in prefix.widened:
        prefix.widened[name] = (source, make())
    return prefix.widened[name][1]


def prefix_heads(prefix: Prefix, part: Tensor, like: Tensor) -> Tensor:
    """Keys or values of a prefix as ``(M|1, kv_heads, l, head_dim)``, with heads, type and device of ``like``.

    What is copied for the rows is copied here, for one site at a time, and not kept for the backward pass.
    """
    part = part.to(device=like.device, dtype=like.dtype)
    rows = None if prefix.rows is None else prefix.rows.to(like.device)
    if prefix.gates is not None:
        gates = prefix.gates.to(device=like.device, dtype=like.dtype)
        gate = gated if torch.compiler.is_compiling() else ACCELERATED.get("gated", gated)
        part = cast(Tensor, gate(part, rows, gates))
    elif rows is not None:
        part = part.index_select(0, rows)
    heads: Tensor = part.unflatten(-1, (like.shape[1], like.shape[3])).transpose(1, 2)
    return heads


def in_front(prefix: Prefix, key: Tensor, value: Tensor, prefix_key: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Keys and values ``(M, kv_heads, l + k, head_dim)`` with those of the prefix in front."""
    prefix_key = prefix_heads(prefix, prefix.keys, key) if prefix_key is None else prefix_key
    pairs = ((prefix_key, key), (prefix_heads(prefix, prefix.values, value), value))
    made = [torch.cat([ours.expand(own.shape[0], -1, -1, -1), own], dim=2) for ours, own in pairs]
    return made[0], made[1]


def gated(part: Tensor, rows: Tensor | None, gates: Tensor) -> Tensor:
    """``(M|1, l, w)``: keys or values ``(P, l, w)`` of each row, times its gates ``(M|1, l)``."""
    return (part if rows is None else part.index_select(0, rows)) * gates.unsqueeze(-1)


def widened_mask(mask: Tensor | None, prefix: Prefix, query: Tensor, key: Tensor, causal: bool) -> Tensor | None:
    """The attention mask with columns for the prefix on its left; real tokens see the same real tokens as before."""
    length, queries, device = prefix.keys.shape[1], query.shape[2], query.device
    if mask is None:
        if causal and queries > 1:
            real = torch.ones(queries, key.shape[2], dtype=torch.bool, device=device).tril()[None, None]
        elif prefix.mask is not None:
            real = torch.ones(1, 1, 1, key.shape[2], dtype=torch.bool, device=device)
        else:
            return None
    else:
        real = mask[..., : key.shape[2]]
    visible = torch.ones(1, length, dtype=torch.bool, device=device) if prefix.mask is None else prefix.mask
    rows = max(real.shape[0], visible.shape[0])
    visible = visible[:, None, None, :].expand(rows, real.shape[1], real.shape[2], length)
    if real.dtype != torch.bool:
        hidden = torch.finfo(real.dtype).min
        visible = torch.zeros(visible.shape, dtype=real.dtype, device=device).masked_fill(~visible, hidden)
    return torch.cat([visible, real.expand(rows, -1, -1, -1)], dim=-1)


def widened_bias(bias: Tensor, prefix: Prefix, module: nn.Module) -> Tensor:
    """A bias of relative positions ``(1, heads, q, k)`` with columns for the prefix on its left.

    They are zero where the prefix has no positions, or those of tokens ahead of the first.
    """
    length, own = prefix.keys.shape[1], module.__dict__[_SITE][2]
    if own is None or (isinstance(prefix.ahead, int) and not prefix.ahead):
        return F.pad(bias, (length, 0))

    def columns(ahead: int) -> Tensor:
        if not ahead:
            return bias.new_zeros(1, bias.shape[1], bias.shape[2], length)
        made = own.compute_bias(bias.shape[2], ahead, device=bias.device, past_seen_tokens=prefix.seen + ahead)
        return F.pad(made.to(bias), (0, length - ahead))

    if isinstance(prefix.ahead, int):
        return torch.cat([columns(prefix.ahead), bias], -1)
    kinds, rows = prefix.ahead.unique(return_inverse=True)
    widened = torch.cat([columns(int(ahead)) for ahead in kinds.tolist()])[rows.to(bias.device)]
    return torch.cat([widened, bias.expand(len(rows), -1, -1, -1)], -1)


def _selective(
    prefix: Prefix,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,
    **others: Any,
) -> Tensor:
    """Selective attention without weights; ``mask`` and ``position_bias`` already have columns for the prefix."""
    assert prefix.selectivity is not None
    for name in ("softcap", "s_aux"):
        if others.get(name) is not None:
            raise SoftPromptError(f"sdpa leaves out '{name}': load the model with attn_implementation='eager'")
    groups = query.shape[1] // key.shape[1]
    heads = [key, value, prefix_heads(prefix, prefix.keys, key), prefix_heads(prefix, prefix.values, value)]
    if groups > 1:
        heads = [head.repeat_interleave(groups, 1) for head in heads]
    key, value, prefix_key, prefix_value = heads
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    bias = _combined(prefix, mask, position_bias, query)
    output = None
    if "selective" in ACCELERATED:
        placed = position_bias is not None and (isinstance(prefix.ahead, Tensor) or prefix.ahead > 0)
        given = (prefix, query, key, value, prefix_key, prefix_value, bias, scale)
        output = ACCELERATED["selective"](*given, placed=placed, dropout=dropout)
    if output is None:
        output, _ = by_scores(query, key, value, prefix_key, prefix_value, prefix.selectivity, bias, scale, dropout)
    return output.transpose(1, 2).contiguous()


def _combined(prefix: Prefix, mask: Tensor | None, bias: Tensor | None, query: Tensor) -> Tensor | None:
    """Mask and position bias as one tensor to add to scores, made once per pass."""
    made: Tensor | None = once(prefix, "additive", (mask, bias), lambda: _additive(mask, bias, query))
    return made


def _additive(mask: Tensor | None, position_bias: Tensor | None, query: Tensor) -> Tensor | None:
    if mask is None:
        return position_bias
    lowest = max(torch.finfo(query.dtype).min, _LOWEST)
    if mask.dtype == torch.bool:
        zeros = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device)
        mask = zeros.masked_fill(~mask, lowest)
    elif mask.dtype == torch.float64:
        mask = mask.clamp(min=lowest)
    return mask if position_bias is None else mask + position_bias

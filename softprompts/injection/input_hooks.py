"""TODO."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from softprompts.injection.batch_pass import View
from softprompts.injection.layout import Layout, positions_of
from softprompts.injection.rows import repeat_rows


def _view(visible: Tensor | None, layout: Layout, rows: int, columns: int, seen: int) -> View:
    """Where in a pass, prompt tokens included, the input is that prompts may depend on."""
    if visible is None:
        return View(later=seen > 0)
    visible = repeat_rows(visible, rows)
    if seen:
        return View(visible[:, -columns:], later=True)
    # Without a cache every step of a generation runs all columns; those behind the first step's are not looked at.
    return View(layout.ids(F.pad(visible, (0, layout.columns - visible.shape[1])).long()).bool())


def _decoder_view(inputs: dict[str, Any]) -> View:
    """The first token of each row of an encoder-decoder's decoder: all others are, or once were, predicted."""
    source = inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"]
    rows, columns = source.shape[:2]
    cache, mask = inputs.get("past_key_values"), inputs.get("attention_mask")
    first = torch.zeros(rows, 1, dtype=torch.long, device=source.device)
    if isinstance(mask, Tensor) and mask.shape == (rows, columns):
        first = mask.long().argmax(1, keepdim=True)
    later = cache is not None and int(cache.get_seq_length()) > 0
    return View(torch.arange(columns, device=source.device) == first, later)


def _widen_others(inputs: dict[str, Any], layout: Layout) -> None:
    """Puts zeros for the prompt into everything else with a number per token: token types, global attention."""
    for name, value in inputs.items():
        if name in ("input_ids", "attention_mask", "position_ids", "head_mask") or name.startswith("encoder_"):
            continue
        if isinstance(value, Tensor) and value.ndim == 2 and value.shape[1] == layout.columns:
            inputs[name] = layout.ids(value)


def _aligned_update(update: Tensor, real: Tensor | None, rows: int, columns: int, seen: int, layout: Layout) -> Tensor:
    """The embedding update ``(R|1, m, d)`` for the given columns: entry ``i`` at a row's ``i``-th real token."""
    length = update.shape[1]
    if real is None or (layout.simple and not seen and not layout.causal):
        start = seen - layout.length if seen else 0
        part = update[:, start : start + columns]
        return F.pad(part, (0, 0, 0, columns - part.shape[1]))
    position = positions_of(real)[:, -columns:]
    update = repeat_rows(update, rows).expand(rows, -1, -1)
    inside = (position < length) & real[:, -columns:]
    index = position.clamp(max=length - 1)[..., None].expand(-1, -1, update.shape[2])
    return update.gather(1, index) * inside[..., None]


def restored(output: Any, layout: Layout | None) -> Any:
    """A model output with prompt columns cut from all hidden states."""
    if layout is None or (layout.simple and not layout.length):
        return output
    width = layout.length + layout.columns

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim == 3 and value.shape[1] == width:
            return layout.restore(value)
        if isinstance(value, tuple) and value and all(isinstance(v, Tensor) and v.ndim == 3 for v in value):
            return tuple(cut(v) for v in value)
        return value

    if isinstance(output, tuple):
        return tuple(cut(value) for value in output)
    for name in ("last_hidden_state", "hidden_states"):
        if output.get(name) is not None:
            output[name] = cut(output[name])
    return output

"""What a model gives out, without the columns of prompt tokens and in the order of the input.

It is found by its shape, wherever it stands in an output: hidden states ``(M, l + n, d)``, attention maps
``(M, heads, l + n, k)``, and tables with the tokens of all rows one below the other ``(M * (l + n), e)``, such as the
logits of routers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

from softprompts.injection.layout import Layout

_OTHERS = ("image_", "video_", "audio_", "vision_")  # outputs that have no rows of tokens, whatever their shape


def restored(output: Any, layout: Layout | None, tables: bool = True, states: bool = True) -> Any:
    """An output, or a part of one, without prompt columns.

    An attention map keeps the weights of the prompt: a row per input token, and in front of the input's columns those
    of a prefix and of prompt tokens.

    Args:
        output: a tensor, or tensors in tuples, lists and `ModelOutput`, which change in place.
        layout: where the columns are; None: as in the input.
        tables: whether tables of all tokens are cut.
        states: whether everything else is.
    """
    if layout is None or (layout.simple and not layout.length):
        return output
    if isinstance(output, ModelOutput):
        for name, value in list(output.items()):
            if not name.startswith(_OTHERS):
                output[name] = restored(value, layout, tables, states)
    elif type(output) in (tuple, list):
        return type(output)(restored(value, layout, tables, states) for value in output)
    elif isinstance(output, Tensor) and tables and is_table(output, layout):
        return layout.restore(output.unflatten(0, (layout.rows, -1))).flatten(0, 1)
    elif isinstance(output, Tensor) and states:
        width = layout.length + layout.columns
        if output.ndim == 3 and output.shape[1] == width:
            return layout.restore(output)
        if output.ndim == 4 and output.shape[2] == width <= output.shape[3]:
            queries = layout.unmerged(output.transpose(1, 2).flatten(2))[:, layout.length :]
            return columns_restored(queries.unflatten(2, (output.shape[1], -1)).transpose(1, 2), layout)
    return output


def columns_restored(weights: Tensor, layout: Layout) -> Tensor:
    """Attention maps ``(M, heads, q, k)`` with the columns of a prefix first, then prompt tokens, then the input."""
    width = layout.length + layout.columns
    own = weights[..., weights.shape[3] - width :].permute(0, 3, 1, 2)
    own = layout.unmerged(own.flatten(2)).unflatten(2, weights.shape[1:3]).permute(0, 2, 3, 1)
    return torch.cat([weights[..., : weights.shape[3] - width], own], -1)


def is_table(value: Any, layout: Layout) -> bool:
    """Whether a tensor has a line for each token of all rows."""
    width = layout.length + layout.columns
    return isinstance(value, Tensor) and value.ndim == 2 and width > 1 and value.shape[0] == layout.rows * width


def tensors(output: Any) -> Iterator[Tensor]:
    """All tensors in tuples, lists and `ModelOutput`."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, ModelOutput | tuple | list):
        for value in output.values() if isinstance(output, ModelOutput) else output:
            yield from tensors(value)


def restore_encoders(output: Any, layout: Layout | None) -> None:
    """Restores, in place, what an encoder-decoder gives out of its encoder, whose columns are those of its prompts."""

    def columns(value: Any) -> Any:
        if isinstance(value, tuple):  # by layer, and by step before that in what `generate` gives out
            return tuple(map(columns, value))
        return columns_restored(value, layout) if isinstance(value, Tensor) and layout is not None else value

    for name, value in list(output.items()) if isinstance(output, ModelOutput) else []:
        if name.startswith("encoder_"):
            output[name] = restored(value, layout)
        elif name == "cross_attentions":
            output[name] = columns(value)


def own_mask(inputs: dict[str, Any], tables: bool) -> Tensor | None:
    """Puts a copy of the attention mask into a model's inputs; None without one.

    Where ``tables`` are asked for, ones stand for a missing mask, as prompts of different lengths bring padding.
    """
    mask, ids = inputs.get("attention_mask"), inputs.get("input_ids")
    source = inputs.get("inputs_embeds") if ids is None else ids
    if mask is None and tables and source is not None and inputs.get("past_key_values") is None:
        mask = torch.ones(source.shape[:2], dtype=torch.long, device=source.device)
    if not isinstance(mask, Tensor):
        return None
    inputs["attention_mask"] = mask = mask.clone()
    return mask

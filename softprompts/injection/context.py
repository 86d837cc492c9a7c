"""What prompts may see of the input, and where it lies in a step, prompt tokens included."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from softprompts.backbones.backbone import Backbone
from softprompts.injection.layout import Layout


def without_padding(source: Tensor, backbone: Backbone, model_class: type) -> Tensor:
    """What prompts see ``(R, n)`` of rows without a mask: without the padding at their ends, if they are causal.

    So that scores do not depend on how long the other rows of a batch are, as the frozen model's do not. A longest
    row has no padding: what all rows end with are tokens. What else may be one is told in a warning.
    """
    visible = torch.ones(source.shape[:2], dtype=torch.bool, device=source.device)
    if backbone.kind != "decoder" or source.ndim > 2 or len(source) == 1:
        return visible
    padding = source == 0
    pad_id = getattr(backbone.model.config.get_text_config(), "pad_token_id", None)
    if pad_id is not None:
        padding |= source == pad_id
    at_end = padding.flip(1).long().cumprod(1).flip(1).bool()
    length = source.shape[1] - int(at_end.sum(1).min())
    at_end[:, length:] = False
    at_end[:, 0] = False
    if bool(at_end.any()):
        warnings.warn(
            f"{model_class.__name__} got rows that end with padding or a token 0, and no attention_mask; "
            "prompts that look at the input take these for padding: pass attention_mask",
            stacklevel=2,
        )
    return ~at_end


def view_of_input(visible: Tensor, layout: Layout, columns: int, seen: int) -> Tensor:
    """Where in a pass, prompt tokens included, the input is that prompts may depend on."""
    if seen:
        return visible[:, -columns:]
    # Without a cache every step of a generation runs all columns; those behind the first step's are not looked at.
    return layout.ids(F.pad(visible, (0, layout.columns - visible.shape[1])))


def view_of_decoder(inputs: dict[str, Any]) -> Tensor:
    """The first token of each row of an encoder-decoder's decoder: all others are, or once were, predicted."""
    source = inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"]
    rows, columns = source.shape[:2]
    mask = inputs.get("attention_mask")
    first = torch.zeros(rows, 1, dtype=torch.long, device=source.device)
    if isinstance(mask, Tensor) and mask.shape == (rows, columns):
        first = mask.long().argmax(1, keepdim=True)
    return torch.arange(columns, device=source.device) == first

"""Rows with an image, for models that put features of images in place of tokens.

What a model wants to be given is found by trying: the forms that its `get_image_features` may take, and as many image
tokens as features come out. An image that changes no logits was not seen, and the next form is tried.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tests.models.factory import first_line
from tests.models.rows import Row

_TOKENS = ("image_token_id", "image_token_index", "image_patch_id")


def with_image(subject: Any) -> Row:
    """The first row of a subject with an image in it.

    Raises:
        LookupError: no form of an image fits the model.
    """
    model, config = subject.plain, subject.plain.config
    token = next((getattr(config, name) for name in _TOKENS if isinstance(getattr(config, name, None), int)), None)
    if token is None or not hasattr(model, "get_image_features"):
        raise LookupError("takes no image in place of tokens")
    why = "no form of an image fits"
    known, called = (inspect.signature(call).parameters for call in (model.get_image_features, model.forward))
    needed = {
        key
        for key, value in known.items()
        if value.default is value.empty and value.kind == value.POSITIONAL_OR_KEYWORD
    }
    for inputs in _forms(model):
        if not needed <= set(inputs) or not set(inputs) <= set(called):
            continue
        try:
            with torch.no_grad():
                count = _features(model, inputs)
            row = _row(subject, inputs, token, count)
            seen = subject.call(subject.plain, [row])[0]
            other = dict(inputs, pixel_values=inputs["pixel_values"] + 1)
            if not torch.equal(seen, subject.call(subject.plain, [_row(subject, other, token, count)])[0]):
                return row
        except Exception as error:
            why = f"no form of an image fits ({type(error).__name__}: {first_line(error)})"
    raise LookupError(why)


def _forms(model: Any) -> Iterator[dict[str, Tensor]]:
    config = model.config
    vision = getattr(config, "vision_config", None) or config
    size = getattr(vision, "image_size", None) or 16
    size = size[0] if isinstance(size, list | tuple) else size
    patch = getattr(vision, "patch_size", 4)
    patch = patch[0] if isinstance(patch, list | tuple) else patch
    channels = getattr(vision, "num_channels", None) or getattr(vision, "in_channels", None) or 3
    torch.manual_seed(5)
    dtype = model.dtype
    for side in (size, 4 * patch):
        yield {"pixel_values": torch.randn(1, channels, side, side, dtype=dtype)}
        yield {
            "pixel_values": torch.randn(1, 3, channels, side, side, dtype=dtype),
            "image_sizes": torch.tensor([[side, side]]),
        }
        yield {
            "pixel_values": torch.randn(1, 2, channels, side, side, dtype=dtype),
            "image_sizes": torch.tensor([[side, side]]),
        }
        yield {"pixel_values": torch.randn(1, 1, channels, side, side, dtype=dtype)}
        yield {
            "pixel_values": torch.randn(1, channels, side, side, dtype=dtype),
            "image_sizes": torch.tensor([[side, side]]),
        }
    width = channels * patch * patch
    for depth in (getattr(vision, "temporal_patch_size", 1) or 1, 1):
        yield {
            "pixel_values": torch.randn(16, width * depth, dtype=dtype),
            "image_grid_thw": torch.tensor([[1, 4, 4]]),
        }
    yield {
        "pixel_values": torch.randn(1, 16, width, dtype=dtype),
        "pixel_attention_mask": torch.ones(1, 16, dtype=torch.long),
        "spatial_shapes": torch.tensor([[4, 4]]),
    }
    position = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="xy"), -1).reshape(1, 16, 2)
    yield {"pixel_values": torch.randn(1, 16, width, dtype=dtype), "image_position_ids": position}


def _features(model: Any, inputs: dict[str, Tensor]) -> int:
    """How many features, each in place of a token, an image becomes."""
    known = inspect.signature(model.get_image_features).parameters
    found = model.get_image_features(**{key: value for key, value in inputs.items() if key in known})
    found = getattr(found, "pooler_output", found)
    parts = found if isinstance(found, list | tuple) else [found]
    return sum(part.numel() // part.shape[-1] for part in parts)


def _row(subject: Any, inputs: dict[str, Tensor], token: int, count: int) -> Row:
    config, row = subject.plain.config, subject.rows[0]
    around = [getattr(config, f"vision_{name}_token_id", None) for name in ("start", "end")]
    start, end = ([value] if isinstance(value, int) else [] for value in around)
    ids = [*row.ids[0][:2], *start, *[token] * count, *end, *row.ids[0][2:]]
    marks = {}
    known = inspect.signature(subject.plain.forward).parameters
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in known:
            marks[name] = [int(value == token) for value in ids]
    return Row([ids], row.target, row.label, dict(inputs), marks)

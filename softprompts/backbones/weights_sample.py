"""A few numbers of a model's weights, which tell it from others of the same shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

_PLACES = 8
_TOLERANCE = 0.02  # of the largest number: weights may be read in another precision, and be trained on a little


def sample_of(model: Any) -> list[float] | None:
    """Numbers of the input embeddings at places that their shape alone decides; None where they cannot be read.

    They are those of sharded, packed and empty tensors.
    """
    table = model.get_input_embeddings().weight
    if type(table.data) is not torch.Tensor or table.is_meta or not table.is_floating_point() or table.ndim != 2:
        return None
    with table.device:
        rows, columns = (torch.linspace(0, size - 1, 2 * _PLACES).long()[1::2] for size in table.shape)
    return [float(f"{value:.4g}") for value in table.data[rows, columns].tolist()]


def alike(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two samples are of the same weights, but for their precision."""
    largest = max(map(abs, one), default=0.0)
    return len(one) == len(other) and all(abs(a - b) <= _TOLERANCE * largest for a, b in zip(one, other, strict=True))

"""Draws tokens, each row by its own random numbers, so that an answer does not depend on the rest of the batch."""

from __future__ import annotations

import torch
from torch import Tensor


class Sampler:
    """Draws the tokens of a row, at a temperature above 0, from the likeliest tokens that together reach ``top_p``."""

    def __init__(self, temperature: float, top_p: float, seed: int | None):
        self.temperature, self.top_p = temperature, top_p
        self.generator = torch.Generator()
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)

    def draw(self, logits: Tensor) -> int:
        """Draws a token from logits ``(V,)``."""
        logits = logits.to("cpu", torch.float64)
        chances, order = ((logits - logits.max()) / self.temperature).softmax(-1).sort(descending=True)
        before = chances.cumsum(-1) - chances
        chances = chances.masked_fill(before >= self.top_p, 0.0)
        chances[0] = chances[0].clamp(min=torch.finfo(torch.float64).tiny)
        return int(order[torch.multinomial(chances, 1, generator=self.generator)])

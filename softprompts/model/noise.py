"""NEFTune's noise on the embeddings of a frozen model, as transformers' Trainer asks for it."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn


def follow_noise(model: Any, table: nn.Module, mode: bool) -> None:
    """Lets a table of embeddings that Trainer put noise on make it while a model trains, although it is frozen."""
    if not hasattr(table, "neftune_noise_alpha"):
        return
    table.train(mode)
    others = [module for module in model.modules() if module is not table and isinstance(module, nn.Embedding)]
    past = any(module.weight is table.weight for module in others)
    if mode and past and not all(prompt.config.uses_tokens for prompt in model.prompts.values()):
        warnings.warn(
            "neftune_noise_alpha has no effect on prompts without tokens in the input here: "
            f"{type(model).__name__} looks tokens up in a copy of the table that the noise is on",
            stacklevel=3,
        )

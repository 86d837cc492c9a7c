"""Penalties of prompts and the losses that they join, or are left out of."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from softprompts.errors import SoftPromptError
from softprompts.injection.batch_pass import Pass
from softprompts.injection.state import state_of

_STATES = ("logits", "last_hidden_state", "pooler_output")


def labels_share(model: Any, labels: Tensor | None, num_items: Any) -> Any:
    """The share of these labels among the ``num_items`` of a step, whose parts Trainer adds up; 1 without a count."""
    if labels is None or num_items is None:
        return 1.0
    backbone = state_of(model).backbone
    shifted = backbone.kind == "decoder" and not backbone.heads and labels.ndim == 2
    return ((labels[:, 1:] if shifted else labels) != -100).sum() / num_items


def has_loss(output: Any) -> bool:
    """Whether a model's output has a loss, which comes first in a tuple."""
    if isinstance(output, tuple):
        return bool(output) and isinstance(output[0], Tensor) and output[0].ndim == 0
    return output.get("loss") is not None


def watch_penalties(model: nn.Module, pass_: Pass, output: Any) -> None:
    """Lets training by a loss that leaves penalties out end with a sentence, once gradients reach the output."""
    values = output if isinstance(output, tuple) else [output.get(name) for name in _STATES]
    value = next((value for value in values if isinstance(value, Tensor) and value.requires_grad), None)
    if value is None or not model.training:
        return

    def check(gradient: Tensor) -> None:
        if not pass_.penalties_taken:
            raise SoftPromptError(
                f"prompt '{next(iter(pass_.penalties))}' has a penalty, and this loss leaves it out: pass labels to "
                "the model, add sum(model.penalties.values()) to the loss, or train by "
                "softprompts.trainers.PromptTraining"
            )

    value.register_hook(check)

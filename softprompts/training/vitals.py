"""Vitals: numbers that say whether the parts of a prompt act, measured at evaluations.

Of every prompt:

    moved.COMPONENT     distance of its parameters from their start, relative to the start's norm (the distance itself
                        where they started at zero)
    gradient.COMPONENT  norm of its gradient in the last step, before clipping
    penalty             norm of the gradient of `SoftPrompt.penalty`, relative to that of the whole loss at the
                        parameters that the penalty depends on, in the last step
    tokens.norm         mean norm of prompt tokens, relative to that of the input's embeddings
    tokens.spread       norm of what rows have each for itself, relative to the norm of all: 0 where all have the same
    update.norm         mean norm of what is added to embeddings, relative to theirs, over as many as the texts have
    gates.mean          mean of `SoftPrompt.gates`
    gates.spread        their standard deviation over rows, mean over sites and tokens

Those of methods (`Method.vitals`) come first, and methods say which number is too small for a part that acts. Nothing
here draws at random or changes a number of the training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from softprompts.backbones.task_head import wide
from softprompts.errors import SoftPromptError
from softprompts.injection.state import state_of
from softprompts.methods.contract import Component, Method, Rows
from softprompts.soft_prompt import SoftPrompt
from softprompts.tasks.batches import collate
from softprompts.training.losses import model_inputs
from softprompts.training.prediction import Feature, evaluating

if TYPE_CHECKING:
    from softprompts.injection.prompt import Prompt

ROWS = 32  # that prompts are looked at with


@dataclass(frozen=True)
class Vitals:
    """The vitals of a prompt.

    Attributes:
        numbers: by their names; None where one is not finite.
        idle: a sentence for each part that does not act.
    """

    numbers: dict[str, float | None] = field(default_factory=dict)
    idle: list[str] = field(default_factory=list)

    def line(self) -> dict[str, Any]:
        """What they add to a line of metrics.jsonl."""
        return {"vitals": self.numbers, **({"idle": self.idle} if self.idle else {})}


def rows_to_look_at(model: Any, features: Sequence[Feature], pad_id: int, padding_side: str = "right") -> Rows:
    """At most `ROWS` of these rows, evenly spaced, as methods get them."""
    some = features[:: math.ceil(len(features) / ROWS)]
    batch = collate(some, pad_id, padding_side)
    inputs, embeddings = model_inputs(model, batch), state_of(model).backbone.embeddings
    mask = inputs["attention_mask"].bool()
    context: Tensor = inputs.get("context_mask", mask)
    with torch.no_grad():
        return Rows(embeddings(inputs["input_ids"]), mask & context)


def gradient_vitals(components: Mapping[str, Component], method: Method, rows: Rows) -> dict[str, Tensor]:
    """The vitals of the gradients that are in place; each a scalar."""
    norms = {}
    for name, component in components.items():
        gradients = [p.grad for p in component.parameters if p.grad is not None]
        if gradients:
            norms[f"gradient.{name}"] = torch.nn.utils.get_total_norm(gradients)
    with evaluating(method), torch.enable_grad():
        penalty = method(rows if method.per_row else None).penalty
        if penalty is None or not penalty.requires_grad:
            return norms
        trained = [p for each in components.values() for p in each.parameters if p.grad is not None]
        parts = torch.autograd.grad(penalty, trained, allow_unused=True)
    pairs = [(part, p.grad) for part, p in zip(parts, trained, strict=True) if part is not None and p.grad is not None]
    own, whole = (torch.nn.utils.get_total_norm(list(gradients)) for gradients in zip(*pairs, strict=True))
    return {**norms, "penalty": own / whole}


def vitals_of(
    prompt: Prompt,
    rows: Rows,
    start: Mapping[str, Tensor] | None = None,
    gradients: Mapping[str, float] | None = None,
) -> Vitals:
    """The vitals of a prompt as it is.

    Args:
        prompt: the prompt.
        rows: some rows of its task.
        start: the state that it started from; None where that is not known.
        gradients: what `gradient_vitals` found in the last step.

    Raises:
        SoftPromptError: a method's vital is not a single number.
    """
    method = prompt.method
    with evaluating(method), torch.autocast(rows.embeddings.device.type, enabled=False):
        declared = method.vitals(rows)
        found: dict[str, Any] = {vital.name: vital.value for vital in declared if vital.value is not None}
        for name, value in found.items():
            if isinstance(value, Tensor) and value.numel() != 1:
                raise SoftPromptError(
                    f"{method.config.method}: the vital '{name}' is of shape {tuple(value.shape)}: give one number"
                )
        found |= _of_tensors(method(rows if method.per_row else None), rows)
        found |= {} if start is None else _distances(prompt, start)
    numbers = {name: _finite(float(value)) for name, value in {**found, **(gradients or {})}.items()}
    idle = []
    for vital in declared:
        number = numbers.get(vital.name)
        if vital.least is not None and number is not None and number < vital.least:
            idle.append(vital.idle or f"{vital.name} is {number:.3g}, less than {vital.least:.3g}")
    return Vitals(numbers, idle)


def _of_tensors(prompt: SoftPrompt, rows: Rows) -> dict[str, Tensor]:
    """The vitals of what a method hands over."""
    found: dict[str, Tensor] = {}
    embedding = wide(rows.embeddings).norm(dim=-1)[rows.mask].mean()
    if prompt.tokens is not None and prompt.tokens.numel():
        tokens = wide(prompt.tokens)
        found["tokens.norm"] = tokens.norm(dim=-1).mean() / embedding
        if len(tokens) > 1:
            found["tokens.spread"] = (tokens - tokens.mean(0)).norm() / tokens.norm()
    if prompt.update is not None:
        longest = int(rows.mask.sum(1).max())
        found["update.norm"] = wide(prompt.update[:, :longest]).norm(dim=-1).mean() / embedding
    if prompt.gates is not None:
        gates = wide(prompt.gates)
        found["gates.mean"] = gates.mean()
        if gates.shape[1] > 1:
            found["gates.spread"] = gates.std(1, correction=0).mean()
    return found


def _distances(prompt: Prompt, start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """How far each component is from its start."""
    names = {id(parameter): name for name, parameter in prompt.named_parameters()}
    found = {}
    for component, each in prompt.components().items():
        if each.parameters:
            pairs = [(p.detach(), start[names[id(p)]].to(p.device)) for p in each.parameters]
            distance = torch.stack([(now - before).norm() for now, before in pairs]).norm()
            norm = torch.stack([before.norm() for _, before in pairs]).norm()
            found[f"moved.{component}"] = distance / torch.where(norm > 0, norm, torch.ones_like(norm))
    return found


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None

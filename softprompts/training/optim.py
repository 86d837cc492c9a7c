"""Optimizers with one parameter group per component of a method, and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from softprompts.errors import SoftPromptError, nearest
from softprompts.methods.contract import Component
from softprompts.training.config import TrainConfig

HEAD = "head"

_FAR = 100  # times the usual rate: more is far too much; a hundredth of a hundredth of it hardly trains


def learning_rates(components: Mapping[str, Component], config: TrainConfig) -> dict[str, float]:
    """The learning rate of each component; they come in the method's order, its main one first and a head last.

    A head alone is the main component.

    Raises:
        SoftPromptError: ``config`` has a rate of a component, or of a head, that is not there.
    """
    for name in config.learning_rates:
        if name not in components:
            raise SoftPromptError(
                f"learning_rates: this prompt has no component '{name}' (it has {', '.join(components)}); "
                f"{nearest(name, components)}"
            )
    head = config.head_learning_rate
    if HEAD not in components and isinstance(head, float):
        raise SoftPromptError("head_learning_rate: this prompt has no task head; leave it out")
    main = next(iter(components), HEAD)
    default = components[main].learning_rate if components else 0.0
    # A method's components are tuned against each other, so a new main rate moves them together. A default of zero
    # has no ratio to keep: the main component then takes the rate and the others stay where they are.
    scale = config.learning_rate / default if config.learning_rate is not None and default else 1.0
    rates = {name: each.learning_rate * scale for name, each in components.items()}
    if config.learning_rate is not None and components:
        rates[main] = config.learning_rate
    rates |= config.learning_rates
    if head is not None and HEAD in components and HEAD not in config.learning_rates:
        rates[HEAD] = rates[main] if head == "main" else head
    return {name: rate * config.learning_rate_factor for name, rate in rates.items()}


def rate_doubts(rates: Mapping[str, float], usual: Mapping[str, float]) -> list[str]:
    """Sentences on learning rates that are far from the usual ones of their components; empty for none."""
    far = [
        f"{name}={rate:g} (usual: {usual[name]:g})"
        for name, rate in rates.items()
        if usual[name] and not usual[name] / _FAR**2 <= rate <= usual[name] * _FAR
    ]
    return [f"learning rates far from the usual: {', '.join(far)}"] if far else []


def build_optimizer(components: Mapping[str, Component], config: TrainConfig) -> Optimizer:
    """An optimizer with one group per component.

    A group's ``name`` is the component's, its ``peak_lr`` the rate that the schedule scales.

    Raises:
        SoftPromptError: there is nothing to train, or a learning rate names an unknown component.
    """
    rates = learning_rates(components, config)
    groups: list[dict[str, Any]] = []
    for name, component in components.items():
        if component.parameters:
            more = {"peak_lr": rates[name], "weight_decay": component.decay(config.weight_decay), "name": name}
            groups.append({"params": component.parameters, "lr": rates[name], **more})
    if not groups:
        raise SoftPromptError("this prompt has no parameters to train")
    if config.optimizer == "adamw":
        # One kernel for all of a group: prompts are small, and calls are what costs.
        devices = {parameter.device.type for group in groups for parameter in group["params"]}
        return torch.optim.AdamW(groups, fused=devices <= {"cpu", "cuda"})
    # Not torch's Adafactor: it always scales a step by the parameter's own size, which prompts are trained without.
    from transformers.optimization import Adafactor

    fixed = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
    return Adafactor(groups, **fixed)  # type: ignore[no-untyped-call]


def schedule_factor(step: int, total_steps: int, warmup: int, kind: str) -> float:
    """The factor of the learning rates in step ``step`` (from 0).

    The warm-up ends with the full rate in step ``warmup - 1``; a linear schedule, or one by half a cosine, falls from
    there to zero in step ``total_steps``, which is never taken, so that no step is wasted at rate zero.
    """
    if step < warmup:
        return (step + 1) / warmup
    if kind == "constant":
        return 1.0
    left = max(0.0, (total_steps - step) / max(1, total_steps - warmup))
    return left if kind == "linear" else (1 - math.cos(math.pi * left)) / 2


def set_learning_rates(optimizer: Optimizer, config: TrainConfig, step: int, total_steps: int) -> None:
    """Sets the rates for step ``step``. They depend on nothing else, so a resumed run needs no scheduler state."""
    factor = schedule_factor(step, total_steps, config.warmup(total_steps), config.schedule)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor

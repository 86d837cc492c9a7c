"""Optimizers with one parameter group per component of a method, and learning-rate schedules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from softprompts.errors import SoftPromptError, nearest
from softprompts.methods.contract import Component
from softprompts.training.config import TrainConfig

HEAD = "head"


def learning_rates(components: Mapping[str, Component], config: TrainConfig) -> dict[str, float]:
    """The learning rate of each component; they come in the method's order, its main one first.

    Raises:
        SoftPromptError: ``config.learning_rates`` names a component that is not there.
    """
    for name in config.learning_rates:
        if name not in components:
            raise SoftPromptError(
                f"learning_rates: this prompt has no component '{name}' (it has {', '.join(components)}); "
                f"{nearest(name, components)}"
            )
    main = next((name for name in components if name != HEAD), None)
    default = 0.0 if main is None else components[main].learning_rate
    # A method's components are tuned against each other, so a new main rate moves them together. A default of zero
    # has no ratio to keep: the main component then takes the rate and the others stay where they are.
    scale = config.learning_rate / default if config.learning_rate is not None and default else 1.0
    rates = {name: each.learning_rate * (1.0 if name == HEAD else scale) for name, each in components.items()}
    if config.learning_rate is not None and main is not None:
        rates[main] = config.learning_rate
    return rates | dict(config.learning_rates)


def build_optimizer(components: Mapping[str, Component], config: TrainConfig) -> Optimizer:
    """An optimizer with one group per component.

    A group's ``name`` is the component's, its ``peak_lr`` the rate that the schedule scales.

    Raises:
        SoftPromptError: there is nothing to train, or a learning rate names an unknown component.
    """
    rates = learning_rates(components, config)
    groups: list[dict[str, Any]] = []
    for name, component in components.items():
        decay = component.weight_decay if config.weight_decay is None else config.weight_decay
        if component.parameters:
            rate = {"lr": rates[name], "peak_lr": rates[name]}
            groups.append({"params": component.parameters, **rate, "weight_decay": decay, "name": name})
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

    The warm-up ends with the full rate in step ``warmup - 1``; a linear schedule falls from there to zero in step
    ``total_steps``, which is never taken, so that no step is wasted at rate zero.
    """
    if step < warmup:
        return (step + 1) / warmup
    if kind == "constant":
        return 1.0
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup))


def set_learning_rates(optimizer: Optimizer, config: TrainConfig, step: int, total_steps: int) -> None:
    """Sets the rates for step ``step``. They depend on nothing else, so a resumed run needs no scheduler state."""
    factor = schedule_factor(step, total_steps, config.warmup(total_steps), config.schedule)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor

"""What a training step costs, by one protocol for all methods: seconds per 100 steps and peak memory.

Every batch has ``batch_size`` rows and is padded to the same length, that of the longest training row; some steps warm
up, then the steps are timed from one update of the parameters to another, all that a step of training does included.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import psutil

from softprompts.errors import SoftPromptError
from softprompts.tasks.batches import length_of
from softprompts.training.config import TrainConfig
from softprompts.training.lane import Draw, Lane
from softprompts.training.prediction import Feature


class _Timed(Lane):
    """A run of equal steps that notes when they ended."""

    def __init__(self, name: str, config: TrainConfig, features: Sequence[Feature], teacher: str | None):
        super().__init__(name, config, features, teacher=teacher)
        self.stamps: list[float] = []
        self._longest = max(features, key=length_of)

    def draw(self) -> Draw:
        """Rows in their order, the last one of each batch replaced by the longest of all."""
        size = self.config.batch_size
        draw = []
        for part in range(self.config.gradient_accumulation_steps):
            start = (self.step * self.config.gradient_accumulation_steps + part) * size
            rows = [self.train_features[at % len(self.train_features)] for at in range(start, start + size - 1)]
            draw.append([*rows, self._longest])
        return draw

    def update(self, loss: float, norm: float) -> None:
        """Takes the step; the loss has been waited for, so the device is as far as the clock says."""
        super().update(loss, norm)
        self.stamps.append(time.perf_counter())


def step_cost(
    model: Any,
    name: str,
    config: TrainConfig,
    features: Sequence[Feature],
    *,
    pad_id: int,
    steps: int = 100,
    warmup_steps: int = 20,
    teacher: str | None = None,
) -> dict[str, Any]:
    """Trains a prompt for some steps and tells what they cost. The prompt is of no use afterwards.

    On a CPU memory is the process's, so only a process that has done nothing else gives a figure to compare.

    Args:
        model: a model with the prompt attached.
        name: the prompt.
        config: how it trains; its number of steps and its evaluations do not count.
        features: the training rows.
        pad_id: fills shorter rows.
        steps: that are timed.
        warmup_steps: before them.
        teacher: the prompt that it learns from.

    Returns:
        ``seconds_per_100_steps``; ``peak_memory`` and ``memory_before`` in bytes (of the GPU's tensors, or the
        process); ``tokens`` that a batch is padded to; ``steps`` and ``warmup_steps``.

    Raises:
        SoftPromptError: it diverged.
        KeyboardInterrupt: it was interrupted.
    """
    from softprompts.training.loop import train

    total = steps + warmup_steps
    lane = _Timed(name, replace(config, max_steps=total, eval_every=total, patience=None), features, teacher)
    before = _held(model)
    result = train(model, [lane], pad_id=pad_id, progress=False)[0]
    if not result.done:
        raise KeyboardInterrupt(result.message)  # half a measurement is none
    if result.steps < total:
        raise SoftPromptError(f"{result.message or result.stop_reason}; its cost was not measured")
    done = len(lane.stamps) - 1 - max(0, warmup_steps - 1)
    spent = lane.stamps[-1] - lane.stamps[warmup_steps - 1]
    return {
        "seconds_per_100_steps": 100 * spent / done,
        "peak_memory": result.peak_memory,
        "memory_before": before,
        "tokens": max(map(length_of, features)),
        "steps": done,
        "warmup_steps": warmup_steps,
    }


def _held(model: Any) -> int:
    """Bytes that are in use before training."""
    if model.device.type == "cuda":
        import torch

        return int(torch.cuda.memory_allocated(model.device))
    return int(psutil.Process().memory_info().rss)

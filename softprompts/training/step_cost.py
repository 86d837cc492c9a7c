"""What a training step costs, by one protocol for all methods: seconds per 100 steps and peak memory.

Every batch has ``batch_size`` rows and is padded to the same length, that of the longest training row. After warm-up
steps, the time from one update of the parameters to another is taken, all that a step of training does included.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from softprompts.errors import SoftPromptError
from softprompts.tasks.batches import length_of
from softprompts.training.lane import Lane, StepBatches
from softprompts.training.loop import train
from softprompts.training.memory import memory_in_use


class _Timed(Lane):
    """A run of equal steps that notes when they ended."""

    def __init__(self, lane: Lane, steps: int):
        config = replace(lane.config, max_steps=steps, eval_every=steps, patience=None)
        super().__init__(lane.name, config, lane.train_features, teacher=lane.teacher)
        self.stamps: list[float] = []
        self._longest = max(lane.train_features, key=length_of)

    def next_batches(self) -> StepBatches:
        """Rows in their order, the last one of each batch replaced by the longest of all."""
        rows, size, parts = self.train_features, self.config.batch_size, self.config.gradient_accumulation_steps
        batches = []
        for part in range(self.step * parts, (self.step + 1) * parts):
            places = range(part * size, (part + 1) * size - 1)
            batches.append([*(rows[at % len(rows)] for at in places), self._longest])
        return batches

    def update(self, loss: float, norm: float) -> None:
        """Takes the step; the loss has been waited for, so the device is as far as the clock says."""
        super().update(loss, norm)
        self.stamps.append(time.perf_counter())


def step_cost(model: Any, lane: Lane, *, pad_id: int, steps: int = 100, warmup_steps: int = 20) -> dict[str, Any]:
    """Trains a lane's prompt for some steps and measures what they cost. The prompt is of no use afterwards.

    On a CPU memory is the process's, so only a process that has done nothing else gives a figure to compare. The
    lane's own number of steps and its evaluations do not count; ``steps`` are timed after ``warmup_steps``.

    Returns:
        ``seconds_per_100_steps``; ``peak_memory`` and ``memory_before`` in bytes (of the GPU's tensors, or the
        process); ``tokens`` that a batch is padded to; ``steps`` and ``warmup_steps``.
    """
    total = steps + warmup_steps
    timed, before = _Timed(lane, total), memory_in_use(model.device)
    result = train(model, [timed], pad_id=pad_id, progress=False)[0]
    if not result.done:
        raise KeyboardInterrupt(result.message)  # half a measurement is none
    if result.steps < total:
        raise SoftPromptError(f"{result.message or result.stop_reason}; its cost was not measured")
    stamps = timed.stamps[max(0, warmup_steps - 1) :]
    count = len(stamps) - 1
    return {
        "seconds_per_100_steps": 100 * (stamps[-1] - stamps[0]) / count,
        "peak_memory": result.peak_memory,
        "memory_before": before,
        "tokens": max(map(length_of, lane.train_features)),
        "steps": count,
        "warmup_steps": warmup_steps,
    }

"""What a training step costs, by one protocol for all methods: seconds per 100 steps and peak memory.

Every batch has ``batch_size`` rows and is padded to the same length, that of the longest training row. After warm-up
steps, the time from one update of the parameters to another is taken, all that a step of training does included.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

from softprompts.errors import SoftPromptError
from softprompts.tasks.batches import length_of
from softprompts.training.evaluation import EVAL_ROWS, Evaluation, predictions_of
from softprompts.training.lane import Lane, StepBatches
from softprompts.training.loop import train
from softprompts.training.memory import PeakMemory, memory_in_use
from softprompts.training.result import LaneResult

_TIMED_BATCHES = 2  # of an evaluation


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


class _Sampled(_Timed):
    """A run whose first step has the longest rows, and whose others are as in training."""

    def next_batches(self) -> StepBatches:
        """The batch with the longest row as often as a step has batches, then the rows of the first steps."""
        if self.step == 0:
            return [self.longest_batch()] * self.config.gradient_accumulation_steps
        return Lane.next_batches(self)


@dataclass(frozen=True)
class RunEstimate:
    """What a run is going to take.

    Attributes:
        steps: number of its steps, if nothing stops it early.
        evaluations: number of its evaluations.
        step_seconds: time of a step, the mean over ``measured`` steps.
        evaluation_seconds: time of an evaluation.
        test_seconds: time of the test in the end.
        peak_memory: bytes, of the GPU's tensors or the process, with the longest rows in a step and an evaluation.
        measured: number of steps that were timed.
    """

    steps: int
    evaluations: int
    step_seconds: float
    evaluation_seconds: float
    test_seconds: float
    peak_memory: int
    measured: int

    @property
    def seconds(self) -> float:
        """Time of all steps, evaluations and the test."""
        return self.steps * self.step_seconds + self.evaluations * self.evaluation_seconds + self.test_seconds


def estimate(
    model: Any, lane: Lane, validation: Evaluation | None, test: Evaluation | None, *, pad_id: int, steps: int = 5
) -> RunEstimate:
    """Takes some steps of a lane, and predicts some of its rows, to see what the whole run is going to take.

    The prompt is of no use afterwards. One step with the longest rows comes before those that are timed.

    Raises:
        SoftPromptError: training broke off.
    """
    timed = _Sampled(lane, steps + 1)
    peak = _trained(model, timed, steps + 1, pad_id).peak_memory
    memory = PeakMemory(model.device)
    seconds = {
        split: _predicting(model, lane.name, evaluation, pad_id)
        for split, evaluation in (("validation", validation), ("test", test))
    }
    every = lane.config.eval_every or lane.steps_per_epoch
    return RunEstimate(
        steps=lane.total_steps,
        evaluations=math.ceil(lane.total_steps / every) if validation is not None else 0,
        step_seconds=(timed.stamps[-1] - timed.stamps[0]) / steps,
        evaluation_seconds=seconds["validation"],
        test_seconds=seconds["test"],
        peak_memory=max(peak, memory.read()),
        measured=steps,
    )


def _predicting(model: Any, name: str, evaluation: Evaluation | None, pad_id: int) -> float:
    """Seconds that all rows of an evaluation take, by the time of some, after a batch that is not timed."""
    if evaluation is None:
        return 0.0
    size = evaluation.batch_size or EVAL_ROWS
    rows = evaluation.features
    some = [*rows[:: max(1, len(rows) // (_TIMED_BATCHES * size))]][: _TIMED_BATCHES * size]
    predictions_of(model, [(name, replace(evaluation, features=some[:size]))], pad_id)
    began = time.perf_counter()
    predictions_of(model, [(name, replace(evaluation, features=some))], pad_id)
    return (time.perf_counter() - began) * len(rows) / len(some)


def _trained(model: Any, lane: Lane, total: int, pad_id: int) -> LaneResult:
    """The result of a measurement, of which no step may be missing."""
    result = train(model, [lane], pad_id=pad_id, progress=False)[0]
    if not result.done:
        raise KeyboardInterrupt(result.message)  # half a measurement is none
    if result.steps < total:
        raise SoftPromptError(f"{result.message or result.stop_reason}; its cost was not measured")
    return result


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
    result = _trained(model, timed, total, pad_id)
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

"""What a run is going to take, by some steps and predictions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch

import softprompts as sp
from softprompts.training import Evaluation, Lane, TrainConfig, step_cost
from softprompts.training.step_cost import RunEstimate, estimate

ROWS = [{"input_ids": [1] * (3 + index % 5), "label": index % 2} for index in range(40)]


def lane_of(model: Any, **config: Any) -> Lane:
    model.add_prompt("p", sp.PrefixTuningConfig(num_virtual_tokens=2), num_labels=2)
    return Lane("p", TrainConfig(batch_size=4, **config), ROWS)


def test_the_time_of_all_steps_evaluations_and_the_test() -> None:
    found = RunEstimate(100, 4, 0.5, 2.0, 3.0, 7, 5)
    assert found.seconds == 50 + 8 + 3


def test_steps_and_evaluations_are_those_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sp.attach(tiny.model("bert", torch.float32))
    lane = lane_of(model, epochs=3, eval_every=7, gradient_accumulation_steps=2)
    seen: list[list[int]] = []
    first = Lane.next_batches

    def noted(self: Lane) -> Any:
        batches = first(self)
        seen.append([len(batch) for batch in batches])
        return batches

    monkeypatch.setattr(Lane, "next_batches", noted)
    predicted: list[int] = []
    true = step_cost.predictions_of

    def counted(model: Any, pairs: Any, pad_id: int) -> Any:
        predicted.append(len(pairs[0][1].features))
        return true(model, pairs, pad_id)

    monkeypatch.setattr(step_cost, "predictions_of", counted)
    scored = Evaluation(ROWS * 30, batch_size=8)
    found = estimate(model, lane, scored, None, pad_id=0, steps=3)
    assert (found.steps, found.evaluations, found.measured) == (15, 3, 3)
    assert seen == [[4, 4]] * 3 and predicted == [8, 16]
    assert found.step_seconds > 0 and found.evaluation_seconds > 0 and found.test_seconds == 0
    assert found.peak_memory > 10_000_000
    assert lane.step == 0  # it was not trained itself
    few = estimate(model, lane_of_again(model, lane), None, replace(scored, features=ROWS[:3]), pad_id=0, steps=2)
    assert few.evaluations == 0 and few.evaluation_seconds == 0 and few.test_seconds > 0 and predicted[2:] == [3, 3]


def lane_of_again(model: Any, lane: Lane) -> Lane:
    model.forget_prompt("p")
    return lane_of(model, max_steps=2)


def test_a_run_that_breaks_off_is_not_measured() -> None:
    model = sp.attach(tiny.model("bert", torch.float32))
    lane = lane_of(model, learning_rate=1e30, max_grad_norm=None, max_steps=5)
    with pytest.raises(sp.SoftPromptError, match="its cost was not measured"):
        estimate(model, lane, None, None, pad_id=0, steps=4)
